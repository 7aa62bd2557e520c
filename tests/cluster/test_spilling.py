"""Test how Dask spills values that lie in the store, with Dask's own workers and memory limits."""

from importlib.util import find_spec

import pytest
from dask_programs import run

# Importing distributed would change how the test process pickles exceptions.
pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")

# Workers spill above 360 MB until they use less than 330 MB.
_HEAD = """
        LIMIT, SPILL, TARGET = 600_000_000, 0.6, 0.55
        dask.config.set({
            "distributed.worker.memory.target": TARGET, "distributed.worker.memory.spill": SPILL,
            "distributed.worker.memory.pause": False, "distributed.worker.memory.terminate": False,
            # The active memory manager deletes values that several workers have.
            "distributed.scheduler.active-memory-manager.start": False,
        })
        N = 2_500_000  # 20 MB

        def expected(start):
            return N * (N - 1) / 2 + N * start

        def measured(dask_worker):
            return dask_worker.monitor.get_process_memory()

        def spilled(dask_worker):
            return sorted(dask_worker.data.disk)

        def writes(dask_worker):
            return dask_worker.data.cumulative_metrics["disk-write", "count"]

        def fill(limit, dask_worker):
            # Use so much memory outside of Dask's values that Dask must spill. Uninitialized memory would not count.
            more = np.ones((limit - dask_worker.monitor.get_process_memory()) // 8)
            dask_worker.held = [*getattr(dask_worker, "held", ()), more]

        async def delete(dask_scheduler, worker, keys):
            await dask_scheduler.delete_worker_data(worker, keys, "test")

        def read(values, worker):
            tasks = {i: client.submit(total, value, workers=[worker], pure=False) for i, value in values.items()}
            for i, task in tasks.items():
                assert task.result() == expected(i), i
"""


def test_dask_spills_no_more_values_than_needed():
    run(f"""{_HEAD}
        with local(2, memory_limit=LIMIT) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            first, second = addresses(client, 2)
            values = {{i: client.submit(make, N, i, workers=[first], key=f"value-{{i}}") for i in range(8)}}
            read(values, second)
            # Only the first worker still has the values, which are in the store.
            client.run_on_scheduler(delete, worker=second, keys=[value.key for value in values.values()])
            until(lambda: not client.run(lambda dask_worker: len(dask_worker.data), workers=[second])[second])
            assert client.run(stats)[first]["objects"] == 8
            client.run(fill, int(LIMIT * SPILL) + 5_000_000, workers=[first])
            until(lambda: client.run(measured, workers=[first])[first] <= LIMIT * TARGET)
            # Each spilled value frees 20 MB of the store, of which half was counted for the first worker.
            found, seen = client.run(spilled)[first], client.run(stats)[first]
            assert 2 <= len(found) <= 6, found
            assert seen["objects"] == 8 - len(found) and seen["backed"] < 20_000_000 * seen["objects"] + 5_000_000, seen
            # Values that were spilled are right, and are shared again.
            client.run(lambda dask_worker: vars(dask_worker).pop("held"), workers=[first])
            read(values, second)
            assert client.run(stats)[first]["objects"] == 8
            del values
            everything_freed(client)
    """)


def test_dask_spills_values_last_that_other_workers_hold():
    run(f"""{_HEAD}
        with local(2, memory_limit=LIMIT) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            first, second = addresses(client, 2)
            shared = {{i: client.submit(make, N, i, workers=[first], key=f"shared-{{i}}") for i in range(3)}}
            read(shared, second)
            private = {{i: client.submit(make, N, i, workers=[first], key=f"private-{{i}}") for i in range(4)}}
            wait(list(private.values()))
            client.run(fill, int(LIMIT * SPILL) + 5_000_000, workers=[first])
            until(lambda: client.run(measured, workers=[first])[first] <= LIMIT * TARGET)
            found = client.run(spilled)[first]
            assert 2 <= len(found) <= 3 and all(key.startswith("private") for key in found), found
            # If this is not enough, the shared values follow.
            client.run(fill, int(LIMIT * SPILL) + 100_000_000, workers=[first])
            until(lambda: len(client.run(spilled)[first]) == 7)
            client.run(lambda dask_worker: vars(dask_worker).pop("held"), workers=[first])
            for values in (shared, private):
                for worker in (first, second):
                    read(values, worker)
            client.unregister_worker_plugin("pyray_ser")
            assert client.run(lambda dask_worker: "evict" in vars(dask_worker.data)) == {{first: False, second: False}}
    """)


def test_a_value_that_dask_has_spilled_is_not_written_again_when_another_worker_gets_it():
    run(f"""{_HEAD}
        dask.config.set({{"distributed.worker.memory.target": 15_000_000 / LIMIT}})  # Dask spills larger values immediately
        with local(2, memory_limit=LIMIT) as cluster, Client(cluster) as client:
            pyray_ser.distributed.enable(client)
            first, second = addresses(client, 2)
            value = client.submit(make, N, 1, workers=[first], key="value")
            wait(value)
            assert client.run(spilled)[first] == ["value"] and client.run(writes)[first] == 1
            read({{1: value}}, second)
            assert client.run(spilled)[first] == ["value"] and client.run(writes)[first] == 1
            del value
            everything_freed(client)
    """)
