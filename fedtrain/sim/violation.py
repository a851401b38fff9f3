"""What the auditor says when the account and the deeds differ."""

from __future__ import annotations

from fedtrain.errors import LocalError


class Violation(LocalError):
    """An invariant of the project's list of faults does not hold; the text begins with its number."""


def demand(holds: bool, invariant: str, found: str) -> None:
    """Raise `Violation` unless it holds."""
    if not holds:
        raise Violation(f"{invariant}: {found}")
