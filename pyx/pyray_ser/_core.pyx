"""The handle on a store, references, and the paths of `put` and `get`.

What runs per operation is here: a small value or an array is written into its extent and read from it without a Python
frame in between. Policy is elsewhere: which store is found (`pyray_ser.store`), how a reference travels
(`pyray_ser.ref`), which exception a status becomes (`pyray_ser.store.statuses`); these modules are imported when they are first
needed and are called on slow paths only.

The parts, each a file of `_core/`; all are one module, so that the engine is linked once and a put or a get is one piece
of C:

    errors      statuses as exceptions          write       one stream, at most one buffer
    handle      the Store of this process       write_many  what a pickler gathered
    opening     create, attach, find            put         which way a value takes
    reference   ObjectRef                       name        named objects
    message     how a reference travels         decode      from an object's bytes to its value
    view        what holds bytes in place       get         get, get_buffer
    form        header and table, checked       life        free, waiting, looking up
    plain       values that skip pickling       spill       spill files compressed, or with a digest
    layout      where the parts of an object go ledger      debug builds: each byte is written once

No lock of ours is ever held here; the engine's own are taken and left within one call of it. Destructors call only
functions of the engine that never block.
"""

include "_core/prelude.pxi"
include "_core/policy.pxi"
include "_core/spill.pxi"
include "_core/ledger.pxi"
include "_core/store.pxi"
include "_core/views.pxi"
include "_core/pickling.pxi"
include "_core/refs.pxi"
include "_core/names.pxi"
include "_core/forms.pxi"
include "_core/write.pxi"
include "_core/read.pxi"
include "_core/window.pxi"
include "_core/frames.pxi"
include "_core/wait.pxi"
include "_core/admin.pxi"
