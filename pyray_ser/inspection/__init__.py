"""The inspector finds the objects that cannot be pickled, and shows where they and the bytes are.

One pass (`tracing`) visits what the pickler would visit, by the same rules
(`reducer_order`), on a compiled walk (`_walk`) that has the path to each object.
`path` turns that path into what a user would write, `hints` contains remedies, `report` prints,
`sizes` and `html` show bytes by path, `explanation` serves `put`.
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
