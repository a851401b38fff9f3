"""A picture of what a site's data sets have spent, charge by charge, against their budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedtrain.cli.output import printable
from fedtrain.errors import ConfigError
from fedtrain.storage.filesystem import disk_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedtrain.storage.ledger import LedgerRow

POINTS_MAX = 200
"""Points of a line: each is reckoned from all charges before it."""

SUFFIXES = (".png", ".svg")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito, Color Universal Design, 2008: told apart with any kind of sight."""

NAME_CHARACTERS_MAX = 24
RUN_WIDTH = 0.22
"""Share of the picture's width that a run's name takes."""


class Curve(NamedTuple):
    """One data set's spending.

    Attributes:
        counts: charges so far, ascending.
        epsilons: spent after them, by Renyi curves.
        tight: spent in the end by loss distributions, None where they did not tell.
        runs: (first charge, name) of each run.
        closed: charge at which the budget was closed by its owner, None if it is open.
    """

    name: str
    unit: str
    delta: float
    epsilon_max: float | None
    counts: tuple[int, ...]
    epsilons: tuple[float, ...]
    runs: tuple[tuple[int, str], ...]
    closed: int | None
    tight: float | None


def check(target: Path) -> None:
    """Raise `ConfigError` before any work if nothing can be drawn."""
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{target.name} ends in neither of {', '.join(SUFFIXES)}", key="--plot")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "needs matplotlib, which is not installed: pip install 'fedtrain[plot]'", key="--plot"
        ) from error


def curve(name: str, rows: Sequence[LedgerRow], told: Mapping[str, Any]) -> Curve | None:
    """What to draw of a data set; None if it was never charged. `told` is what `ledger show` says of it."""
    from fedtrain.cli.ledger import served
    from fedtrain.methods.accounting import epsilon_rdp

    if not rows:
        return None
    closed = next((count for count, row in enumerate(rows, 1) if row.reason), None)
    open_rows = len(rows) if closed is None else closed - 1
    counts = sorted({round(open_rows * point / POINTS_MAX) for point in range(POINTS_MAX + 1)})
    charges = [row.charge for row in rows]
    runs: dict[str, int] = {}
    for count, charge in enumerate(charges[:open_rows]):
        runs.setdefault(charge.run, count)
    return Curve(
        name=name,
        unit=told["unit"],
        delta=told["delta"],
        epsilon_max=told["epsilon_max"],
        counts=tuple(counts),
        epsilons=tuple(
            epsilon_rdp(served(told["unit"], charges[:count])[0], told["delta"]) for count in counts
        ),
        runs=tuple((count, run) for run, count in runs.items()),
        closed=closed,
        tight=told["spent_pld"] if told["pld_by"] == "pld" else None,
    )


def draw(curves: Sequence[Curve], target: Path) -> None:
    """Write the picture: a panel for each data set, since charges of one are not those of another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = max(1, len(curves))
    figure = Figure(figsize=(8.0, 1.0 + 3.0 * panels), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    figure.suptitle("Privacy spent, as charged before each execution of an order", fontsize=12)
    if not curves:
        axes[0].text(0.5, 0.5, "nothing was charged yet", ha="center", va="center")
        axes[0].set_axis_off()
    for index, one in enumerate(curves):
        _panel(axes[index], one, COLOURS[index % len(COLOURS)])
    with disk_errors(f"write {target}"):
        # Without a date, so that equal ledgers make equal files.
        figure.savefig(target, dpi=150, metadata={"Date": None} if target.suffix.lower() == ".svg" else None)


def _panel(axes: Axes, one: Curve, colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    finite = [epsilon for epsilon in one.epsilons if math.isfinite(epsilon)]
    most = max([*finite, one.epsilon_max or 0.0, 1e-9])
    last = max(1, one.counts[-1], one.closed or 0)
    axes.set_xlim(0, last * 1.15)
    axes.set_ylim(0, most * 1.25)
    axes.plot(one.counts[: len(finite)], finite, color=colour, linewidth=1.8, drawstyle="steps-post")
    _mark(axes, one.counts[len(finite) - 1], finite[-1], "RDP", colour, colour)
    if one.tight is not None:
        _mark(axes, one.counts[-1], one.tight, "PLD", colour, "white")
    if one.epsilon_max is not None:
        axes.axhline(one.epsilon_max, color="#555555", linestyle="--", linewidth=1.2)
        told = f"epsilon_max = {one.epsilon_max:g}"
        place = (0.007, one.epsilon_max)
        axes.annotate(
            told, place, xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            fontsize=9, color="#555555",
        )  # fmt: skip
    if one.closed is not None:
        axes.axvline(one.closed, color="#b00020", linewidth=1.4)
        axes.annotate(
            "closed by its owner", (one.closed, 0.5), xycoords=("data", "axes fraction"), xytext=(-4, 0),
            textcoords="offset points", rotation=90, ha="right", va="center", fontsize=9, color="#b00020",
        )  # fmt: skip
    _runs(axes, one.runs, last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(_short(one.name), loc="left", fontsize=11)
    axes.set_xlabel("charges")
    delta = f"{one.delta:g}".replace("e-0", "e-")
    axes.set_ylabel(f"epsilon per {one.unit}\nat delta {delta}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee", zorder=0)


def _mark(axes: Axes, count: int, epsilon: float, by: str, colour: str, fill: str) -> None:
    """Where a line has come to, by this accountant; the tighter one's number stands below the other's."""
    axes.plot(count, epsilon, "o", markersize=5, color=colour, markerfacecolor=fill, zorder=3)
    axes.annotate(
        f"{epsilon:.3g} ({by})", (count, epsilon), xytext=(7, 1 if by == "RDP" else -1),
        textcoords="offset points", va="bottom" if by == "RDP" else "top", color=colour, fontsize=9,
    )  # fmt: skip


def _runs(axes: Axes, runs: Sequence[tuple[int, str]], last: int) -> None:
    """Where each run's charges begin; a name that would stand in the one before is left out."""
    named = -math.inf
    for count, run in runs:
        axes.axvline(count, color="#bbbbbb", linestyle=":", linewidth=1.0, zorder=0)
        if count - named < RUN_WIDTH * last:
            continue
        named = count
        axes.annotate(
            _short(run), (count, 0.97), xycoords=("data", "axes fraction"), xytext=(4, 0),
            textcoords="offset points", fontsize=8, color="#777777", va="top",
        )  # fmt: skip


def _short(name: str) -> str:
    """A name from a file, harmless in a picture: no formula, no control characters, not too long."""
    text = printable(name).replace("$", r"\$")
    return text if len(text) <= NAME_CHARACTERS_MAX else f"{text[: NAME_CHARACTERS_MAX - 1]}…"
