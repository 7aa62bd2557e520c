"""The compiled core: stores, references, the code of `put` and `get`, windows and frames.

This module holds the code that runs per operation: `put` writes a small value or an array into its extent, and `get`
reads it, without a Python frame in between. The Python layer decides the rest: how a store is found
(`pyray_ser.store.discovery`), how a reference is pickled (`pyray_ser.store.references`), and which exception is raised
for a status (`pyray_ser.store.statuses`). Only `policy` calls these modules. It does so on slow paths, and imports each
module on first use.

The parts are the files of `_core/` that are included below. A part uses only parts that precede it, and lists them in
its first line; `prelude` declares the types that earlier parts need. All parts form one module, so that the engine is
linked once and the C compiler can optimize a whole put or get.

    prelude   C declarations, constants, deadlines, `begin` and `end` around calls of the engine
    policy    every call into the Python layer: errors, finding stores, scopes, picklers
    spill     spill files that are compressed or carry a digest
    ledger    debug builds: check that each byte of an object is written once
    store     `Store`: its allocations, statistics, records and tokens in flight
    views     objects that keep bytes in place: pins, private copies, buffers
    pickling  the pickler and the unpickler; `Gathered`, the pickled form before it is stored
    refs      `ObjectRef`, and how messages carry it
    names     named objects
    forms     checks of the stored form; values that skip pickling
    write     `put`
    read      `get`, `get_buffer`
    window    `create`, `empty`, `seal`, `abort`
    transfer  the stored form on its way from store to store
    frames    `serialize`, `dumps_frames` and their inverses
    wait      `free`, and waiting for objects
    admin     creating and attaching stores, snapshots, queries of the command-line tools, file locks

This module has no locks; the engine acquires and releases its locks within one call. Destructors call only functions of
the engine that never block.
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
include "_core/transfer.pxi"
include "_core/frames.pxi"
include "_core/wait.pxi"
include "_core/admin.pxi"
