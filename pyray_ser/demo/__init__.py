"""A demonstration with data that exists on every machine: ``python -m pyray_ser.demo``.

The demo indexes the sources of the interpreter's standard library (tokens as arrays, a frame of definitions, a nested
dict of names). It puts the index and a large block into the store, and several processes query them through `get`.
Then the demo repeats these steps, but passes the data through `multiprocessing`. In both runs, it kills one worker.

``indexing`` and ``loading`` make the data, ``queries`` defines the questions, and ``workers`` answers them in other
processes. ``scenario`` runs the same steps for both methods, ``measuring`` reads system statistics, and ``report``
prints the results.
"""
