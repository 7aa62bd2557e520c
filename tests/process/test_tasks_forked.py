"""Test that forked workers do not keep objects of their parent alive, although the workers start with its memory."""

from __future__ import annotations

import pytest
from isolated import run

HEAD = """
    import os, time, numpy as np, pyray_ser as ray
    from pyray_ser.exceptions import ObjectLostError
    SIZE = 300_000

    def objects(patience=10):
        end = time.monotonic() + patience
        while ray.stats()["objects"] and time.monotonic() < end:
            time.sleep(0.02)
        return ray.stats()["objects"]

    @ray.remote
    def look():
        return float(ray.get(KEPT).sum())

    @ray.remote
    def view():
        return float(VIEW.sum())

    @ray.remote
    class Actor:
        def same(self, value): return value
        def look(self): return float(ray.get(KEPT).sum())
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_hold_nothing_of_what_their_parent_held_when_they_started(method):
    script = f"""
    if __name__ == "__main__":
        ray.init(num_workers=2, start_method="{method}")
        refs = [ray.put(np.full(SIZE, i)) for i in range(20)]
        actor = Actor.remote()
        nothing = ray.remote(abs)
        assert ray.get([nothing.remote(1) for _ in range(4)] + [actor.same.remote(2)]) == [1.0] * 4 + [2]
        assert ray.get(actor.same.remote(refs[3]))[0] == 3
        del refs
        ray.init().check()
        print(objects())
    """
    assert run(HEAD + script) == "0"


def test_what_was_inherited_can_still_be_used():
    script = """
    if __name__ == "__main__":
        ray.init(num_workers=1, start_method="fork")
        KEPT = ray.put(np.ones(SIZE))
        VIEW = ray.get(ray.put(np.full(SIZE, 2.0)))
        import inherited_names
        inherited_names.KEPT, inherited_names.VIEW = KEPT, VIEW
        assert ray.get(ray.remote(inherited_names.look).remote()) == SIZE
        # The reference is held by the worker from now on, the view since the fork: both outlive what the parent has.
        del KEPT, VIEW, inherited_names.KEPT, inherited_names.VIEW
        held = [ray.put(np.zeros(SIZE)) for _ in range(30)]
        assert ray.get(ray.remote(inherited_names.look).remote()) == SIZE
        assert ray.get(ray.remote(inherited_names.view).remote()) == 2 * SIZE
        print("used")
    """
    module = """
import sys, types
inherited_names = types.ModuleType("inherited_names")
exec('''
import pyray_ser
def look(): return float(pyray_ser.get(KEPT).sum())
def view(): return float(VIEW.sum())
''', inherited_names.__dict__)
sys.modules["inherited_names"] = inherited_names
"""
    import textwrap

    assert run(textwrap.dedent(HEAD) + module + textwrap.dedent(script)) == "used"


def test_an_inherited_reference_that_the_parent_gave_up_is_lost_and_says_so():
    script = """
    import sys, types
    if __name__ == "__main__":
        module = sys.modules["inherited_names"] = types.ModuleType("inherited_names")
        exec("import pyray_ser\\ndef look(): return pyray_ser.get(KEPT)", module.__dict__)
        ray.init(num_workers=1, start_method="fork")
        module.KEPT = ray.put(np.ones(SIZE))
        nothing, look = ray.remote(abs), ray.remote(module.look)
        ray.get(nothing.remote(1))
        del module.KEPT
        assert objects() == 0
        try:
            ray.get(look.remote())
        except ObjectLostError as error:
            print("lost" if "ObjectRef" in str(error) else error)
    """
    assert run(HEAD + script) == "lost"
