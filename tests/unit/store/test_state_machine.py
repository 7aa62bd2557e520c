"""Compare the store with a dict for random sequences of puts, gets, frees, pickling, windows and names."""

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
names = st.sampled_from(["state a", "state b", "state " + "ä" * 100])
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
        self.named = {}
        self.versions = {}
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

    # `named` maps each name to the identity of its object and to the object's expected value.

    def living(self, name):
        """Return the identity and value of the object that has a name, or None."""
        entry = self.named.get(name)
        return None if entry is None or self.model.get(entry[0]) is self.FREED else entry

    def rename_in_model(self, old, new):
        self.named[new] = self.named.pop(old)

    @rule(target=refs, name=names, value=values, replace=st.booleans())
    def put_named(self, name, value, replace):
        if self.living(name) and not replace:
            try:
                pyray_ser.put(value, name=name)
            except exc.NameExistsError:
                return multiple()
            raise AssertionError("a taken name was given away")
        ref = pyray_ser.put(value, name=name, replace=replace)
        self.model[ref.hex()] = value
        self.named[name] = ref.hex(), value
        return self.box(ref)

    @rule(name=names, value=values)
    def get_or_put(self, name, value):
        known = self.living(name)
        self.check(pyray_ser.get_or_put(name, lambda: value), known[1] if known else value)
        if not known:
            identity = pyray_ser.names()[name].hex()
            self.model[identity] = value
            self.named[name] = identity, value

    @rule(name=names)
    def get_named(self, name):
        known = self.living(name)
        try:
            self.check(pyray_ser.get_by_name(name, timeout=0), known and known[1])
        except exc.NameNotFoundError:
            assert not known

    @rule(name=names)
    def delete(self, name):
        known = self.living(name)
        try:
            pyray_ser.delete(name)
        except exc.NameNotFoundError:
            assert not known
        else:
            assert known
        self.named.pop(name, None)

    @rule(old=names, new=names)
    def rename(self, old, new):
        known, taken = self.living(old), self.living(new)
        try:
            pyray_ser.rename(old, new)
        except exc.NameNotFoundError:
            assert not known
        except exc.NameExistsError:
            assert known and taken
        else:
            assert known and not taken
            self.rename_in_model(old, new)

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def store_is_sound(self):
        pyray_ser.init().check()

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def names_are_right(self):
        details = pyray_ser.names("state ", details=True)
        assert {name: entry.ref.hex() for name, entry in details.items()} == {
            name: self.named[name][0] for name in self.named if self.living(name)
        }
        for name, entry in details.items():
            version, identity = self.versions.get(name, (0, None))
            assert entry.version > version or (entry.version == version and entry.ref.hex() == identity)
            self.versions[name] = entry.version, entry.ref.hex()

    def teardown(self):
        if not hasattr(self, "model"):
            return
        self.bound.__exit__(None, None, None)
        for name in pyray_ser.names("state "):
            pyray_ser.delete(name)
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
