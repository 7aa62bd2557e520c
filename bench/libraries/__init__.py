"""Adapters for the measured libraries; each runs in a separate process, and if necessary in a separate environment.

An adapter is a module with

    PACKAGES       what pip installs into a separate environment; if empty, the adapter runs in that of the benchmarks
    DISTRIBUTIONS  distributions whose versions are recorded
    SKIPS          values that the library cannot store, with the reason
    Library        start()               import the library and start its processes; part of the cold start
                   put(value) -> handle  store the value; afterwards another process can read it
                   get(handle) -> value  read the value as another process would; without copying arrays if possible
                   free(handle)          free the object
                   stop()                stop all that `start` started
"""

# Title of a library -> its module, in the order of the table.
OWN = {
    "pyray_ser": "our_store",
    "shared_memory by hand": "by_hand",
    "joblib": "joblib_files",
    "pickle, shared with nobody": "pickle_bytes",
}
PEERS = {
    "Ray": "ray_store",
    "Plasma": "plasma_store",
    "vineyard": "vineyard_store",
}
