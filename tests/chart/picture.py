"""Draws the dashboard's panels as an SVG, from Prometheus' answers over a stretch of time. No Grafana is involved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, COLUMNS, MARGIN, PLOT_LEFT, PLOT_TOP, PLOT_BOTTOM = 330, 150, 3, 10, 44, 26, 34
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
MOST_NAMES, LETTER = 4, 5.4
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One panel: `series` by legend, each of (seconds, value); `row` is the heading that it stands under."""

    row: str
    title: str
    unit: str
    series: dict[str, list[Point]]


def svg(caption: str, panels: Sequence[Drawn]) -> str:
    """The whole picture, three panels beside each other under the headings of their rows."""
    parts: list[str] = []
    times = [at for panel in panels for series in panel.series.values() for at, _ in series]
    top, row, column = 30, "", 0
    for panel in panels:
        if panel.row != row:
            top += HEIGHT if row else 0
            parts.append(text(MARGIN, top + 14, panel.row, size=14, weight="bold"))
            top, row, column = top + 22, panel.row, 0
        elif column == COLUMNS:
            top, column = top + HEIGHT, 0
        parts.extend(drawn(panel, MARGIN + column * WIDTH, top, min(times), max(times)))
        column += 1
    wide, high = COLUMNS * WIDTH + 2 * MARGIN, top + HEIGHT + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif">\n'
        f'<rect width="{wide}" height="{high}" fill="white"/>\n'
    )
    return "".join([head, text(MARGIN, 20, caption, size=12), *parts, "</svg>\n"])


def drawn(panel: Drawn, left: float, top: float, start: float, end: float) -> Iterator[str]:
    """Frame, scale, lines and as many names as fit."""
    values = [value for series in panel.series.values() for _, value in series]
    if not values:
        raise ValueError(f"{panel.title} has no data")
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1.0
    x, y = left + PLOT_LEFT, top + PLOT_TOP
    wide, tall = WIDTH - PLOT_LEFT - MARGIN, HEIGHT - PLOT_TOP - PLOT_BOTTOM
    yield text(left + 4, top + 16, f"{panel.title} ({panel.unit})", size=11)
    yield f'<rect x="{x:.0f}" y="{y:.0f}" width="{wide}" height="{tall}" fill="none" stroke="#ccc"/>\n'
    yield text(x - 4, y + 8, f"{high:.3g}", size=9, anchor="end")
    yield text(x - 4, y + tall, f"{low:.3g}", size=9, anchor="end")
    for index, series in enumerate(panel.series.values()):
        placed = " ".join(
            f"{x + wide * (at - start) / max(end - start, 1.0):.1f},{y + tall * (1 - (value - low) / (high - low)):.1f}"
            for at, value in series
        )
        yield f'<polyline fill="none" stroke="{COLORS[index % len(COLORS)]}" points="{placed}"/>\n'
    yield from names(panel.series, x, y + tall + 14, wide)


def names(found: Iterable[str], x: float, y: float, wide: float) -> Iterator[str]:
    listed = list(found)
    shown, left = listed[:MOST_NAMES], len(listed) - MOST_NAMES
    room = wide / len(shown)
    for index, name in enumerate(shown):
        more = f" +{left}" if index == MOST_NAMES - 1 and left > 0 else ""
        yield text(x + index * room, y, name[: int(room / LETTER) - len(more)] + more, size=9, color=COLORS[index])


def text(x: float, y: float, words: str, *, size: int, color: str = "#333", weight: str = "", anchor: str = "") -> str:
    more = (f' font-weight="{weight}"' if weight else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{color}"{more}>{escape(words)}</text>\n'
