"""What privacy costs at the sites, as the coordinator keeps it, and the clip that follows the sites' norms.

Each site signs an account of every run (`charges.Account`); the newest of each is kept, and handed back to
its site when it attaches. Nothing is added up here: every site has records of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from fedtrain.core import canonical, events as ev
from fedtrain.core.charges import CHARGE, LEDGER, Account
from fedtrain.core.effects import Speak
from fedtrain.core.masks import Signed
from fedtrain.core.orders import parse_order_id
from fedtrain.core.privacy import CLIP_MAX, CLIP_MIN, SiteTerms
from fedtrain.core.state import RunState, State, put
from fedtrain.core.terms import read_asked
from fedtrain.errors import RemoteError

_DEVIATIONS = 6.0
"""A bit with its noise is at most so many deviations beyond 0 or 1. What is further out is no honest bit."""


def is_account(event: ev.Event) -> bool:
    """Whether a statement is one of these; the others belong to masked rounds."""
    return isinstance(event, ev.StatementHeard) and event.topic == CHARGE


def heard(state: State, event: ev.StatementHeard) -> State:
    """Keep a site's account, unless it is older than the one that is kept, or not one of this run's."""
    try:
        account = canonical.decode(Account, event.document)
        run_name, _, _, site = parse_order_id(event.order)
    except RemoteError:
        return state
    run = state.runs.get(run_name)
    if run is None or site != event.site or (account.run, account.order) != (run_name, event.order):
        return state
    before = run.charges.get(site)
    if before is not None and read(before).sequence > account.sequence:
        return state
    signed = Signed(event.document, event.signature)
    return replace(
        state, runs=put(state.runs, run_name, replace(run, charges=put(run.charges, site, signed)))
    )


def read(signed: Signed) -> Account:
    """A kept account; it was read when it came."""
    return canonical.decode(Account, signed.document)


def hand_back(state: State, site: str) -> tuple[Speak, ...]:
    """The site's newest account of all runs, so that it can hold its ledger against it."""
    kept = [run.charges[site] for run in state.runs.values() if site in run.charges]
    if not kept:
        return ()
    newest = max(kept, key=lambda signed: read(signed).sequence)
    return (Speak(site, read(newest).order, LEDGER, canonical.encode(newest).decode()),)


def task_of(run: RunState) -> str:
    """The task section of the next orders: the run's own, with the clip as it is now."""
    if not run.clip:
        return run.spec.task
    plain = json.loads(run.spec.task)
    plain["terms"]["privacy"]["site"]["clip"] = run.clip
    return canonical.encode(plain).decode()


def published(run: RunState, counted: Iterable[str]) -> RunState:
    """The run behind a version that counts these orders: with its accounts, and with the next clip."""
    run = replace(run, published_charges=run.charges)
    site = read_asked(run.spec.task).site
    if site is None or site.adaptive is None:
        return run
    return replace(run, clip=next_clip(run.clip or site.clip, site, _bits(run.charges, counted)))


def next_clip(clip: float, terms: SiteTerms, bits: tuple[float, ...]) -> float:
    """One geometric step towards the quantile (Andrew et al., 2021, arXiv:1905.03871, section 2.1).

    `bits`: for each site 1 if its norm was within `clip` and 0 if not, plus noise. None: no step.
    """
    adaptive = terms.adaptive
    if adaptive is None or not bits:
        return clip
    reach = _DEVIATIONS * adaptive.noise
    share = sum(min(1 + reach, max(-reach, bit)) for bit in bits) / len(bits)
    moved = clip * math.exp(-adaptive.rate * (share - adaptive.quantile))
    return min(CLIP_MAX, max(CLIP_MIN, moved))


def _bits(charges: Mapping[str, Signed], counted: Iterable[str]) -> tuple[float, ...]:
    orders = set(counted)
    accounts = (read(charges[site]) for site in sorted(charges))
    return tuple(
        account.within for account in accounts if account.order in orders and account.within is not None
    )
