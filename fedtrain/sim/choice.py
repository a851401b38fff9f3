"""Which part of a seed's world happens: all of it, or what a person or the minimiser has left of it.

Faults are chosen by key (see `chance`), as text `<kind>/<whom>/<ordinals>; ...` with ordinals like
`3,7-9`. What the plan draws beside faults has keys of the same form (`planned`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from fedtrain.errors import ConfigError
from fedtrain.sim.acts import NOTHING, SiteActs
from fedtrain.sim.clock import START_MS
from fedtrain.sim.plan import Plan, RunPlan, SitePlan

_GROUP = re.compile(r"\s*(?P<name>[^;]*[^;\s/])/(?P<ordinals>\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\s*")
ACTS = {
    "revoked": "operator revokes",
    "quarantined": "operator quarantines",
    "withdrawn": "withdraws",
    "approves_ms": "approves by hand",
    "holds": "holds updates",
    "opens_ms": "keeps hours",
}
"""Field of `acts.SiteActs` -> the word for it in a key."""

RANGE_MAX = 100_000
"""Faults in one range of a text; a world draws some thousand times."""


@dataclass(frozen=True)
class Choice:
    """What is kept of a world; None keeps everything of its kind.

    Attributes:
        only: keys of the faults that may strike.
        without: keys of faults that may not.
        sites, runs: names of those that take part.
        rounds: most rounds of a run.
    """

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    sites: tuple[str, ...] | None = None
    runs: tuple[str, ...] | None = None
    rounds: int | None = None

    def allows(self, key: str) -> bool:
        """Whether the fault of this key may strike."""
        return key not in self.without and (self.only is None or key in self.only)

    def command(self, seed: int) -> str:
        """What to type to see this part of this seed's world again."""
        options = [] if self.only is None else ["--only", spell(self.only)]
        options += ["--without", spell(self.without)] if self.without else []
        options += [] if self.sites is None else ["--sites", ",".join(self.sites)]
        options += [] if self.runs is None else ["--runs", ",".join(self.runs)]
        options += [] if self.rounds is None else ["--rounds", str(self.rounds)]
        return shlex.join(["python", "-m", "fedtrain.sim", "--seed", str(seed), *options, "--transcript"])


EVERYTHING = Choice()


# -- plans ------------------------------------------------------------------------------------------


def planned(plan: Plan) -> list[str]:
    """Keys of what the plan itself makes hard: late joins, refusals, slow links, operators, a standby."""
    keys = [f"clock is off/{name}/1" for name in plan.clock_offsets_ms]
    keys += [] if plan.succession is None else ["standby takes over/coordinator/1"]
    for site in plan.sites:
        keys += [f"slow link/{site.name}/1"] if site.link_bytes_per_s else []
        keys += [f"joins late/{site.name}/1"] if site.joins_ms > START_MS else []
        keys += [f"refuses/{site.name}/1"] if site.contract != site.later_contract else []
    for run in plan.runs:
        keys += [] if run.paused_ms is None else [f"operator pauses/{run.spec.run}/1"]
        keys += [] if run.stopped_ms is None else [f"operator stops/{run.spec.run}/1"]
    keys += [f"operator takes back/{run}/1" for run in plan.ways_back]
    for name, acts in plan.acts.items():
        keys += [f"{word}/{name}/1" for field, word in ACTS.items() if getattr(acts, field)]
    return keys


def reduced(plan: Plan, choice: Choice) -> Plan:
    """The plan without what was not chosen; `ConfigError` if that leaves no site or no run."""
    sites = tuple(
        _site(site, choice) for site in plan.sites if choice.sites is None or site.name in choice.sites
    )
    names = {site.name for site in sites}
    runs = tuple(
        _run(run, choice, names) for run in plan.runs if choice.runs is None or run.spec.run in choice.runs
    )
    if not sites or not runs:
        here = ", ".join([*(site.name for site in plan.sites), *(run.spec.run for run in plan.runs)])
        raise ConfigError(f"seed {plan.seed}: nothing is left of its world, which has {here}")
    offsets = {
        name: offset_ms
        for name, offset_ms in plan.clock_offsets_ms.items()
        if choice.allows(f"clock is off/{name}/1")
    }
    succession = plan.succession if choice.allows("standby takes over/coordinator/1") else None
    ways_back = {
        run.spec.run: plan.ways_back[run.spec.run]
        for run in runs
        if run.spec.run in plan.ways_back and choice.allows(f"operator takes back/{run.spec.run}/1")
    }
    return replace(
        plan,
        sites=sites,
        runs=runs,
        clock_offsets_ms=offsets,
        succession=succession,
        acts={name: _acts(name, acts, choice) for name, acts in plan.acts.items() if name in names},
        ways_back=ways_back,
    )


