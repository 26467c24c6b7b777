"""Curves as inline SVG, drawn by matplotlib, in colours that the page decides.

Each figure is drawn once, in placeholder colours; those become CSS variables, so one file is right on a light and on a
dark page. Text stays text, in the page's font. No string of a run goes in: only numbers, and names written here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

SERIES = 8  # colours for series, `--s1` to `--s8` of the page
WIDTH, HEIGHT = 4.9, 2.7  # inches of 72 units: about the width of a phone
_DEEPER = 0.13  # opacity of each level of a density over the one below
SMOOTH_FROM = 40  # points: below, every step is its own line

_INK, _GRID, _BACK = "#a10001", "#a10002", "#a10003"
_COLOURS = [f"#b100{i:02x}" for i in range(1, SERIES + 1)]
_REST = "#a10004"  # of series beyond the eighth
_VARIABLES = {_INK: "--muted", _GRID: "--grid", _BACK: "--surface", _REST: "--muted"} | {
    colour: f"--s{i}" for i, colour in enumerate(_COLOURS, 1)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Line:
    """A curve, perhaps with a band.

    Attributes:
        x: ascending.
        y: as many as x.
        colour: index of its series, from 0.
        low: lower end of the band at each x, or None for no band.
        high: its upper end likewise.
        faint: drawn behind the others, thin: one of several that another line sums up.
        dashed: a bound or quantile beside the main line.
        markers: a mark at each point: few and measured, not one each step.
        symbol: matplotlib's name of the mark.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    faint: bool = False
    dashed: bool = False
    markers: bool = False
    symbol: str = "o"


def curves(
    lines: Sequence[Line],
    *,
    percent: bool = False,
    limit: float | None = None,
    from_zero: bool = False,
    doubling: Sequence[int] = (),
    ticks: Sequence[float] = (),
    smooth: bool = True,
) -> Markup:
    """Lines over steps, as an <svg> element.

    Args:
        lines: from the back to the front.
        percent: y is a share, shown in per cent.
        limit: a dashed level across the figure, shown only if the curves come near it.
        from_zero: the axis begins at zero.
        doubling: the x that get a tick, on an axis where each doubling is as long as the next; empty: an even axis.
        ticks: the x that get a tick on an even axis; empty: whole numbers.
        smooth: many points get a running mean; false where they are no measurements.
    """
    with matplotlib.rc_context(_STYLE):
        axes = _axes()
        for line in lines:
            _draw(axes, line, smooth=smooth and limit is None)  # a mean would hide for how long a limit was passed
        values = [v for line in lines for v in line.y]
        if limit is not None and values and max(values) > limit / 3:
            axes.axhline(limit, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        if from_zero:
            axes.set_ylim(bottom=min(0.0, *values))
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(bottom, -0.03), min(top, 1.03))  # room for half a mark, not for a share above 1
        places = {x for line in lines for x in line.x}
        if doubling:
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(doubling), [str(x) for x in doubling])
        elif len(places) == 1:
            (x,) = places
            axes.set_xlim(x - 1, x + 1)
        if ticks:
            axes.set_xticks(list(ticks), [f"{x:g}" for x in ticks])
        elif not doubling:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        return _svg(axes)


@dataclass(frozen=True)
class Column:
    """A distribution over [0, 1] that holds for a stretch of x.

    Attributes:
        left, right: ends of the stretch.
        above: for each level of a density, from the lowest, the ends of where it is reached; NaN where it never is.
        drawn: what was drawn from it.
        mean: its mean.
    """

    left: float
    right: float
    above: Sequence[tuple[float, float]]
    drawn: float
    mean: float


def density(columns: Sequence[Column], named: Sequence[tuple[int, str]]) -> Markup:
    """Distributions over time as nested bands in one colour, deeper for each level, as an <svg> element.

    Args:
        columns: ascending; gaps between them stay empty.
        named: (number of the level, what it is called) of those that the scale at the right names, ascending.
    """
    edges = [columns[0].left]
    held: list[Column | None] = []
    for column in columns:
        if column.left > edges[-1]:
            held.append(None)
            edges.append(column.left)
        held.append(column)
        edges.append(column.right)
    nothing = (np.nan, np.nan)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes, scale = figure.subplots(ncols=2, width_ratios=(30, 1))
        levels = 1 + max((k for c in columns for k, (low, _) in enumerate(c.above) if np.isfinite(low)), default=0)
        for k in range(levels):
            low, high = np.array([c.above[k] if c else nothing for c in held]).T
            axes.stairs(high, edges, baseline=low, fill=True, color=_colour(0), alpha=_DEEPER, linewidth=0)
            scale.fill_between([0, 1], k, levels, color=_colour(0), alpha=_DEEPER, linewidth=0)
        for column in columns:
            axes.hlines(column.drawn, column.left, column.right, color=_colour(1), linewidth=2.5)
        mean = [c.mean if c else np.nan for c in held]
        axes.stairs(mean, edges, baseline=None, color=_colour(5), linewidth=1.2, linestyle=(0, (3, 2)))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        scale.set_xlim(0, 1)
        scale.set_ylim(0, levels)
        scale.set_xticks([])
        scale.grid(visible=False)
        scale.yaxis.tick_right()
        scale.set_yticks([k for k, _ in named], [name for _, name in named])
        for each in (axes, scale):
            each.patch.set_alpha(0.0)
            each.spines["bottom"].set_visible(each is axes)
        return _svg(axes)


