"""Tasks and actors in children of multiprocessing and executors, which must end as they would without."""

from __future__ import annotations

import pytest
from isolated import run


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
        if {kind!r} == "pool":
            pool = context.Pool(1)
            pool.apply(work)
            child = pool._pool[0]
            pool.close()
        elif {kind!r} == "executor":
            executor = ProcessPoolExecutor(1, mp_context=context)
            executor.submit(work).result()
            child = next(iter(executor._processes.values()))
            executor.shutdown(wait=False)
        else:
            child = context.Process(target=work)
            child.start()
        child.join(60)
        print(child.exitcode)
        if child.is_alive():
            child.kill()
    """
    assert run(script) == "0"
