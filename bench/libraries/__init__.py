"""One adapter per library; each runs in a separate process, and if necessary in a separate environment.

An adapter is a module with

    PACKAGES       what pip installs into a separate environment; empty: nothing, it runs in the environment of the
    benchmarks
    DISTRIBUTIONS  whose versions are written down
    SKIPS          values that it cannot take, with the reason
    Library        start()               import the library and bring up whatever must run; part of the cold start
                   put(value) -> handle  from here on another process could read it
                   get(handle) -> value  as another process would; arrays without a copy where the library can
                   free(handle)          end the object
                   stop()                end everything
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
