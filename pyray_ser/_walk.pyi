from collections.abc import Callable
from typing import Any, Final, final

ASK: Final[int]
PLAIN: Final[int]

def instance_dict(obj: Any) -> dict[str, Any] | None: ...
@final
class Node:
    step: tuple[Any, str, Any, Any]
    obj: Any
    inband: int
    zero_copy: int
    copied: int
    referenced: int
    children: list[Node] | None
    others: int
    others_bytes: int
    @property
    def total(self) -> int: ...

@final
class Walker:
    failures: int
    visited: int
    root: Node | None
    def __init__(
        self,
        reduce: Callable[[Any], tuple[Any, tuple[str, str] | None]],
        classify: Callable[[type], int],
        on_failure: Callable[[list[tuple[Any, str, Any, Any]], int, Any, Exception], Any],
        threshold: int = 1024,
        keep: int = 1024,
        max_failures: int = 1000,
        copying: frozenset[Any] = ...,
        refers: Callable[[int, int], bool] | None = None,
        half: int = 50,
    ) -> None: ...
    def walk(self, obj: Any) -> Node: ...
