"""The auditor itself: it is only worth something if it notices; the arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtrain.core.driver import Driver
from fedtrain.core.effects import Aggregate, Contribution
from fedtrain.core.events import EVENTS, Booted
from fedtrain.core.ports import MemoryActor, MemoryJournal
from fedtrain.core.state import State
from fedtrain.core.transitions import step
from fedtrain.sim.journals import JournalWatch
from fedtrain.sim.numbers import Version, aggregate, digest_of
from fedtrain.sim.plan import draw
from fedtrain.sim.process import Crashed, CrashingActor, Fuse, FusedJournal, Place
from fedtrain.sim.recomputation import Chain
from fedtrain.sim.violation import Violation

AVERAGE = replace(
    draw(1).runs[0].spec,
    outer="average",
    outer_params={"eta": 1.0},
    outer_warmup_rounds=0,
    norm_max=None,
)
NESTEROV = replace(AVERAGE, outer="nesterov", outer_params={"eta": 0.5, "mu": 0.5})


def chain(spec: object = AVERAGE) -> tuple[Chain, dict[str, bytes], Aggregate]:
    """Version 0 is (1, 2); a says (4, 0) with weight 1, b says (0, 4) with weight 3."""
    vectors = {"w": [1, 2], "a": [4, 0], "b": [0, 4]}
    octets = {name: np.array(values, np.float32).tobytes() for name, values in vectors.items()}
    blobs = {digest_of(data): data for data in octets.values()}
    counted = tuple(
        Contribution(site, f"r.1.1.{site}", digest_of(octets[site]), weight, 4.0)
        for site, weight in (("a", 1.0), ("b", 3.0))
    )
    made = Chain(spec, blobs)  # type: ignore[arg-type]
    made.seed(digest_of(octets["w"]))
    return made, blobs, Aggregate("r", 1, 1, 0, counted, "average", False)


def digest(*values: float) -> str:
    """Of a model with these values."""
    return digest_of(np.array(values, np.float32).tobytes())


def test_recomputation_by_hand() -> None:
    """(1, 2) - (4*1/4, 4*3/4) = (0, -1)."""
    made, _, effect = chain()
    made.compute(effect)
    made.publish(1, digest(0, -1), digest(-1, -3))
    assert made.digests[1] == digest(0, -1)


def test_recomputation_with_momentum_by_hand() -> None:
    """v = (1, 3), theta = (1, 2) - 0.5 * ((1, 3) + 0.5 v) = (0.25, -0.25); then v = (1.5, 4.5) and so on."""
    made, _, effect = chain(NESTEROV)
    made.compute(effect)
    made.publish(1, digest(0.25, -0.25), digest(-0.75, -2.25))
    made.compute(replace(effect, round=2))
    # v = 0.5 (1, 3) + (1, 3) = (1.5, 4.5); theta -= 0.5 ((1, 3) + (0.75, 2.25)) = (0.875, 2.625)
    made.publish(2, digest(-0.625, -2.875), digest(-0.875, -2.625))


def test_a_norm_above_the_bound_counts_less() -> None:
    """Norms of 4 under a bound of 2: half of everything."""
    made, _, effect = chain(replace(AVERAGE, norm_max=2.0))
    made.compute(effect)
    made.publish(1, digest(0.5, 0.5), digest(-0.5, -1.5))


@pytest.mark.parametrize("spec", [AVERAGE, NESTEROV, replace(AVERAGE, norm_max=1.5)])
def test_recomputation_agrees_with_methods(spec: object) -> None:
    """The auditor's own arithmetic and the product's lead to the same bits."""
    made, blobs, effect = chain(spec)
    start = np.array([1, 2], np.float32)
    effect = replace(effect, outer=spec.outer)  # type: ignore[attr-defined]
    for order in ([0, 1], [1, 0]):
        result = aggregate(spec, effect, Version(start, start), blobs, order)  # type: ignore[arg-type]
        made.compute(effect)
        public, delta = digest_of(result.version.public.tobytes()), digest_of(result.delta)
    made.publish(1, public, delta)


@pytest.mark.parametrize("wrong", ["model", "delta", "version", "unasked"])
def test_a_version_that_is_not_the_sum(wrong: str) -> None:
    """Another model, another delta, a skipped version, a version nobody asked for: each is noticed."""
    made, _, effect = chain()
    if wrong != "unasked":
        made.compute(effect)
    with pytest.raises(Violation, match=r"I[23]"):
        made.publish(
            2 if wrong == "version" else 1,
            digest(9, 9) if wrong == "model" else digest(0, -1),
            digest(9, 9) if wrong == "delta" else digest(-1, -3),
        )


def test_a_site_with_another_model() -> None:
    """I11: equal versions have equal digests everywhere."""
    made, _, _ = chain()
    made.holds("a", 0, digest(1, 2))
    for version, told in ((0, digest(1, 3)), (1, digest(1, 2))):
        with pytest.raises(Violation, match="I11"):
            made.holds("a", version, told)


def test_journal_watch() -> None:
    """I8: a step without its row, and a replay that leads elsewhere, are noticed; a missed row is told."""
    journal = MemoryJournal()
    watch = JournalWatch("c", journal, step, EVENTS, State())
    driver: Driver[State, Booted, object] = Driver(journal, MemoryActor(), step, State())  # type: ignore[arg-type]
    driver.handle(Booted(1, 1))
    assert [event for event, _, _ in watch.missed()] == [Booted(1, 1)]
    watch.compare(driver.state)
    watch.fold()
    with pytest.raises(Violation, match="does not replay"):
        watch.compare(State())
    with pytest.raises(Violation, match="not in its journal"):
        watch.stepped(driver.state)


@pytest.mark.parametrize(
    ("place", "rows", "performed"),
    [(Place.BEFORE_JOURNAL, 0, 0), (Place.AFTER_JOURNAL, 1, 0), (Place.AMID_EFFECTS, 1, 1)],
)
def test_fuses_blow_where_they_are_set(place: Place, rows: int, performed: int) -> None:
    """A process dies before the write, between write and act, or with half of its effects started."""
    journal, fuse, actor = MemoryJournal(), Fuse(), MemoryActor[str]()

    def stepped(state: int, event: Booted) -> tuple[int, tuple[str, ...]]:
        return state + 1, ("one", "two")

    driver: Driver[int, Booted, str] = Driver(
        FusedJournal(journal, fuse), CrashingActor(actor, fuse), stepped, 0
    )
    fuse.arm(place, 2 if place is Place.AMID_EFFECTS else 1)
    with pytest.raises(Crashed):
        driver.handle(Booted(1, 1))
    assert (len(journal.entries), len(actor.performed)) == (rows, performed)
    driver.handle(Booted(1, 1))
    assert len(actor.performed) == performed + 2
