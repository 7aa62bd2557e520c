"""A demonstration with data that every machine has: ``python -m pyray_ser.demo``.

The sources of the running interpreter's standard library are indexed (tokens as arrays, a frame of definitions, a
nested dict of names), put into the store together with a large block, and queried by several processes through `get`.
Then the demo does the same by passing the data through `multiprocessing`. In both runs it kills one worker.

``indexing`` and ``loading`` make the data, ``queries`` has the questions, ``workers`` answers them in other processes,
``scenario`` is the sequence of steps for both ways, ``measuring`` reads figures of the system, ``report`` prints.
"""
