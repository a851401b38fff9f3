"""What a coordinator can compute of a masked session from all that was given to it, whoever asked for it.

A masked vector is x_i + own stream of i + streams that i shares with others, up or down by name. An own
stream is known once enough shares of its seed were given; a shared one once enough shares of either's mask
key were, or if either key is the coordinator's own. What is not known has to cancel. So vectors that share
an unknown stream can only be had summed: the smallest sums that can be had at all are the connected parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Given:
    """Of one session.

    Attributes:
        shares: fewest shares that give a secret back.
        partners: site whose masked vector was sent -> those with whom it has masked it.
        seeds, keys: site -> holders that have given their share of it.
        foreign: sites that are the coordinator's own in truth.
    """

    shares: int
    partners: Mapping[str, Collection[str]]
    seeds: Mapping[str, Collection[str]]
    keys: Mapping[str, Collection[str]]
    foreign: Collection[str] = ()


def exposed(given: Given) -> list[frozenset[str]]:
    """The smallest sets of sites whose sum can be had; disjoint."""
    parts = _parts(given)
    return [part for part in parts if all(_seed_known(given, site) and _closed(given, site) for site in part)]


def _parts(given: Given) -> Iterable[frozenset[str]]:
    left = set(given.partners)
    while left:
        part, edge = set(), {min(left)}
        while edge:
            site = edge.pop()
            part.add(site)
            edge |= {other for other in left - part if _hidden(given, site, other)}
        left -= part
        yield frozenset(part)


def _hidden(given: Given, one: str, other: str) -> bool:
    """Whether these two vectors share a stream that is not known, with opposite signs."""
    mutual = other in given.partners[one] and one in given.partners[other]
    return mutual and not _pair_known(given, one, other)


def _closed(given: Given, site: str) -> bool:
    """Whether no unknown stream in this vector lacks its counterpart for good."""
    return all(
        _pair_known(given, site, other) or (other in given.partners and site in given.partners[other])
        for other in given.partners[site]
    )


def _pair_known(given: Given, one: str, other: str) -> bool:
    return _key_known(given, one) or _key_known(given, other)


def _key_known(given: Given, site: str) -> bool:
    return site in given.foreign or len(set(given.keys.get(site, ()))) >= given.shares


def _seed_known(given: Given, site: str) -> bool:
    return site in given.foreign or len(set(given.seeds.get(site, ()))) >= given.shares
