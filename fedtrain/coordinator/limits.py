"""How often certificates are asked for: each costs a signature and a durable row.

Whoever asks too often is told when to come again.
"""

from __future__ import annotations

from collections.abc import Callable

from fedtrain.core.allowance import Allowance, Stock, spend
from fedtrain.errors import BusyError

PER_INVITE = Stock(64, 2_000)
"""A newcomer repeats a lost reply a few times."""

PER_ADDRESS = Stock(256, 200)
"""A hospital behind one address brings all of its machines; a flood stops at five a second."""

IN_TOTAL = Stock(1_024, 50)
"""A consortium that begins; beyond it twenty a second, which is a tenth of a core."""

PER_MEMBER = Stock(16, 5_000)
"""Renewals of one member: certificates that live for ten seconds renew every five."""

REMEMBERED_MAX = 4_096
"""Names, addresses and invites with a stock that is not whole; the oldest are forgotten beyond it."""


class EnrolmentLimits:
    """Counts what was asked, per invite, per address, per member and in total.

    Args:
        now_ms: the monotonic clock.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._spent: dict[tuple[str, str], Allowance] = {}

    def enrol(self, invite: str, address: str) -> None:
        """Raises `BusyError` if the invite, its bearer's address or everybody together asks too often."""
        host = address.rpartition(":")[0]
        self._spend(("total", ""), IN_TOTAL, "many newcomers join at once")
        self._spend(("address", host), PER_ADDRESS, "many newcomers join from your address")
        self._spend(("invite", invite), PER_INVITE, "this invite is shown again and again")

    def renew(self, name: str) -> None:
        """Raises `BusyError` if the member renews too often."""
        self._spend(("member", name), PER_MEMBER, f"{name} renews its certificate again and again")

    def _spend(self, key: tuple[str, str], stock: Stock, what: str) -> None:
        now_ms = self._now_ms()
        allowance, given = spend(self._spent.pop(key, Allowance()), stock, now_ms)
        self._spent[key] = allowance
        if len(self._spent) > REMEMBERED_MAX:
            del self._spent[next(iter(self._spent))]
        if not given:
            wait_ms = max(1, allowance.full_ms - now_ms - (stock.rows_max - 1) * stock.row_every_ms)
            raise BusyError(f"{what}: come back in {wait_ms / 1000:.1f} s", wait_ms)
