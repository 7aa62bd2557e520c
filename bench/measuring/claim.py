"""A measured figure and its limit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

__all__ = ["Claim", "at_least", "at_most", "markdown", "measured", "table"]


@dataclass(frozen=True)
class Claim:
    """
    One measured figure and the limit that it must keep.

    `unit` is "us", "ms", "x", "%", "bytes" or "GiB"; `relation` is the relation that the figure must have to the
    target. A target of None means that the figure has no limit. A claim that could not be measured has no figure, and
    `detail["skipped"]` contains the reason.
    """

    row: str
    what: str
    figure: float | None
    relation: str
    target: float | None
    unit: str
    detail: dict = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        if self.figure is None or self.target is None:
            return None
        return self.figure <= self.target if self.relation == "<=" else self.figure >= self.target

    @property
    def verdict(self) -> str:
        return {True: "yes", False: "NO", None: "-"}[self.passed]

    def as_dict(self) -> dict:
        return {**asdict(self), "passed": self.passed}

    @classmethod
    def from_dict(cls, data: dict) -> Claim:
        return cls(**{key: value for key, value in data.items() if key != "passed"})


def at_most(row: str, what: str, figure: float | None, target: float, unit: str, **detail) -> Claim:
    return Claim(row, what, figure, "<=", target, unit, detail)


def at_least(row: str, what: str, figure: float | None, target: float | None, unit: str, **detail) -> Claim:
    return Claim(row, what, figure, ">=", target, unit, detail)


def measured(row: str, what: str, figure: float | None, unit: str, **detail) -> Claim:
    """Return a figure without a limit."""
    return Claim(row, what, figure, ">=", None, unit, detail)


def _limit(claim: Claim) -> str:
    return "-" if claim.target is None else f"{claim.relation} {_number(claim.target, claim.unit)}"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit in ("bytes",) or abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif unit == "us" or (unit == "x" and value < 10) or unit == "GiB":
        text = f"{value:.3f}"
    else:
        text = f"{value:.1f}"
    return f"{text} {unit}".strip()


def table(claims: Iterable[Claim]) -> str:
    """Return the claims as a text table, with a note at the end of a line if there is one."""
    lines = [("row", "what", "measured", "target", "kept", "note")]
    for claim in claims:
        note = claim.detail.get("skipped") or claim.detail.get("note") or ""
        lines.append((claim.row, claim.what, _number(claim.figure, claim.unit), _limit(claim), claim.verdict, note))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    out = []
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0]), line[1].ljust(widths[1]), line[2].rjust(widths[2]), line[3].rjust(widths[3])]
        out.append("  ".join([*cells, line[4].ljust(widths[4]), line[5]]).rstrip())
        if not number:
            out.append("  ".join("-" * width for width in widths))
    return "\n".join(out)


def markdown(claims: Iterable[Claim]) -> str:
    """Return the claims as a Markdown table."""
    lines = ["| | figure | promised | kept | |", "|---|---|---|---|---|"]
    for claim in claims:
        note = claim.detail.get("skipped") or claim.detail.get("note") or ""
        target = _limit(claim).replace("<=", "≤").replace(">=", "≥")
        what = f"{claim.row}: {claim.what}"
        lines.append(f"| {what} | {_number(claim.figure, claim.unit)} | {target} | {claim.verdict} | {note} |")
    return "\n".join(lines)
