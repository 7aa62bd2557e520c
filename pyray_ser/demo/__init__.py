"""A demonstration with data that exists on every machine: ``python -m pyray_ser.demo``.

The sources of the running interpreter's standard library are indexed (tokens as arrays, a frame of definitions, a
nested dict of names), put into the store together with a large block, and queried by several processes through `get`.
Then the demo repeats these steps, but passes the data through `multiprocessing`. In both runs, it kills one worker.

``indexing`` and ``loading`` make the data, ``queries`` defines the questions, and ``workers`` answers them in other
processes. ``scenario`` runs the same steps for both methods, ``measuring`` reads system statistics, and ``report``
prints the results.
"""
