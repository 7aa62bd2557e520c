# Marks this directory as the package's declarations, so that `cimport pyray_ser._core` finds _core.pxd here.
