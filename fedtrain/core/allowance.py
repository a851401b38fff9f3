"""How much a member may have written down without having been asked for anything.

Refusals and attaches belong into the journal, but the journal must not grow as fast as somebody can
misbehave. So each member has a stock of rows that fills up again slowly; what goes beyond is counted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stock:
    """How many rows at once, and how long one more takes."""

    rows_max: int
    row_every_ms: int


REFUSALS = Stock(32, 10_000)
"""A site that is merely confused is refused a handful of times; a hostile one fills 5 MB a day."""

ATTACHES = Stock(64, 2_000)
"""An agent on a bad link comes back every few seconds; a hostile one fills 15 MB a day."""


@dataclass(frozen=True)
class Allowance:
    """One member's stock, by virtual scheduling: rows are free until `full_ms` is too far ahead of now.

    Attributes:
        full_ms: when the stock is whole again, monotonic.
        skipped: times that there was none left, since there was one.
    """

    full_ms: int = 0
    skipped: int = 0


def spend(allowance: Allowance, stock: Stock, now_ms: int) -> tuple[Allowance, bool]:
    """One row is wanted: the allowance behind it, and whether there is one. A row clears `skipped`."""
    full_ms = max(allowance.full_ms, now_ms)
    if full_ms - now_ms > (stock.rows_max - 1) * stock.row_every_ms:
        return Allowance(full_ms, allowance.skipped + 1), False
    return Allowance(full_ms + stock.row_every_ms), True
