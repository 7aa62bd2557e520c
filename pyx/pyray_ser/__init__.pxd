# Marks this directory as the package's declarations, so that `cimport pyray_ser._store` finds _store.pxd here.
