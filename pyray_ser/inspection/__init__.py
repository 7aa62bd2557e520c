"""The inspector finds the parts of an object that cannot be pickled, and shows which parts have the most bytes.

One pass (`tracing`) visits all objects that the pickler would visit, by the same rules (`reducer_order`). It uses a
compiled walk (`_walk`) that knows the path to each object. `path` converts that path to the form that a user would
write, `hints` contains advice, `report` prints the report, `sizes` and `html` show bytes by path, and `put` uses
`explanation`.
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
