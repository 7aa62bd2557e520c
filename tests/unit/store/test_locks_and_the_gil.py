"""Test that no code holds the GIL during an engine call that may wait for the store lock."""

import re
from pathlib import Path

import pytest
from isolated import run

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the sources are not here")

FUNCTION = re.compile(r"^[a-z_][\w \*]*?\b(\w+)\([^;{}]*\)\s*\{(.*?)^\}", re.M | re.S)
# With these arguments a function tries to acquire the lock, and returns immediately if it would have to wait.
TRIES = re.compile(
    r"\b(prs_deferred_run|prs_edges_release|lock_as)\([^;]*?,\s*PRS_NO_WAIT\)|\bprs_alloc\([^;]*?PRS_ALLOC_TRY"
)
# These functions close stores at the end of the interpreter, when no other code runs.
AT_THE_END = {"__dealloc__", "close_at_exit"}


def engine_calls_that_wait() -> set[str]:
    """Return the functions from which `prs_lock` can be reached, according to the source of the engine."""
    calls: dict[str, set[str]] = {}
    for path in (ROOT / "csrc/store").rglob("*.c"):
        text = re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"\\])*\"", "", path.read_text(), flags=re.S)
        for name, body in FUNCTION.findall(text):
            # Functions of the same name in several files count as one function, so the result may be too large.
            calls.setdefault(name, set()).update(re.findall(r"\b(\w+)\s*\(", TRIES.sub("", body)))
    waiting = {"prs_lock"}
    while more := {name for name, called in calls.items() if name not in waiting and called & waiting}:
        waiting |= more
    return {name for name in waiting if name.startswith("prs_")}


def calls_with_the_gil(text: str, waiting: set[str]) -> list[str]:
    found = []
    nogil: list[int] = []
    function = ""
    for number, line in enumerate(text.splitlines(), 1):
        code = line.partition("#")[0]
        if not code.strip():
            continue
        indent = len(code) - len(code.lstrip())
        while nogil and indent <= nogil[-1]:
            nogil.pop()
        if match := re.match(r"\s*(?:def|cdef|cpdef)\b[^=]*?(\w+)\(", code):
            function = match.group(1)
        if re.match(r"\s*with nogil:", code):
            nogil.append(indent)
        elif not nogil and function not in AT_THE_END and not re.match(r"\s*(cdef|cimport|from)\b.*noexcept", code):
            names = re.findall(r"\b(prs_\w+)\(", TRIES.sub("", code))
            found += [f"{number}: {name} in {function}" for name in names if name in waiting]
    return found


def test_the_checker_knows_what_waits():
    waiting = engine_calls_that_wait()
    assert {
        "prs_alloc",
        "prs_add_edge",
        "prs_token_take_noted",
        "prs_token_claim",
        "prs_name_bind",
        "prs_close",
    } <= waiting
    assert (
        not {"prs_pin", "prs_unpin", "prs_ref", "prs_unref", "prs_free", "prs_seal", "prs_abort", "prs_state"} & waiting
    )


def test_the_checker_finds_a_call():
    text = (
        "cdef f():\n    with nogil:\n        prs_alloc(a)\n    prs_alloc(b)\n    prs_alloc(s, n, PRS_ALLOC_TRY, d, e)\n"
    )
    assert calls_with_the_gil(text, {"prs_alloc"}) == ["4: prs_alloc in f"]


def test_no_call_waits_for_the_store_lock_with_the_gil_held():
    waiting = engine_calls_that_wait()
    found = []
    for path in sorted((ROOT / "pyx").rglob("*.px[iy]*")):
        if path.suffix in (".pyx", ".pxi"):
            found += [f"{path.name}:{place}" for place in calls_with_the_gil(path.read_text(), waiting)]
    assert not found, "\n".join(found)


def test_other_threads_run_while_a_file_is_opened(tmp_path):
    """Opening a FIFO for reading blocks until another thread opens it for writing."""
    script = f"""
    import os, threading, time
    from pyray_ser import _core
    path = {str(tmp_path / "fifo")!r}
    os.mkfifo(path)

    def write():
        while True:
            time.sleep(0.001)
            try:  # an error until the other thread is opening it
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                return
            except OSError:
                pass

    writer = threading.Thread(target=write)
    writer.start()
    with _core.Opened(path, os.O_RDONLY) as opened:
        print(os.read(opened.fileno(), 1))
    writer.join()
    """
    assert run(script, timeout=30) == "b''"


@pytest.mark.parametrize("handler", ["returns", "raises"])
def test_a_signal_interrupts_the_opening_of_a_file(tmp_path, handler):
    script = f"""
    import os, signal
    from pyray_ser import _core
    path = {str(tmp_path / "fifo")!r}
    os.mkfifo(path)
    seen = []

    def handler(number, frame):
        seen.append(number)
        if {handler!r} == "raises":
            raise InterruptedError("by the handler")
        if len(seen) == 3:  # it has been opened again twice
            seen.append(os.open(path, os.O_RDWR))

    signal.signal(signal.SIGALRM, handler)
    before = len(os.listdir("/proc/self/fd"))
    # Again and again: a signal that comes before the call interrupts nothing.
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with _core.Opened(path, os.O_RDONLY) as opened:
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(opened.fileno() > 2, len(seen) > 3)
    except InterruptedError as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(error, len(os.listdir("/proc/self/fd")) - before)
    """
    assert run(script, timeout=30) == ("True True" if handler == "returns" else "by the handler 0")
