"""Charts as inline SVG, drawn on the server: geometry in attributes, colours in the style sheet by class, no script.

Every chart is drawn into a box of 400 by 190 units that the page scales. Text is escaped; the table behind each chart is
the template's.
"""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 12, 26
MOST_POINTS = 400
LARGEST_MATRIX = 30


def element(tag: str, *children: str | Markup, **attributes: Any) -> Markup:
    """One SVG element, attributes and text escaped; `stroke_width` becomes `stroke-width`, `class_` becomes `class`."""
    pairs = (
        (name.rstrip("_").replace("_", "-"), f"{v:.2f}".rstrip("0").rstrip(".") if isinstance(v, float) else v)
        for name, v in attributes.items()
    )
    head = Markup("").join(Markup(' {}="{}"').format(name, value) for name, value in pairs)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), head, Markup("").join(escape(c) for c in children))  # noqa: S704 - tags are literals of this module


def _drawing(title: str, *children: Markup) -> Markup:
    return element("svg", element("title", title), *children, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between `low` and `high`, roughly `about` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Axes:
    """Maps data to the box, and draws the frame: grid lines and labels."""

    def __init__(self, x_high: float, y_high: float, x_low: float = 0) -> None:
        self.x_low, self.x_high, self.y_high = x_low, max(x_high, x_low + 1e-9), max(y_high, 1e-9)

    def x(self, value: float) -> float:
        """Horizontal position of a value."""
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Vertical position of a value; what is higher than the axis is drawn at its top."""
        return HEIGHT - BOTTOM - min(value / self.y_high, 1) * (HEIGHT - TOP - BOTTOM)

    def left(self, scale: float = 1, unit: str = "") -> list[Markup]:
        """Horizontal grid lines with their values."""
        out = []
        for t in ticks(0, self.y_high):
            out += [element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=self.y(t), y2=self.y(t), class_="grid")]
            out += [element("text", f"{t * scale:g}{unit}", x=LEFT - 6, y=self.y(t) + 3.5, class_="tick end")]
        return out

    def below(self, values: Sequence[float], texts: Sequence[str]) -> list[Markup]:
        """Labels under the box."""
        return [element("text", text, x=self.x(v), y=HEIGHT - 9, class_="tick middle") for v, text in zip(values, texts, strict=True)]

    def line(self, points: Sequence[tuple[float, float]], class_: str) -> Markup:
        """A line through the points."""
        return element("polyline", points=" ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points), class_=class_)


def loss_by_batch(points: Sequence[Sequence[float]], epochs: int, batches: int) -> Markup:
    """Training loss, [batch, loss] each, as fastai's recorder smooths it; a mark where each epoch ends."""
    clean = _thin([(float(b), float(v)) for b, v in points if math.isfinite(v)])
    if len(clean) < 2:
        return Markup("")
    total = max(batches, int(clean[-1][0]))
    axes = Axes(total, max(v for _, v in clean) * 1.08)
    marks = [total * i / epochs for i in range(1, epochs + 1)] if epochs else []
    every = max(1, math.ceil(len(marks) / 10))
    shown = [(m, str(i)) for i, m in enumerate(marks, 1) if i % every == 0]
    return _drawing(
        f"Training loss by batch, {clean[-1][1]:.3f} at the end",
        *axes.left(),
        *(element("line", x1=axes.x(m), x2=axes.x(m), y1=TOP, y2=HEIGHT - BOTTOM, class_="mark") for m in marks),
        *axes.below(
            [m - total / epochs * every / 2 for m, _ in shown] if every == 1 else [m for m, _ in shown],
            [f"epoch {t}" if len(shown) < 6 else t for _, t in shown],
        ),
        axes.line(clean, "line"),
    )


def loss_by_rate(curve: Sequence[Sequence[float]], chosen: float) -> Markup:
    """What trying learning rates has found: the smoothed loss by rate, [rate, loss] each, on a log scale; a mark at the one chosen."""
    if len(curve) < 2:
        return Markup("")
    points = [(math.log10(rate), loss) for rate, loss in curve]
    axes = Axes(points[-1][0], 2 * points[0][1], x_low=points[0][0])
    powers = range(math.ceil(points[0][0]), math.floor(points[-1][0]) + 1)
    at = axes.x(math.log10(chosen))
    return _drawing(
        f"Loss by learning rate; {chosen:.1e} was chosen",
        *axes.left(),
        *axes.below(list(powers), [f"1e{n}" for n in powers]),
        axes.line(points, "line"),
        element("line", x1=at, x2=at, y1=TOP - 6, y2=HEIGHT - BOTTOM, class_="limit"),
        element("text", f"{chosen:.1e}", x=at + 5, y=TOP, class_="tick"),
    )


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS, each the mean of its neighbours."""
    size = math.ceil(len(points) / MOST_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(v for _, v in g) / len(g)) for g in groups]


def error_by_epoch(rows: Sequence[dict[str, Any]]) -> Markup:
    """Error rate on the validation images after each epoch; hollow dots are epochs that trained the head alone."""
    if not rows:
        return Markup("")
    points = [(float(i), float(r["error_rate"])) for i, r in enumerate(rows, 1)]
    axes = Axes(len(points) + 0.5, max(max(v for _, v in points) * 1.15, 0.01), x_low=0.5)
    every = math.ceil(len(points) / 12)
    dots = []
    for (x, v), row in zip(points, rows, strict=True):
        tip = element("title", f"epoch {int(x)}: {_percent(v)}")
        dots.append(element("circle", tip, cx=axes.x(x), cy=axes.y(v), r=3.5, class_="dot hollow" if row.get("frozen") else "dot"))
    shown = [x for x, _ in points if (int(x) - 1) % every == 0]
    return _drawing(
        f"Error rate by epoch, {_percent(points[-1][1])} at the end",
        *axes.left(100, " %"),
        *axes.below(shown, [f"{x:.0f}" for x in shown]),
        axes.line(points, "line"),
        *dots,
        element("text", f"{_percent(points[-1][1])}", x=axes.x(points[-1][0]), y=axes.y(points[-1][1]) - 9, class_="value middle"),
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f}\N{NO-BREAK SPACE}%"


def confidence(bins: Sequence[int], review_below: float, links: Sequence[str]) -> Markup:
    """How sure the model was: images by probability of their label, in equal bins of [0, 1]; those to review in another colour.

    Each column is a link, the whole height of the chart; the table behind it has the same links for the keyboard.
    """
    if not sum(bins):
        return Markup("")
    axes = Axes(1, max(bins) * 1.05)
    width = 1 / len(bins)
    columns = []
    for i, (count, link) in enumerate(zip(bins, links, strict=True)):
        if not count:
            continue
        low, high = i * width, (i + 1) * width
        place = {"x": axes.x(low) + 1, "width": axes.x(high) - axes.x(low) - 2}
        kind = "column review" if high <= review_below + 1e-9 else "column"
        columns.append(
            element(
                "a",
                element("title", f"{low:.0%} to {high:.0%}: {count:,}"),
                element("rect", y=TOP, height=HEIGHT - BOTTOM - TOP, class_="hit", **place),
                element("rect", y=axes.y(count), height=HEIGHT - BOTTOM - axes.y(count), class_=kind, **place),
                href=link,
                tabindex=-1,
            )
        )
    at = axes.x(review_below)
    return _drawing(
        "Images by the probability of their label",
        *axes.left(),
        *columns,
        element("line", x1=at, x2=at, y1=TOP - 6, y2=HEIGHT - BOTTOM, class_="limit"),
        element("text", "review", x=at - 5, y=TOP, class_="tick end"),
        *axes.below([0, 0.25, 0.5, 0.75, 0.985], ["0", "25 %", "50 %", "75 %", "100 %"]),
    )


def reliability(bins: Sequence[dict[str, Any]]) -> Markup:
    """The share of right labels by what the model said, with the diagonal where the two are equal; each bar is a bin of probabilities."""
    if not bins:
        return Markup("")
    axes = Axes(1, 1)
    bars = []
    for b in bins:
        tip = element("title", f"{b['low']:.0%} to {b['high']:.0%}: {_percent(b['right'])} of {b['images']:,} right")
        left, right = axes.x(b["low"]) + 1, axes.x(b["high"]) - 1
        bars.append(
            element("rect", tip, x=left, width=right - left, y=axes.y(b["right"]), height=axes.y(0) - axes.y(b["right"]), class_="column")
        )
    return _drawing(
        "Share of right labels by probability",
        *axes.left(100, " %"),
        *bars,
        element("line", x1=axes.x(0), y1=axes.y(0), x2=axes.x(1), y2=axes.y(1), class_="limit"),
        *axes.below([0, 0.25, 0.5, 0.75, 0.985], ["0", "25 %", "50 %", "75 %", "100 %"]),
    )


def bar(share: float, tone: str = "") -> Markup:
    """A thin horizontal bar, `share` of its width filled."""
    share = min(max(share, 0.0), 1.0)
    rect = element("rect", width=f"{share * 100:.1f}%", height="100%", class_="fill")
    return element("svg", rect, class_=f"bar {tone}".strip(), width="100%", height=4, aria_hidden="true")


def bar_rows(counts: dict[str, int], most: int = 40) -> list[dict[str, Any]]:
    """Rows {label, count, share of all, bar} of a histogram, the largest first, at most `most`."""
    total, top = sum(counts.values()) or 1, max(counts.values(), default=0) or 1
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [{"label": label, "count": n, "share": n / total, "bar": bar(n / top)} for label, n in rows]


def heat_map(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The confusion matrix as rows of cells {count, heat 0-9, actual, predicted}; beyond 30 classes those most often mistaken.

    Heat is the share of the actual class's images, on a root scale: a single mistake among hundreds is still seen.
    """
    order = range(len(classes))
    if len(classes) > LARGEST_MATRIX:
        wrong = [sum(confusion[i]) - confusion[i][i] + sum(row[i] for row in confusion) - confusion[i][i] for i in order]
        order = sorted(sorted(order, key=lambda i: -wrong[i])[:LARGEST_MATRIX])  # type: ignore[assignment]
    rows = []
    for i in order:
        support = sum(confusion[i]) or 1
        cells = [
            {
                "count": confusion[i][j],
                "heat": math.ceil(math.sqrt(confusion[i][j] / support) * 9),
                "predicted": classes[j],
                "right": i == j,
            }
            for j in order
        ]
        rows.append({"actual": classes[i], "cells": cells})
    return {"rows": rows, "classes": [classes[j] for j in order], "left_out": len(classes) - len(rows)}
