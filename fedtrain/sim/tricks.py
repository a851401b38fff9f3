"""What a coordinator that lies says to one site in the place of the document that is due."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedtrain.core import masks
from fedtrain.core.orders import Order
from fedtrain.sim.keys import Secrets
from fedtrain.sim.numbers import digest_of

if TYPE_CHECKING:
    from fedtrain.sim.malice import Coordinator

OTHER = digest_of(b"another")


@dataclass
class Play:
    """One session with those sites that were given the same order.

    Attributes:
        sites: honest sites that take part.
        foreign: names that are the coordinator's, and the secrets that it has made for each.
        affirmed: set of survivors -> signatures that there are.
    """

    order: Order
    proposal: masks.Proposal
    sites: list[str]
    foreign: dict[str, Secrets]
    adverts: dict[str, masks.Signed] = field(default_factory=dict)
    sharers: tuple[str, ...] = ()
    affirmed: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)

    @property
    def session(self) -> str:
        return masks.digest_of(masks.spelled(self.proposal))


@dataclass(frozen=True)
class Due:
    """Whom a trick is played on, where, and what an honest coordinator would say now."""

    me: Coordinator
    play: Play
    site: str
    honest: Any

    @property
    def how(self) -> random.Random:
        return self.me.how

    def one(self, names: Iterable[str]) -> str:
        """Any of these but the site itself; it, if there is nobody else."""
        return self.how.choice(sorted(set(names) - {self.site}) or [self.site])

    def some(self, names: Iterable[str]) -> tuple[str, ...]:
        """The site, and some of the others."""
        others = sorted(set(names) - {self.site})
        return tuple(sorted((self.site, *self.how.sample(others, self.how.randint(0, len(others))))))

    def fewer(self, names: Iterable[str]) -> tuple[str, ...]:
        """All but one of the others."""
        return _without(names, self.one(names))


def _without(names: Iterable[str], gone: str) -> tuple[str, ...]:
    return tuple(name for name in names if name != gone)


def _proposal(**changes: object) -> Callable[[Due], object]:
    return lambda due: replace(due.honest, **changes)


def _proposal_sites(due: Due) -> object:
    """Fewer sites than the order's cohort, and what fits them."""
    sites = {name: due.honest.sites[name] for name in due.some(due.honest.sites)}
    least = masks.threshold(len(sites))
    return replace(due.honest, sites=sites, threshold=least, shares=least, degree=len(sites) - 1)


def _proposal_key(due: Due, *names: str) -> object:
    """Its own key in the place of others."""
    mine = {name: due.me.notary.key_of(f"what the coordinator calls {name}") for name in names}
    return replace(due.honest, sites={**due.honest.sites, **mine})


def _proposal_twice(due: Due) -> object:
    sites = due.honest.sites
    return replace(due.honest, sites={**sites, due.one(sites): sites[due.one(sites)]})


def _keys(due: Due, names: Iterable[str]) -> object:
    return replace(due.honest, adverts={n: due.honest.adverts[n] for n in names if n in due.honest.adverts})


def _keys_of(due: Due, name: str) -> object:
    """Keys of its own under this name: well signed if the name is its own too, else forged."""
    mine = due.me.advert(due.play, name, Secrets.drawn(due.how))
    return replace(due.honest, adverts={**due.honest.adverts, name: mine})


def _keys_all(due: Due) -> object:
    """Its own keys in the place of everybody else."""
    found = due.honest
    for name in set(found.adverts) - {due.site}:
        found = _keys_of(replace(due, honest=found), name)
    return found


def _keys_old(due: Due) -> object:
    """A partner's keys of an earlier session, as it has signed them."""
    name = due.one(due.honest.adverts)
    old = [past.adverts[name] for past in due.me.past if name in past.adverts]
    return replace(due.honest, adverts={**due.honest.adverts, name: due.how.choice(old)} if old else {})


def _keys_swapped(due: Due) -> object:
    found = dict(due.honest.adverts)
    one, other = due.one(found), due.one(found)
    return replace(due.honest, adverts={**found, one: found.get(other, masks.Signed("", ""))})


def _delivery(due: Due, sharers: Iterable[str]) -> object:
    kept = tuple(sharers)
    return replace(due.honest, sharers=kept, boxes={k: v for k, v in due.honest.boxes.items() if k in kept})


def _delivery_swapped(due: Due) -> object:
    boxes = dict(due.honest.boxes)
    if len(boxes) < 2:
        return replace(due.honest, boxes={})
    one, other = due.how.sample(sorted(boxes), 2)
    return replace(due.honest, boxes={**boxes, one: boxes[other]})


def _survivors(names: Callable[[Due], Iterable[str]]) -> Callable[[Due], object]:
    return lambda due: replace(due.honest, survivors=tuple(names(due)))


