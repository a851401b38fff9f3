"""The smallest world of a failing seed that still breaks the same invariant.

Runs, sites and rounds are taken away one by one, faults by halves and smaller parts (delta debugging:
Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002,
doi:10.1109/32.988498), again and again until nothing more can go. A fault that is left out does not
shift the chance of the others (see `chance`), so most attempts stay close to the world that failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fedtrain.sim.choice import EVERYTHING, Choice, reduced
from fedtrain.sim.plan import draw
from fedtrain.sim.world import SeedFailed, World

ATTEMPTS_MAX = 2_000
"""Worlds tried at most: some minutes. What has been reached by then is still a world that fails."""

_INVARIANT = re.compile(r"\bI\d+\b")


@dataclass(frozen=True)
class Failure:
    """One failing world.

    Attributes:
        broken: the invariant's number, or the kind of error where an assertion did not hold.
        says: the error in words.
        struck: keys of its faults, in order.
    """

    choice: Choice
    broken: str
    says: str
    struck: tuple[str, ...]
    transcript: str


@dataclass(frozen=True)
class Minimum:
    """What is left of a seed's world. `attempts` counts the worlds that were tried for it."""

    seed: int
    first: Failure
    last: Failure
    attempts: int

    def text(self) -> str:
        """The failure, what is left, the whole transcript, and the command that repeats it."""
        plan = draw(self.seed)
        left = reduced(plan, self.last.choice)
        rounds = [max(run.spec.rounds for run in each.runs) for each in (left, plan)]
        return (
            f"{self.last.transcript}\n\n"
            f"seed {self.seed}: {self.last.says}\n"
            f"left after {self.attempts} worlds: {len(self.last.struck)} of {len(self.first.struck)} faults, "
            f"{len(left.sites)} of {len(plan.sites)} sites, {len(left.runs)} of {len(plan.runs)} runs, "
            f"{rounds[0]} of {rounds[1]} rounds\n"
            f"repeat it: {self.last.choice.command(self.seed)}"
        )


def attempt(seed: int, choice: Choice) -> Failure | None:
    """One world; None if it holds."""
    world = World(seed, choice)
    try:
        world.run()
    except SeedFailed as failed:
        cause = failed.__cause__ or failed
        number = _INVARIANT.search(str(cause))
        broken = number.group() if number else type(cause).__name__
        struck = tuple(world.scene.struck)
        text = world.scene.transcript.text()
        return Failure(choice, broken, f"{type(cause).__name__}: {cause}", struck, text)
    return None


def minimise(seed: int, choice: Choice = EVERYTHING, attempts_max: int = ATTEMPTS_MAX) -> Minimum | None:
    """The smallest failing world that was found; None if the seed's world holds."""
    first = attempt(seed, choice)
    if first is None:
        return None
    search = _Search(seed, first, attempts_max)
    return Minimum(seed, first, search.run(), search.attempts)


class _Search:
    """From one failing world to a smaller one, as long as there is one."""

    def __init__(self, seed: int, first: Failure, attempts_max: int) -> None:
        self.attempts = 0
        self._seed = seed
        self._best = first
        self._attempts_max = attempts_max

    def run(self) -> Failure:
        """Repeat all reductions until none helps."""
        before = None
        while before != self._best.choice:
            before = self._best.choice
            for candidates in (self._fewer_runs, self._fewer_sites, self._fewer_rounds):
                self._descend(candidates)
            self._fewer_faults()
        return self._best

    def _fails(self, choice: Choice) -> bool:
        """Whether this world breaks the same invariant; if so it is the best one now."""
        if self.attempts >= self._attempts_max:
            return False
        self.attempts += 1
        found = attempt(self._seed, choice)
        if found is None or found.broken != self._best.broken:
            return False
        self._best = found
        return True

    def _descend(self, candidates: Callable[[Choice], Iterator[Choice]]) -> None:
        """Take the first candidate that fails, and look for the next below it."""
        while any(self._fair(choice) and self._fails(choice) for choice in candidates(self._best.choice)):
            pass

    def _fair(self, choice: Choice) -> bool:
        """Whether the smaller world could hold at all.

        One with fewer sites than a quorum never comes to its end, whatever is wrong with the product:
        so where the end is what failed to come (I12), the same world without faults has to reach it.
        """
        if self._best.broken != "I12":
            return True
        self.attempts += 1
        return attempt(self._seed, replace(choice, only=frozenset())) is None

    # -- what can go ----------------------------------------------------------------------------

    def _fewer_runs(self, choice: Choice) -> Iterator[Choice]:
        names = [run.spec.run for run in reduced(draw(self._seed), choice).runs]
        yield from (replace(choice, runs=kept) for kept in _one_less(names))

    def _fewer_sites(self, choice: Choice) -> Iterator[Choice]:
        names = [site.name for site in reduced(draw(self._seed), choice).sites]
        yield from (replace(choice, sites=kept) for kept in _one_less(names))

    def _fewer_rounds(self, choice: Choice) -> Iterator[Choice]:
        most = max(run.spec.rounds for run in reduced(draw(self._seed), choice).runs)
        yield from (replace(choice, rounds=rounds) for rounds in range(1, most))

    def _fewer_faults(self) -> None:
        """Keep a smaller set of the faults that struck as long as the world fails with it."""

        def survivors(keys: list[str]) -> list[str] | None:
            # A fault that was allowed and does not strike any more is gone as well.
            return list(self._best.struck) if self._fails(self._with_faults(keys)) else None

        kept = survivors(list(self._best.struck))
        if kept is not None:
            narrow(kept, survivors)

    def _with_faults(self, keys: Sequence[str]) -> Choice:
        return replace(self._best.choice, only=frozenset(keys), without=frozenset())


def narrow(items: list[str], survivors: Callable[[list[str]], list[str] | None]) -> list[str]:
    """A part of the items that still fails, and of which no single one can be left out.

    Args:
        items: in order; all of them together fail.
        survivors: what remains of a part that fails (it, or a part of it), None if it does not.
    """
    parts = 2
    while items:
        size = -(-len(items) // parts)
        without = (items[:begin] + items[begin + size :] for begin in range(0, len(items), size))
        fewer = next((found for part in without if (found := survivors(part)) is not None), None)
        if fewer is not None:
            items, parts = fewer, max(parts - 1, 2)
        elif size == 1:
            break
        else:
            parts = min(2 * parts, len(items))
    return items


def _one_less(names: list[str]) -> Iterator[tuple[str, ...]]:
    """The names without one of them, and never none."""
    if len(names) > 1:
        yield from (tuple(kept for kept in names if kept != name) for name in names)
