"""The main job on data found on every machine: ``python -m pyray_ser.demo``.

The sources of the running interpreter's standard library are indexed (tokens as arrays, a frame of definitions, a
nested dict of names), put into the store together with a large block, and queried by several processes through `get`.
The same is then done by passing the data through `multiprocessing`. In the middle of both one worker is killed.

``indexing`` and ``loading`` make the data, ``queries`` asks about it, ``workers`` answers in other processes,
``scenario`` is the course of events for both ways, ``measuring`` looks at the system, ``report`` prints.
"""