def _unmask_few(due: Due) -> object:
    """Fewer signatures than the threshold."""
    given = sorted(due.honest.signatures)
    kept = due.how.sample(given, min(len(given), due.play.proposal.threshold - 1))
    return replace(due.honest, signatures={name: due.honest.signatures[name] for name in kept})


def _unmask_forged(due: Due) -> object:
    """Signatures of all, most of them forged."""
    forged = {name: due.me.sign(due.play, name, "affirmation", "") for name in due.honest.survivors}
    return replace(due.honest, signatures={**forged, due.site: due.honest.signatures.get(due.site, "")})


def _unmask_old(due: Due) -> object:
    """True signatures, over other sets or of other sessions."""
    given = [signed for past in (*due.me.past, due.play) for signed in past.affirmed.values()]
    found = {name: signature for signed in given for name, signature in signed.items()}
    return replace(due.honest, signatures={k: v for k, v in found.items() if k in due.honest.survivors})


def _unmask_other(due: Due) -> object:
    """Shares for one site fewer, which is called lost, with the signatures that there are."""
    survivors = due.fewer(due.honest.survivors)
    signed = {k: v for k, v in due.honest.signatures.items() if k in survivors}
    return replace(due.honest, survivors=survivors, signatures=signed)


def _unmask_stranger(due: Due) -> object:
    return replace(due.honest, signatures={**due.honest.signatures, "zebra": "00" * 32})


def _of_another(due: Due) -> object:
    return replace(due.honest, session=OTHER)


def _nonsense(due: Due) -> object:
    return due.how.choice(("{}", "", masks.spelled(due.honest)[:-3], '{"session":1}'))


TRICKS: dict[str, dict[str, Callable[[Due], object]]] = {
    "proposal": {
        "another model": _proposal(model=OTHER),
        "another plan": _proposal(plan=OTHER),
        "another codec": _proposal(codec="fixed24s8"),
        "a lower threshold": _proposal(threshold=1),
        "fewer shares": _proposal(shares=1),
        "fewer neighbours": _proposal(degree=0),
        "a smaller ring": _proposal(ring_bits=8),
        "another attempt": _proposal(attempt=77),
        "another epoch": _proposal(epoch=9),
        "a smaller cohort": _proposal_sites,
        "its key in this site's place": lambda due: _proposal_key(due, due.site),
        "its key in another's place": lambda due: _proposal_key(due, due.one(due.honest.sites)),
        "its key in every other place": lambda due: _proposal_key(due, *_without(due.honest.sites, due.site)),
        "one key in two places": _proposal_twice,
        "nonsense for a proposal": _nonsense,
    },
    "keys": {
        "its keys in another's place": lambda due: _keys_of(due, due.one(due.honest.adverts)),
        "its keys in every other place": _keys_all,
        "its keys in this site's place": lambda due: _keys_of(due, due.site),
        "keys of an old session": _keys_old,
        "one site's keys for two": _keys_swapped,
        "keys without this site": lambda due: _keys(due, _without(due.honest.adverts, due.site)),
        "keys of few": lambda due: _keys(due, due.some(due.honest.adverts)),
        "keys of one site fewer": lambda due: _keys(due, due.fewer(due.honest.adverts)),
        "keys of another session": _of_another,
        "nonsense for keys": _nonsense,
    },
    "delivery": {
        "sharers without this site": lambda due: _delivery(due, _without(due.honest.sharers, due.site)),
        "few sharers": lambda due: _delivery(due, due.some(due.honest.sharers)),
        "one sharer fewer": lambda due: _delivery(due, due.fewer(due.honest.sharers)),
        "an unknown sharer": lambda due: _delivery(due, (*due.honest.sharers, "zebra")),
        "a sharer twice": lambda due: _delivery(due, (*due.honest.sharers, due.one(due.honest.sharers))),
        "a box left out": lambda due: replace(due.honest, boxes=dict(list(due.honest.boxes.items())[1:])),
        "boxes in each other's place": _delivery_swapped,
        "nonsense for a delivery": _nonsense,
    },
    "survivors": {
        "survivors without this site": _survivors(lambda due: _without(due.honest.survivors, due.site)),
        "few survivors": _survivors(lambda due: due.some(due.honest.survivors)),
        "one survivor fewer": _survivors(lambda due: due.fewer(due.honest.survivors)),
        "an unknown survivor": _survivors(lambda due: (*due.honest.survivors, "zebra")),
        "a survivor twice": _survivors(lambda due: (*due.honest.survivors, due.one(due.honest.survivors))),
        "survivors of another session": _of_another,
        "nonsense for survivors": _nonsense,
    },
    "unmask": {
        "few signatures": _unmask_few,
        "forged signatures": _unmask_forged,
        "signatures of another set": _unmask_old,
        "shares of another set": _unmask_other,
        "a stranger's signature": _unmask_stranger,
        "shares of another session": _of_another,
        "nonsense for signatures": _nonsense,
    },
}
"""Topic -> name of the trick -> what is said."""
