# Makes this directory a package for Cython, so that `cimport pyray_ser._prs` finds _prs.pxd here.
