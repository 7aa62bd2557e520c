"""Test that every call in the pickler's C code that can run Python code is marked for intruder builds.

A call counts as marked if it is the argument of `PRP_FOREIGN` or `PRP_FOREIGN_VOID` (csrc/common/foreign.h).
`Py_DECREF` is not checked; reviewers make sure that no code uses a borrowed object after a `Py_DECREF` of its owner.
"""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "csrc" / "pickle"

# These calls can run hooks, __getattr__, __hash__, __eq__ or imports, or allocate objects that the collector counts.
FOREIGN = re.compile(
    r"(?<!\w)(?:"
    r"PyObject_(?:Call\w*|GetAttr\w*|SetAttr\w*|GetItem|SetItem|DelItem|RichCompare\w*|Hash|IsInstance|IsSubclass|IsTrue|Size"
    r"|Length|Str|Repr|GetBuffer|GetIter|GenericGetDict)"
    r"|PyIter_Next|PyImport_Import\w*|PyMapping_GetItemString|PyObject_GC_New\w*"
    r"|PyDict_(?:SetItem\w*|GetItemWithError|New|Copy)"
    r"|PySequence_\w+|PyList_(?:New|SetSlice|Append)|PyTuple_(?:Pack|New|GetSlice)|Py_BuildValue"
    r"|PyUnicode_Split|PyPickleBuffer_FromObject|PyBytes_FromObject"
    r")\("
)


def without_comments(text):
    """Return the text with comments and strings replaced by blanks, so that all offsets stay the same."""
    return re.sub(
        r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.DOTALL
    )


def unmarked(text):
    code = without_comments(text)
    for match in FOREIGN.finditer(code):
        if not re.search(r"PRP_FOREIGN(?:_VOID)?\(\s*$", code[: match.start()]):
            yield code.count("\n", 0, match.start()) + 1, match.group()[:-1]


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the sources")
def test_calls_that_can_run_python_code_are_marked():
    found = [
        f"{path.name}:{line}: {name}"
        for path in sorted(FOLDER.glob("*.c"))
        for line, name in unmarked(path.read_text())
    ]
    assert not found, "put PRP_FOREIGN() around:\n" + "\n".join(found)


def test_the_search_finds_a_call_without_a_mark():
    text = "a = PyObject_Str(b); /* PyObject_Str(c) */\nd = PRP_FOREIGN(PyObject_Repr(e));\nf = PyTuple_Pack(1, g);\n"
    assert list(unmarked(text)) == [(1, "PyObject_Str"), (3, "PyTuple_Pack")]