def stacked_bars(steps: Sequence[int], parts: Mapping[int, np.ndarray], *, most: int = 60) -> Markup:
    """The parts of each step on top of one another, as an <svg> element.

    Args:
        steps: where the bars stand, ascending.
        parts: index of the colour, from 0 -> one value for each step; from the bottom up.
        most: number of bars; of more steps, means over groups of neighbours are shown.
    """
    groups = np.array_split(np.arange(len(steps)), min(most, len(steps)))
    with matplotlib.rc_context(_STYLE):
        axes = _axes()
        position = [float(np.mean([steps[i] for i in group])) for group in groups]
        width = 0.86 * (position[1] - position[0] if len(position) > 1 else 1.0)
        bottom = np.zeros(len(groups))
        for index, values in parts.items():
            heights = np.array([values[group].mean() for group in groups])
            axes.bar(position, heights, width, bottom=bottom, color=_colour(index), edgecolor=_BACK, linewidth=0.5)
            bottom += heights
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        return _svg(axes)


def intervals(rows: Sequence[tuple[float, float | None, float | None]]) -> Markup:
    """Values with their intervals, from top to bottom and numbered from 1, against a line at zero, as an <svg> element.

    Those whose interval leaves out zero are in colour.

    Args:
        rows: (value, low, high); without an interval low and high are None.
    """
    with matplotlib.rc_context(_STYLE | {"axes.grid.axis": "x"}):
        axes = _axes(height=0.6 + 0.3 * max(2, len(rows)))
        axes.axvline(0, color=_INK, linewidth=1)
        for number, (value, low, high) in enumerate(rows, 1):
            apart = low is not None and high is not None and (low > 0 or high < 0)
            colour = _colour(0) if apart else _INK
            if low is not None and high is not None:
                axes.hlines(number, low, high, color=colour, linewidth=2)
            axes.plot([value], [number], color=colour, marker="o", markersize=6, markeredgecolor=_BACK)
        axes.set_ylim(len(rows) + 0.6, 0.4)
        axes.set_yticks(range(1, len(rows) + 1))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda points, _: f"{points:+.4g}".replace("-", "−")))
        return _svg(axes)


def smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Centred running mean over a tenth of the points; at the ends over the neighbours that there are."""
    window = max(3, len(values) // 10) | 1
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _axes(height: float = HEIGHT) -> Axes:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    axes.margins(x=0.02, y=0.1)
    return axes


def _colour(index: int) -> str:
    return _COLOURS[index] if index < SERIES else _REST


def _draw(axes: Axes, line: Line, *, smooth: bool) -> None:
    colour = _colour(line.colour)
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
        if len(line.x) == 1:  # a band has no width there
            axes.vlines(line.x, line.low, line.high, color=colour, alpha=0.4, linewidth=3)
    if line.faint:
        axes.plot(line.x, line.y, color=colour, linewidth=1, alpha=0.35)
        return
    y = np.asarray(line.y)
    if smooth and len(y) >= SMOOTH_FROM and not line.markers and not line.dashed:
        axes.plot(line.x, y, color=colour, linewidth=1, alpha=0.3)
        y = smoothed(y)
    axes.plot(
        line.x,
        y,
        color=colour,
        linewidth=1.2 if line.dashed else 2,
        linestyle=(0, (3, 2)) if line.dashed else "solid",
        solid_capstyle="round",
        marker=line.symbol if line.markers or len(y) == 1 else None,
        markersize=5 if line.symbol == "o" else 6,
        markeredgecolor=_BACK,
        markeredgewidth=1,
    )


def _svg(axes: Axes) -> Markup:
    """The figure as an <svg> element whose colours are the page's variables."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    cast(Figure, axes.figure).savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<svg[^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" aria-hidden="true">', text, count=1
    )
    text = text.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text)
