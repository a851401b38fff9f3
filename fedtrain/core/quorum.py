"""Arithmetic of quorums, by count and by share of the data. Nothing else lives here."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def share(present: Collection[str], invited: Collection[str], weights: Mapping[str, int]) -> float:
    """The share of the invited sites' data that `present` holds, in [0, 1].

    A site whose weight is not known yet is taken to be as large as the mean of the known ones;
    while none is known, the share is by count.
    """
    known = [weights[site] for site in invited if site in weights]
    typical = sum(known) / len(known) if known else 1.0
    total = sum(float(weights.get(site, typical)) for site in invited)
    held = sum(float(weights.get(site, typical)) for site in present)
    return held / total if total > 0 else 0.0


def shortfall(
    present: Collection[str],
    invited: Collection[str],
    weights: Mapping[str, int],
    quorum: int,
    quorum_share: float,
) -> str:
    """What is missing for a quorum, in words; "" if it is met."""
    if len(present) < quorum:
        return f"{len(present)} of {len(invited)} contributed, quorum is {quorum}"
    held = share(present, invited, weights)
    if held + 1e-9 < quorum_share:
        return f"contributors hold {held:.0%} of the invited data, quorum_share is {quorum_share:.0%}"
    return ""