def _acts(site: str, acts: SiteActs, choice: Choice) -> SiteActs:
    """Without what was not chosen."""
    off: dict[str, Any] = {
        field: getattr(NOTHING, field)
        for field, word in ACTS.items()
        if not choice.allows(f"{word}/{site}/1")
    }
    return replace(acts, **off)


def _site(site: SitePlan, choice: Choice) -> SitePlan:
    """A site that joins at once, keeps one contract and has a fast link, where nothing else is chosen."""
    joins_ms = site.joins_ms if choice.allows(f"joins late/{site.name}/1") else START_MS
    contract = site.contract if choice.allows(f"refuses/{site.name}/1") else site.later_contract
    rate = site.link_bytes_per_s if choice.allows(f"slow link/{site.name}/1") else 0
    return replace(site, joins_ms=joins_ms, contract=contract, link_bytes_per_s=rate)


def _run(run: RunPlan, choice: Choice, sites: set[str]) -> RunPlan:
    """A run of so many rounds at most, over those of its sites that take part."""
    name, spec = run.spec.run, run.spec
    rounds = spec.rounds if choice.rounds is None else min(spec.rounds, max(1, choice.rounds))
    spec = replace(spec, rounds=rounds, sites=tuple(site for site in spec.sites if site in sites))
    pauses, stops = choice.allows(f"operator pauses/{name}/1"), choice.allows(f"operator stops/{name}/1")
    return replace(
        run,
        spec=spec,
        paused_ms=run.paused_ms if pauses else None,
        resumed_ms=run.resumed_ms if pauses else None,
        stopped_ms=run.stopped_ms if stops else None,
    )


# -- texts ------------------------------------------------------------------------------------------


def spell(keys: Iterable[str]) -> str:
    """Keys as one text: `<name>/<ordinals>; ...` with ordinals like `3,7-9`. `parse` reads it back."""
    ordinals: dict[str, list[int]] = {}
    for key in keys:
        name, _, ordinal = key.rpartition("/")
        ordinals.setdefault(name, []).append(int(ordinal))
    return "; ".join(f"{name}/{_ranges(sorted(numbers))}" for name, numbers in sorted(ordinals.items()))


def _ranges(numbers: list[int]) -> str:
    """Rising numbers with runs of them drawn together."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def parse(text: str) -> frozenset[str]:
    """Keys from the text that `spell` writes; `ConfigError` if it is none."""
    keys: set[str] = set()
    for group in filter(str.strip, text.split(";")):
        match = _GROUP.fullmatch(group)
        if match is None:
            raise ConfigError(
                f"{group.strip()!r} names no faults; write <kind>/<whom>/<ordinals>, e.g. "
                "'message lost/site-a>coordinator/3,7-9'; a transcript shows the keys"
            )
        for part in match["ordinals"].split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            if len(numbers) > RANGE_MAX:
                raise ConfigError(f"{part!r} is too long a range of faults")
            keys.update(f"{match['name']}/{number}" for number in numbers)
    return frozenset(keys)


def read_choice(only: str | None, without: str, sites: str, runs: str, rounds: int | None) -> Choice:
    """A choice from the command line's words; `ConfigError` says which word is wrong."""
    if rounds is not None and rounds < 1:
        raise ConfigError(f"--rounds {rounds}: a run has at least one round")
    return Choice(
        only=None if only is None else parse(only),
        without=parse(without),
        sites=tuple(sites.split(",")) if sites else None,
        runs=tuple(runs.split(",")) if runs else None,
        rounds=rounds,
    )
