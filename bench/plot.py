"""Plot the comparison: one panel per operation, with times on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path

from comparison import OPERATIONS, Comparison

__all__ = ["draw"]


def draw(result: Comparison, path: Path) -> bool:
    """Write a PNG file; return False if matplotlib, an optional extra, is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    values = list(dict.fromkeys(value for measured in result.seconds.values() for value in measured))
    figure = Figure(figsize=(11, 2 + 0.16 * len(values) * len(result.libraries())), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(OPERATIONS), sharey=True)
    height = 0.8 / len(result.libraries())
    for panel, operation in zip(panels, OPERATIONS, strict=True):
        for number, library in enumerate(result.libraries()):
            times = [result.time(library, value, operation) for value in values]
            places = [at + number * height for at, time in enumerate(times) if time is not None]
            lengths = [time * 1e6 for time in times if time is not None]
            panel.barh(places, lengths, height, label=library, color=f"C{number}")
        panel.set_xscale("log")
        panel.set_title(operation)
        panel.set_xlabel("microseconds, logarithmic")
        panel.set_yticks([at + 0.4 - height / 2 for at in range(len(values))], values)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    machine = result.machine
    figure.suptitle(
        f"{machine['cpus']}-core {machine['architecture']}, Linux {machine['kernel']}, {machine['date']}",
        fontsize="small",
    )
    figure.savefig(path, dpi=120)
    return True
