"""Time tasks and actors of one library, as requested on standard input: one side of `tasks_beside_ray.py`.

The script runs in the library's own environment, so it uses no code of this project. If the library is ours, the
script uses our package.
"""

from __future__ import annotations

import sys
from time import perf_counter


def start(library: str):
    if library == "ray":
        import logging

        import ray

        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
        return ray
    import pyray_ser

    pyray_ser.init(num_workers=2)
    return pyray_ser


def main() -> None:
    library = start(sys.argv[1])

    def nothing():
        pass

    def length(value):
        return len(value)

    class Actor:
        def nothing(self):
            pass

    task, measured, actor = library.remote(nothing), library.remote(length), library.remote(Actor).remote()
    library.get(task.remote())
    print("first", flush=True)
    # Import numpy only here, after the first result, because the time of a cold start ends there.
    import numpy as np

    array = np.zeros(125_000)

    def megabyte():
        # Pass a new array each time, as programs do, so that no array is cached from an earlier call.
        assert library.get(measured.remote(array + 1)) == 125_000

    operations = {
        "task": lambda: library.get(task.remote()),
        "actor": lambda: library.get(actor.nothing.remote()),
        "megabyte": megabyte,
    }
    for line in sys.stdin:
        name, times = line.split()
        call = operations[name]
        call()
        began = perf_counter()
        for _ in range(int(times)):
            call()
        print((perf_counter() - began) / int(times), flush=True)
    library.shutdown()


if __name__ == "__main__":
    main()
