"""Names at points in place of a legend, and heights that keep names apart."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

SIZE = 9  # of the text, in points
_DISTANCES = (9, 16, 24, 33, 43, 54, 66)  # from the point, in points; beyond the first one a thin line leads there
_DIRECTIONS = [math.pi * k / 8 for k in (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11)]
_BARS = 30.0  # so many points further away is as bad as lying on one error bar
_LIGHT = [withStroke(linewidth=2, foreground="white")]  # around letters, where they lie on a bar all the same
Point: TypeAlias = tuple[float, float]
Segment: TypeAlias = tuple[Point, Point]


def beside(axes: Axes, points: Mapping[str, Point], errors: Sequence[tuple[Point, Point]] = ()) -> bool:
    """Write each name at its point, over no other name, marker or leading line. False, and nothing is written, where
    there is no room for all. `errors` are the ends of lines that names had better not cover.

    The limits of the axes must be final."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # places the axes
    scale = figure.dpi / 72
    renderer = canvas.get_renderer()
    sizes = {}
    for name in points:
        text = figure.text(0, 0, name, fontsize=SIZE)
        box = text.get_window_extent(renderer)
        sizes[name] = (box.width / scale, 0.8 * box.height / scale)  # the box has room for lines above and below
        text.remove()
    at = {name: tuple(axes.transData.transform(point) / scale) for name, point in points.items()}
    crossed: list[Segment] = []
    for ends in errors:
        (x0, y0), (x1, y1) = axes.transData.transform(ends) / scale
        crossed.append(((x0, y0), (x1, y1)))
    inside = Bbox(axes.get_window_extent(renderer).get_points() / scale)
    placed = _placed(at, sizes, inside, crossed)
    if placed is None:
        return False
    for name, (middle, start) in placed.items():
        x, y = at[name]
        offset: dict[str, Any] = {"textcoords": "offset points", "zorder": 5}
        if start is not None:
            line = {"arrowstyle": "-", "linewidth": 0.6, "color": "#767676", "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", points[name], (start[0] - x, start[1] - y), arrowprops=line, **offset)
        about: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SIZE, "path_effects": _LIGHT}
        axes.annotate(name, points[name], (middle[0] - x, middle[1] - y), **about, **offset)
    return True


def _placed(
    at: Mapping[str, Point], sizes: Mapping[str, Point], inside: Bbox, crossed: Sequence[Segment]
) -> dict[str, tuple[Point, Point | None]] | None:
    """The middle of each name, and where the line that leads to its point begins, if it needs one; first those with
    the least room."""
    around = {name: sum(math.dist(one, other) < 60 for other in at.values()) for name, one in at.items()}
    markers = {name: Bbox.from_bounds(x - 4, y - 4, 8, 8) for name, (x, y) in at.items()}
    texts: list[Bbox] = []
    leaders: list[Segment] = []
    found: dict[str, tuple[Point, Point | None]] = {}
    for name in sorted(at, key=lambda name: -around[name]):
        taken = [*texts, *(marker for other, marker in markers.items() if other != name)]
        best = None
        for distance, direction in itertools.product(_DISTANCES, _DIRECTIONS):
            middle, box = _text(at[name], sizes[name], distance, direction)
            line = (_nearest(box, at[name]), at[name])
            leads = distance > _DISTANCES[0]
            if not _within(box, inside) or any(box.overlaps(other) for other in taken):
                continue
            if any(_meets(box, leader) for leader in leaders):
                continue
            in_the_way = [other for other in taken if not other.contains(*at[name])]  # not what lies on the point
            if leads and (any(_meets(o, line) for o in in_the_way) or any(_cross(line, leader) for leader in leaders)):
                continue
            if not leads and _whose(box, at) != name:
                continue
            cost = distance + _BARS * sum(_meets(box, bar) for bar in crossed)
            if best is None or cost < best[0]:
                best = (cost, middle, box, line if leads else None)
        if best is None:
            return None
        _, middle, box, line = best
        found[name] = (middle, line[0] if line else None)
        texts.append(box)
        leaders += [line] if line else []
    return found


def _whose(box: Bbox, at: Mapping[str, Point]) -> str:
    """The point that a name seems to belong to."""
    return min(at, key=lambda name: math.dist(_nearest(box, at[name]), at[name]))


def _text(point: Point, size: Point, distance: float, direction: float) -> tuple[Point, Bbox]:
    """The middle and the box of a name whose nearest edge is so far from the point."""
    x = point[0] + math.cos(direction) * (distance + size[0] / 2)
    y = point[1] + math.sin(direction) * (distance + size[1] / 2)
    return (x, y), Bbox.from_bounds(x - size[0] / 2, y - size[1] / 2, *size)


def _within(box: Bbox, other: Bbox) -> bool:
    return other.x0 <= box.x0 and box.x1 <= other.x1 and other.y0 <= box.y0 and box.y1 <= other.y1


def _nearest(box: Bbox, point: Point) -> Point:
    return min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)


def _meets(box: Bbox, line: Segment) -> bool:
    """Whether a line has a point in the box; looked at every point of its length."""
    (x0, y0), (x1, y1) = line
    share = np.linspace(0, 1, 2 + int(math.dist(*line)))
    x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
    return bool(((box.x0 < x) & (x < box.x1) & (box.y0 < y) & (y < box.y1)).any())


def _cross(one: Segment, other: Segment) -> bool:
    """Whether each has its ends on the two sides of the other."""

    def side(a: Point, b: Point, c: Point) -> bool:
        return (b[0] - a[0]) * (c[1] - a[1]) > (b[1] - a[1]) * (c[0] - a[0])

    return side(*one, other[0]) != side(*one, other[1]) and side(*other, one[0]) != side(*other, one[1])


def apart(heights: list[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Ascending heights, moved as little as it takes to lie `gap` apart within `low` and `high`."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + gap if found else low))
    if found[-1] > high:
        found[-1] = high
        for k in range(len(found) - 2, -1, -1):
            found[k] = min(found[k], found[k + 1] - gap)
    return found
