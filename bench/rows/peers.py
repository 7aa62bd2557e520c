"""Check the claims about other stores with the figures of a comparison.

This module is not in `rows.NAMES`, because the comparison needs the environments of these stores.
"""

from __future__ import annotations

from comparison import OURS, Comparison
from measuring.claim import Claim, at_least

ROW = "peers"
SMALL, LARGE = "80 B array", "100 MB array"


def judge(result: Comparison) -> list[Claim]:
    """Return the claims that a comparison can decide."""
    promised = [
        ("small put", SMALL, "put", {"Ray": 300, "Plasma": 150}),
        ("small get", SMALL, "get", {"Ray": 100, "Plasma": 100}),
        (
            "100 MB put",
            LARGE,
            "put",
            dict.fromkeys(["Ray", "Plasma", "vineyard", "shared_memory by hand", "joblib"], 1),
        ),
    ]
    claims = [
        _ratio(f"{what}, {library} over ours", result, library, value, operation, least)
        for what, value, operation, libraries in promised
        for library, least in libraries.items()
    ]
    cold = result.cold_ratio("Ray") if "Ray" in result.cold and OURS in result.cold else None
    claims.append(
        at_least(ROW, "cold start, Ray over ours", cold, 20, "x", **({} if cold else {"skipped": "not measured"}))
    )
    return claims


def _ratio(what: str, result: Comparison, library: str, value: str, operation: str, least: float) -> Claim:
    figure = result.ratio(library, value, operation)
    detail: dict = {}
    if figure is None:
        detail["skipped"] = result.skipped.get(library, {}).get(value, "not measured")
    else:
        ours, theirs = (1e6 * result.time(name, value, operation) for name in (OURS, library))
        detail["note"] = f"{theirs:,.1f} and {ours:,.2f} us"
    return at_least(ROW, what, figure, least, "x", **detail)
