"""The supported platforms. The build also reads this file, so it must not import other modules of the package."""

import os
import struct
import sys

PAGE = 4096


def unsupported() -> "str | None":
    """
    Return why this interpreter, system or machine is not supported, or None.

    Returns
    -------
    str or None
        One sentence without a period.
    """
    if sys.implementation.name != "cpython":
        return f"pyray_ser needs CPython, not {sys.implementation.name}"
    if sys.platform != "linux":
        return f"pyray_ser needs Linux, not {sys.platform}: it shares memory by memfd_create and open file description locks"
    if struct.calcsize("P") != 8:
        return f"pyray_ser needs a 64-bit Python, not one of {8 * struct.calcsize('P')} bits"
    if sys.byteorder != "little":
        return f"pyray_ser needs a little-endian machine, not a {sys.byteorder}-endian one"
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "pyray_ser needs Python with the GIL, not a build or run without it: use a build that has it"
    page = os.sysconf("SC_PAGESIZE")
    if page != PAGE:
        return f"pyray_ser needs a kernel with pages of {PAGE} bytes, not {page}: its stores are laid out in such pages"
    return None
