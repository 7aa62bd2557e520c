"""Compare the store with a dict for random sequences of puts, gets, frees, pickling and windows."""

import gc
import pickle

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

import pyray_ser
from pyray_ser import exceptions as exc

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=2000)
)
sizes = st.sampled_from([0, 1, 10, 200, 1000, 9000, 40_000, 150_000])
arrays = st.builds(
    lambda size, start, kind: (np.arange(size) + start).astype(kind),
    sizes,
    st.integers(0, 100),
    st.sampled_from(["f8", ">i4", "u1"]),
)
values = st.recursive(
    scalars | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def equal(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


class Box:
    """A container for a value in a bundle: hypothesis keeps the container alive, but a rule can empty it."""

    def __init__(self, content):
        self.content = content

    def __repr__(self):
        return f"Box({self.content!r:.60})"


class StoreMachine(RuleBasedStateMachine):
    """Operations on a store; `model` maps the identity of each object to its expected value, or to FREED."""

    refs = Bundle("refs")
    views = Bundle("views")
    blobs = Bundle("blobs")
    windows = Bundle("windows")
    FREED = object()

    @initialize()
    def start(self):
        gc.collect()
        self.before = pyray_ser.stats()
        self.model = {}
        self.boxes = []
        self.bound = pyray_ser.scope()
        self.bound.__enter__()

    def box(self, content):
        self.boxes.append(Box(content))
        return self.boxes[-1]

    def expected(self, box):
        return self.model[box.content.hex()]

    def check(self, value, expected):
        if isinstance(expected, str) and expected.startswith("ref "):
            assert list(value) == ["inner"] and value["inner"][0].hex() == expected[4:]
        else:
            assert equal(value, expected)

    @rule(target=refs, value=values)
    def put(self, value):
        ref = pyray_ser.put(value)
        assert ref.hex() not in self.model
        self.model[ref.hex()] = value
        return self.box(ref)

    @rule(target=refs, box=refs)
    def put_nested(self, box):
        if self.expected(box) is self.FREED:
            return multiple()
        outer = pyray_ser.put({"inner": [box.content]})
        self.model[outer.hex()] = f"ref {box.content.hex()}"
        return self.box(outer)

    @rule(target=views, box=refs, mode=st.sampled_from("rc"))
    def get(self, box, mode):
        expected = self.expected(box)
        if expected is self.FREED:
            try:
                pyray_ser.get(box.content, mmap_mode=mode)
            except exc.ObjectLostError:  # the error says "freed" while a holder exists, then "lost"
                return multiple()
            raise AssertionError("a freed object was read")
        value = pyray_ser.get(box.content, mmap_mode=mode)
        self.check(value, expected)
        return self.box((value, expected))

    @rule(box=views)
    def look_again(self, box):
        self.check(*box.content)

    @rule(box=consumes(views))
    def drop_view(self, box):
        self.check(*box.content)
        box.content = None

    @rule(target=refs, box=views)
    def put_again(self, box):
        value, expected = box.content
        if isinstance(expected, str) and expected.startswith("ref "):
            return multiple()
        ref = pyray_ser.put([value])
        self.model[ref.hex()] = [expected]
        return self.box(ref)

    @rule(box=refs)
    def free(self, box):
        pyray_ser.free(box.content)
        self.model[box.content.hex()] = self.FREED
        assert not pyray_ser.contains(box.content)

    @rule(box=consumes(refs))
    def drop_ref(self, box):
        box.content = None

    @rule(target=blobs, box=refs)
    def pickle(self, box):
        if self.expected(box) is self.FREED:
            return multiple()
        return pickle.dumps(box.content)

    @rule(target=refs, blob=blobs)
    def unpickle(self, blob):
        return self.box(pickle.loads(blob))

    @rule(target=windows, size=sizes)
    def empty(self, size):
        array = pyray_ser.empty(size, "u2")
        array[:] = size % 1000
        return self.box(array)

    @rule(target=refs, box=consumes(windows))
    def seal(self, box):
        array, box.content = box.content, None
        expected = array.copy()
        ref = pyray_ser.seal(array)
        assert not array.flags.writeable and equal(array, expected)
        self.model[ref.hex()] = expected
        return self.box(ref)

    @rule(box=consumes(windows))
    def abort(self, box):
        array, box.content = box.content, None
        pyray_ser.abort(array)
        assert not array.any()

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def store_is_sound(self):
        pyray_ser.init().check()

    def teardown(self):
        if not hasattr(self, "model"):
            return
        self.bound.__exit__(None, None, None)
        for box in self.boxes:
            box.content = None
        gc.collect()
        after = pyray_ser.stats()
        for key in ("objects", "unsealed", "edges", "in_flight", "used"):
            assert after[key] == self.before[key], key


StoreMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestStore = StoreMachine.TestCase
