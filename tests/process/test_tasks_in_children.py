"""Test that child processes of multiprocessing and of executors end normally after using tasks and actors."""

from __future__ import annotations

import pytest
from isolated import run
from patience import patience


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["process", "actor", "pool", "executor"])
def test_a_child_that_uses_tasks_ends(method, kind):
    script = f"""
    import multiprocessing, time
    from concurrent.futures import ProcessPoolExecutor
    import pyray_ser as ray
    @ray.remote
    def double(x): return 2 * x
    @ray.remote
    class Actor:
        def double(self, x): return 2 * x
    kept = []
    def work():
        if {kind!r} == "actor":
            kept.append(Actor.remote())
            assert ray.get(kept[0].double.remote(21)) == 42
        assert ray.get(double.remote(21)) == 42
    if __name__ == "__main__":
        context = multiprocessing.get_context({method!r})
        manager = None
        if {kind!r} == "pool":
            pool = context.Pool(1)
            pool.apply(work)
            child = pool._pool[0]
            pool.close()
        elif {kind!r} == "executor":
            executor = ProcessPoolExecutor(1, mp_context=context)
            executor.submit(work).result()
            child = next(iter(executor._processes.values()))
            manager = executor._executor_manager_thread
            executor.shutdown(wait=False)
        else:
            child = context.Process(target=work)
            child.start()
        end = time.monotonic() + {patience(60)}
        child.join(end - time.monotonic())
        if manager is not None:
            # It waits for the child as well: the thread that asks the kernel second gets no exit code until the first has noted it.
            manager.join(max(0, end - time.monotonic()))
        print(child.exitcode)
        if child.is_alive():
            child.kill()
    """
    assert run(script) == "0"
