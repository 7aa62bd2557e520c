"""The compiled core: stores, references, the paths of `put` and `get`, windows and frames.

What runs per operation is here: a small value or an array is written into its extent and read from it without a Python
frame in between. Policy is elsewhere: which store is found (`pyray_ser.store.discovery`), how a reference travels
(`pyray_ser.store.references`), which exception a status becomes (`pyray_ser.store.statuses`). `policy` alone calls these
modules, on slow paths, and imports each when it is first needed.

The parts, each a file of `_core/`, stand in their order of use: a part uses only those before it, and its first line says
which. `prelude` declares the types that have to be known earlier. All parts are one module, so that the engine is linked
once and a put or a get is one piece of C.

    prelude   names of Python and C, constants, deadlines, calls of the engine
    policy    every call into the Python layer: errors, finding stores, scopes
    spill     spill files that are compressed or carry a digest
    ledger    debug builds: each byte is written once
    store     the Store of this process: allocations, names and records in it
    views     what holds bytes in place: pins, private copies, buffers
    pickling  the pickler and the unpickler; what `put` gathers from a value
    refs      ObjectRef, and how a reference travels
    names     named objects
    forms     the stored form, checked; values that skip pickling
    write     put
    read      get, get_buffer
    window    create, empty, seal, abort
    frames    serialize, dumps_frames and their inverses
    wait      free, and waiting for objects
    admin     create and attach stores, snapshots, checks

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
