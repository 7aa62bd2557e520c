"""Define values of many kinds, a description of their observable properties, and the ways in which pools send them."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import hashlib
import importlib
import multiprocessing as mp
import pathlib
import pickle
import sys
import uuid

import numpy as np

# The number of elements of an array; a large array has at least `MIN_BYTES`.
SIZES = {"small": 6, "large": 1200}
MIN_BYTES = 1024
# The number of elements of other types. The standard pickler writes a payload of 64 KiB or more to its file
# in one call.
OTHER_SIZES = {"small": 6, "large": 24_000}

POINT = [("x", "<f8"), ("n", "<i4"), ("name", "S5")]
DTYPES = {
    **{
        name: name
        for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g", "F", "D", "G")
    },
    **{name: name for name in ("S5", "U3", "V7", "O", "M8[D]", "M8[s]", "M8[ns]", "M8[25m]", "m8[us]", "m8[D]")},
    "record": np.dtype(POINT),
    "aligned": np.dtype([("a", "i1"), ("at", POINT), ("when", "M8[ns]")], align=True),
    "overlapping": np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 2], "itemsize": 8}),
    "with a grid": np.dtype([("grid", "f4", (2, 3)), ("i", "u1")]),
    "with objects": np.dtype([("a", "i4"), ("b", "O")]),
    "with titles": np.dtype([(("title", "a"), "i4")]),
    "with metadata": np.dtype("i4", metadata={"unit": "m"}),
}
if hasattr(np.dtypes, "StringDType"):
    DTYPES["strings"] = np.dtypes.StringDType()


class Sub(np.ndarray):
    pass


class Stateful(np.ndarray):
    """A subclass whose own reduction adds a tag to the pickled state."""

    def __array_finalize__(self, origin):
        self.tag = getattr(origin, "tag", None)

    def __reduce__(self):
        make, arguments, state = super().__reduce__()
        return make, arguments, (*state, self.tag)

    def __setstate__(self, state):
        self.tag = state[-1]
        super().__setstate__(state[:-1])


class Box:
    """A class with attributes, some of which are the same object."""

    def __init__(self, value):
        self.first = self.second = value


class Bytes(bytes):
    pass


class Text(str):
    pass


class Items(list):
    pass


Pair = collections.namedtuple("Pair", "left right")


def fill(dtype, n):
    """Return a writable array that owns its memory and has varied elements."""
    dtype = np.dtype(dtype)
    made = np.zeros(n, dtype)
    if dtype.names:
        for name in dtype.names:
            made[name] = fill(dtype[name].base, n).reshape((n,) + (1,) * len(dtype[name].shape))
    elif dtype.char == "O":
        made[:] = [(None, i, str(i), [i])[i % 4] for i in range(n)]
    elif dtype.kind in "V":
        made.view("u1")[:] = np.arange(made.nbytes) % 251
    elif dtype.kind in "SUT":
        made[:] = np.array(
            ["", "a", "bc", "d\u00e9e"[: 2 if dtype.kind == "S" else 3].encode("ascii", "ignore").decode()]
        )[np.arange(n) % 4]
    elif dtype.kind in "Mm":
        made.view("i8")[:] = np.arange(n) * 86_407 - 5
        made[-1:] = "NaT"
    else:
        made[:] = (np.arange(n) % 120).astype(dtype)
    return made


# ---- forms of an array: a function returns None if the form does not exist ---------------------------------------------


def _borrowed(found, kind):
    if found.dtype.hasobject or found.dtype.char == "T" or not found.nbytes:
        return None
    return np.frombuffer(kind(found.tobytes()), found.dtype)


def _readonly(found):
    found.flags.writeable = False
    return found


def _swapped(found):
    if found.dtype.hasobject or found.dtype.char == "T" or found.dtype.newbyteorder() == found.dtype:
        return None
    return found.astype(found.dtype.newbyteorder())


def _in_record(found, *fields):
    if found.dtype.char == "T":
        return None
    made = np.zeros(len(found), [("value", found.dtype), *fields])
    made["value"] = found
    return made


def _stateful(found):
    made = found.view(Stateful)
    made.tag = ("a tag", 5)
    return made


def _masked(found):
    if found.dtype.char == "T" or (found.dtype.kind == "M" and np.datetime_data(found.dtype)[1] > 1):
        return None  # NumPy has no fill value for such a dtype
    return np.ma.array(found, mask=np.arange(len(found)) % 3 == 0)


def _unaligned(found):
    if found.dtype.hasobject or found.dtype.char == "T" or not found.nbytes:
        return None
    memory = np.zeros(found.nbytes + 1, "u1")
    memory[1:] = np.frombuffer(found.tobytes(), "u1")
    return memory[1:].view(found.dtype)


FORMS = {
    "alone": lambda found: found,
    "nested": lambda found: {"a": [found, (found,)], "box": Box(found), "view": found[1:]},
    "subclass": lambda found: found.view(Sub),
    "subclass with state": _stateful,
    "record array": lambda found: found.view(np.recarray) if found.dtype.names else None,
    "masked": _masked,
    "read-only": _readonly,
    "read-only subclass": lambda found: _readonly(found.view(Sub)),
    "borrowed from bytes": lambda found: _borrowed(found, bytes),
    "borrowed from bytearray": lambda found: _borrowed(found, bytearray),
    "byte-swapped": _swapped,
    "read-only byte-swapped": lambda found: None if _swapped(found) is None else _readonly(_swapped(found)),
    "Fortran": lambda found: np.asfortranarray(found.reshape(2, -1)),
    "read-only Fortran": lambda found: _readonly(np.asfortranarray(found.reshape(3, -1))),
    "transposed": lambda found: found.reshape(1, 2, -1).transpose(2, 0, 1),
    "strided": lambda found: found[::2],
    "reversed": lambda found: found[::-1],
    "view": lambda found: found[1:-1],
    "broadcast": lambda found: np.broadcast_to(found[:2], (len(found), 2)),
    "unaligned": _unaligned,
    "structured": lambda found: _in_record(found, ("i", "i1")),
    "next to a datetime": lambda found: _in_record(found, ("when", "M8[s]")),
    "field": lambda found: None if found.dtype.char == "T" else _in_record(found, ("i", "i1"))["value"],
    "0-d": lambda found: found[:1].reshape(()),
    "scalar": lambda found: found[1],
    "empty": lambda found: found[:0],
    "empty 2-d": lambda found: found[:0].reshape(0, 3),
}


# ---- other types: a function of the number of elements ---------------------------------------------------------------------

OTHER = {
    "bytes": lambda n: b"ab\0" * n,
    "bytes that look like a pickle's frame": lambda n: pickle.dumps(b"x" * 5 * n, 4),
    "bytes subclass": lambda n: Bytes(b"abc" * n),
    "bytearray": lambda n: bytearray(b"ab\0" * n),
    "str": lambda n: "abc" * n,
    "str of wide characters": lambda n: "a\u00e9\U0001f600" * n,
    "str subclass": lambda n: Text("abc" * n),
    "surrogate": lambda n: "a\udc80b" * n,
    "int": lambda n: 3 ** (6 * n // 5),
    "floats": lambda n: [i / 3 for i in range(n)],
    "tuple": lambda n: tuple(range(n)),
    "set": lambda n: frozenset(range(n)),
    "dict": lambda n: {str(i): i for i in range(n)},
    "list subclass": lambda n: Items(["x" * 3 * n]),
    "list with itself": lambda n: _cycle(b"x" * 3 * n),
    "deque": lambda n: collections.deque([b"x" * 3 * n], 5),
    "ordered dict": lambda n: collections.OrderedDict(a="x" * 3 * n),
    "namedtuple": lambda n: Pair(b"x" * 3 * n, bytearray(3 * n)),
    "array.array d": lambda n: array.array("d", range(n)),
    "array.array i": lambda n: array.array("i", range(n)),
    "array.array u": lambda n: array.array("u", "ab\u00e9" * n),
    "dates": lambda n: [datetime.datetime(2024, 2, 29, 1, fold=1), datetime.timedelta(n), datetime.UTC],
    "numbers": lambda n: [fractions.Fraction(n, 7), decimal.Decimal(n) / 7, 1j * n, True, None, ...],
    "uuid and path": lambda n: [uuid.UUID(int=n), pathlib.PurePosixPath("x" * n)],
    "types and functions": lambda n: [int, Box, len, np.add, np.dtype("f8"), np.float64],
    "generator": lambda n: np.random.default_rng(n),
    "matrix": lambda n: np.asmatrix(np.arange(2.0 * n).reshape(2, -1)),
    "char array": lambda n: np.array(["a ", "bc"] * n).view(np.char.chararray),
    "masked without a mask": lambda n: np.ma.array(np.arange(float(n))),
    "pickle buffers in a list": lambda n: [bytearray(3 * n), b"y" * 3 * n, "z" * 3 * n],
}


# The forms of the array that a DataFrame has as its only block.
OVER = (
    "read-only",
    "borrowed from bytes",
    "byte-swapped",
    "Fortran",
    "read-only Fortran",
    "strided",
    "reversed",
    "broadcast",
    "empty 2-d",
)


def _cycle(part):
    made = [part]
    made.append(made)
    return made


def _optional():
    def have(module):
        try:
            return importlib.import_module(module)
        except ImportError:
            return None

    if pd := have("pandas"):
        columns = lambda n: {
            "i": np.arange(n),
            "f": np.arange(n) / 3,
            "g": np.arange(n) / 7,
            "s": ["a", "b\u00e9"] * (n // 2),
        }
        times = lambda n: pd.date_range("2024-02-28", periods=n // 10 + 3, freq="h", tz="Europe/Berlin")
        yield "DataFrame", lambda n: pd.DataFrame(columns(n))
        yield "DataFrame of one block", lambda n: pd.DataFrame(np.arange(2.0 * n).reshape(-1, 2), columns=["a", "b"])
        yield (
            "DataFrame with dates",
            lambda n: pd.DataFrame({"at": times(n), "gap": times(n) - times(n)[0]}, index=times(n)),
        )
        for form in OVER:
            # Some of these frames have more columns than rows, and each column takes long to describe.
            over = lambda n, form=form: FORMS[form](fill("f8", min(n, SIZES["large"])))
            yield f"DataFrame over {form}", lambda n, over=over: pd.DataFrame(over(n), copy=False)
        yield "Series", lambda n: pd.Series(np.arange(float(n)), name="x")
        yield "Categorical", lambda n: pd.Series(pd.Categorical(["a", "b"] * (n // 2), ordered=True))
        yield "nullable", lambda n: pd.Series([1, None] * (n // 2), dtype="Int64")
        yield "period and interval", lambda n: [pd.period_range("2024", periods=n, freq="D"), pd.interval_range(0, n)]
        yield "MultiIndex", lambda n: pd.MultiIndex.from_product([["a", "b"], range(n // 2)], names=["x", "y"])
        yield "sparse", lambda n: pd.Series(pd.arrays.SparseArray(np.arange(n) % 3))
    if pa := have("pyarrow"):
        yield "arrow table", lambda n: pa.table({"i": np.arange(n), "s": ["a", None] * (n // 2)})
        yield "arrow slice", lambda n: pa.array(np.arange(float(n)))[1:-1]
        yield "arrow buffer", lambda n: pa.py_buffer(b"x" * 3 * n)
        if pd:
            yield "arrow strings", lambda n: pd.Series(["a", None] * (n // 2), dtype="string[pyarrow]")
    if have("scipy") and (sparse := have("scipy.sparse")):
        yield "csr", lambda n: sparse.csr_matrix(sparse.diags([np.arange(1.0, n + 1)], [0]))
        yield "coo array", lambda n: sparse.coo_array(sparse.diags([np.arange(1.0, n + 1)], [0]))
    if pl := have("polars"):
        yield "polars", lambda n: pl.DataFrame({"i": np.arange(n), "s": ["a", "b"] * (n // 2)})


OTHER.update(_optional())

AROUND = {"alone": lambda made: made, "nested": lambda made: {"a": [made, (made,)], "box": Box(made)}}


def names() -> list[tuple[str, str, str]]:
    """Return the type, form and size of every value."""
    arrays = [(dtype, form, size) for dtype in DTYPES for form in FORMS for size in SIZES]
    return arrays + [(kind, form, size) for kind in OTHER for form in AROUND for size in SIZES]


def sample() -> list[tuple[str, str, str]]:
    """Return the names of large values that cover every type and every form, and of some small values."""
    forms, around = list(FORMS), list(AROUND)
    found = [(kind, forms[(i + turn) % len(forms)], "large") for i, kind in enumerate(DTYPES) for turn in (0, 13)]
    found += [(kind, around[i % 2], "large") for i, kind in enumerate(OTHER)]
    return found + [(kind, form, "small") for kind, form, _ in found[::6]]


def make(name):
    """Return the value with this name, or None if it does not exist."""
    kind, form, size = name
    if kind in DTYPES:
        return FORMS[form](fill(DTYPES[kind], SIZES[size]))
    return AROUND[form](OTHER[kind](OTHER_SIZES[size]))


# ---- observable properties ---------------------------------------------------------------------------------------------


def _digest(data):
    return hashlib.blake2b(data, digest_size=6).hexdigest()


def look(value, seen=None):
    """Return a text with all that a program can observe about a value, including which parts are the same object."""
    seen = {} if seen is None else seen
    if type(value) is float or (type(value) is int and abs(value) < 2**60) or (type(value) is str and len(value) < 20):
        return repr(value)
    if id(value) in seen and not isinstance(value, (int, str, float, type(None))):
        return f"#{seen[id(value)][0]}"
    # Keep the value alive, so that no other value gets its address.
    seen[id(value)] = len(seen), value
    kind = type(value).__qualname__
    if isinstance(value, np.ndarray):
        return f"{kind}{_look_array(value, seen)}"
    if isinstance(value, dict):
        return f"{kind}{{{', '.join(f'{look(k, seen)}: {look(v, seen)}' for k, v in value.items())}}}"
    if isinstance(value, (list, tuple, collections.deque)):
        rest = sorted(set(vars(value)) if hasattr(value, "__dict__") else ())
        return f"{kind}[{len(value)} {rest} {_short([look(part, seen) for part in value])}]"
    if isinstance(value, (bytes, bytearray)):
        return f"{kind}({len(value)} {_digest(value)})"
    if isinstance(value, str):
        return f"{kind}({len(value)} {_digest(value.encode(errors='surrogatepass'))})"
    if isinstance(value, np.generic):
        return f"{kind} {value.dtype!r} {value!r}"
    if isinstance(value, Box):
        return f"{kind}{look(vars(value), seen)}"
    if kind in ("DataFrame", "Series") and type(value).__module__.startswith("pandas"):
        return f"{kind}{_look_pandas(value, seen)}"
    if type(value).__module__.startswith("scipy.sparse"):
        parts = [getattr(value, part, None) for part in ("data", "indices", "indptr", "coords", "row", "col")]
        return f"{kind}{value.shape}{look(parts, seen)}"
    if isinstance(value, (frozenset, int, array.array)):
        return f"{kind}({_digest(repr(value).encode() if not isinstance(value, int) else hex(value).encode())})"
    if isinstance(value, np.random.Generator):
        return f"{kind}{value.bit_generator.state}"
    if hasattr(value, "to_pylist"):
        return f"{kind}({value.type if hasattr(value, 'type') else value.schema} {_digest(repr(value.to_pylist()).encode())})"
    if hasattr(value, "to_pybytes"):
        return f"{kind}{value.is_mutable}{_digest(value.to_pybytes())}"
    return f"{kind}({_digest(repr(value).encode())})"


def _short(texts):
    return f"{texts[:5]} {_digest(repr(texts).encode())}"


def _content(array):
    """Return bytes that depend on the elements of an array, but not on its padding."""
    if array.dtype.names:
        return b"".join(_content(array[name]) for name in array.dtype.names)
    if array.dtype.hasobject or array.dtype.char in "TgG":
        return repr(array.tolist()).encode()
    return array.tobytes()


def _look_array(value, seen):
    flags = value.flags
    dtype = value.dtype
    content = _content(np.asarray(value.data if isinstance(value, np.ma.MaskedArray) else value))
    seen_flags = "".join(
        "cfowa"[i] if flag else "-"
        for i, flag in enumerate(
            (flags.c_contiguous, flags.f_contiguous, flags.owndata, flags.writeable, flags.aligned)
        )
    )
    tag = getattr(value, "tag", None)
    base = "whole" if value.base is None else "based"
    parts = (
        f"({dtype!r} {dtype.isalignedstruct} {dtype.metadata} {value.shape} {value.strides} {seen_flags} {base} {tag}"
    )
    if isinstance(value, np.ma.MaskedArray):
        parts += f" {look(value.mask, seen)} {value._fill_value!r} {value.hardmask}"
    return f"{parts} {_digest(content)})"


def _look_pandas(value, seen):
    columns = [value] if value.ndim == 1 else [value.iloc[:, i] for i in range(value.shape[1])]
    found = [str(value.shape), str(value.index.dtype), _digest(repr(value.index.tolist()).encode())]
    for column in columns:
        found.append(f"{column.name} {column.dtype} {_digest(repr(column.tolist()).encode())}")
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf":
            found.append(f"{column.to_numpy().flags.writeable} {column.to_numpy().strides}")
    return f"({' '.join(found)})"


def spoil(value):
    """Write into every writable array of a value; no other process may see these writes."""
    if isinstance(value, np.ndarray) and value.flags.writeable and value.dtype.kind in "iufbc" and value.size:
        value.flat[0] = 77
    elif isinstance(value, bytearray) and value:
        value[0] = 77
    elif isinstance(value, dict):
        for part in value.values():
            spoil(part)
    elif type(value) is list and len(value) < 10:
        for part in value:
            if part is not value:
                spoil(part)


# ---- channels ----------------------------------------------------------------------------------------------------------


def work(name, value):
    """Run in a worker: return a description of the argument, the argument, and a value made in the worker."""
    seen = look(value)
    return name, seen, value, make(name)


def spoiling(name, value):
    """Run in a worker: write into the argument and return its description."""
    spoil(value)
    return name, look(value)


def _served(receive, send):
    while (message := receive()) is not None:
        function, name, value = message
        send(globals()[function](name, value))


def _answer(end, function, *item):
    end.send(function(*item))


def _serve_pipe(end):
    _served(end.recv, end.send)


def _serve_queues(tasks, answers):
    _served(tasks.get, answers.put)


def _pool(method):
    def run(function, items):
        with mp.get_context(method).Pool(1) as pool:
            yield from pool.starmap_async(function, items, chunksize=1).get(PATIENCE)

    return run


def _executor(method):
    def run(function, items):
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(1, mp_context=mp.get_context(method)) as pool:
            futures = [pool.submit(function, *item) for item in items]
            for future in futures:
                yield future.result(PATIENCE)

    return run


def _pipe(method):
    def run(function, items):
        context = mp.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve_pipe, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        for name, value in items:
            ours.send((function.__name__, name, value))
            yield ours.recv()
        ours.send(None)
        process.join()

    return run


def _process(method):
    """Return a channel in which each value is an argument of its own process."""

    def run(function, items):
        context = mp.get_context(method)
        context.set_forkserver_preload(["pool_zoo"])
        for item in items:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(theirs, function, *item), daemon=True)
            process.start()
            theirs.close()
            yield ours.recv()
            process.join()

    return run


def _queue(kind, method):
    def run(function, items):
        context = mp.get_context(method)
        tasks, answers = getattr(context, kind)(), getattr(context, kind)()
        process = context.Process(target=_serve_queues, args=(tasks, answers), daemon=True)
        process.start()
        for name, value in items:
            tasks.put((function.__name__, name, value))
            yield answers.get()
        tasks.put(None)
        process.join()

    return run


def _joblib(**options):
    def run(function, items):
        from joblib import Parallel, delayed

        yield from Parallel(n_jobs=2, batch_size=1, **options)(delayed(function)(*item) for item in items)
        if options["backend"] == "loky":
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=True, kill_workers=True)

    return run


def _loky(function, items):
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(1) as pool:
        futures = [pool.submit(function, *item) for item in items]
        for future in futures:
            yield future.result(PATIENCE)


PATIENCE = 600
CHANNELS = {
    "Pool": _pool("fork"),
    "Pool of spawned workers": _pool("spawn"),
    "Pipe": _pipe("fork"),
    "Pipe of a spawned process": _pipe("spawn"),
    "Queue": _queue("Queue", "fork"),
    "Queue of a spawned process": _queue("Queue", "spawn"),
    "SimpleQueue": _queue("SimpleQueue", "fork"),
    "executor": _executor("fork"),
    "executor of spawned workers": _executor("spawn"),
    "executor of forkserver": _executor("forkserver"),
    "arguments of processes": _process("forkserver"),
    "joblib": _joblib(backend="loky"),
    "joblib without files": _joblib(backend="loky", max_nbytes=None),
    "joblib, multiprocessing": _joblib(backend="multiprocessing"),
    "loky": _loky,
}
# joblib's queues for this backend use a separate pickler, so `install` does not change the messages in the queues.
NOT_HOOKED = {"joblib, multiprocessing"}


def main():
    """Print a description of each received value; the arguments are channel, values, and "with" or "without"."""
    channel, which, way = sys.argv[1:]
    if way == "with":
        import pyray_ser

        pyray_ser.install(min_bytes=MIN_BYTES)
    run = CHANNELS[channel]
    items = [(name, value) for name in (names() if which == "all" else sample()) if (value := make(name)) is not None]
    before = [look(value) for _, value in items]
    for (name, value), text, received in zip(items, before, run(work, items), strict=True):
        found, argument, back, result = received
        assert tuple(found) == name
        for role, seen in (("argument", argument), ("sent back", look(back)), ("result", look(result))):
            print(f"{'; '.join(name)}: {role}: {seen}")
        spoil(back)
        spoil(result)
        assert look(value) == text, f"{name} changed at its sender"
    if which == "all":
        for (name, value), text, (_, seen) in zip(items, before, run(spoiling, items), strict=True):
            print(f"{'; '.join(name)}: written to: {seen}")
            assert look(value) == text, f"{name} changed at its sender"
    if way == "with":
        least = 0 if channel in NOT_HOOKED else len(items) / 4
        assert pyray_ser.stats()["serial"] > least, "few of them went through the store"


if __name__ == "__main__":
    # Workers import the classes from this module, not from the main module.
    import pool_zoo

    pool_zoo.main()
