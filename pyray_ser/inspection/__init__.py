"""Finding out why: what cannot be pickled, where it is, and where the bytes are.

One pass (`trace`) visits what the pickler would visit, by the same rules
(`reduction`), on a compiled walk (`_walk`) that knows the way to each object.
`path` turns that way into what a user would write, `hints` knows ways out;
`report` prints, `sizes` and `html` show bytes by path, `explain` serves `put`.
"""

from .explanation import Explanation, explain, explain_failure, explain_put, serialization_error
from .failure import FailureTuple
from .inspector import Inspection, inspect
from .report import inspect_serializability
from .sizes import Size, Sizes, inspect_size
from .tracing import Trace, trace

__all__ = [
    "Explanation",
    "FailureTuple",
    "Inspection",
    "Size",
    "Sizes",
    "Trace",
    "explain",
    "explain_failure",
    "explain_put",
    "inspect",
    "inspect_serializability",
    "inspect_size",
    "serialization_error",
    "trace",
]
