"""A coordinator that lies gains nothing in simulated consortia; a site that checks less is caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fedtrain.core import canonical, judgement, masked_seat, masks
from fedtrain.core.agent_state import AgentState, Held, MaskSeat, SeatStage
from fedtrain.sim.malice import Coordinator, Gained, endure, endure_many
from fedtrain.sim.seats import Seats
from fedtrain.sim.tricks import TRICKS

SEEDS = range(1, 41)
CAUGHT_WITHIN = 40


def test_nothing_is_gained() -> None:
    """Forty worlds: every trick was tried, and the honest half of the play opened sums, with and without
    sites of the coordinator's own among them."""
    tally = endure_many(SEEDS)
    names = {name for tricks in TRICKS.values() for name in tricks}
    assert not names - set(tally.tried), f"never tried: {names - set(tally.tried)}"
    assert tally.counts["sums had"] >= 30 and tally.counts["sums had beside own sites"] >= 10
    assert tally.counts["sums had"] > tally.counts["sums had beside own sites"]
    assert tally.counts["opened"] > 100 and tally.counts["masked updates"] > 300


def test_a_world_follows_from_its_seed() -> None:
    """The same seed tries the same tricks, and has the same sums."""
    one, other = endure(3), endure(3)
    assert one.tried == other.tried and one.judge.sums == other.judge.sums and one.said == other.said


def reading(topic: str, change: Callable[[Any, AgentState, Held, MaskSeat, str], MaskSeat]) -> Any:
    """A reader of this topic that does something else than the one that is there."""
    real = masked_seat._READERS[topic]
    return lambda state, held, seat, document: change(real, state, held, seat, document)


def _forgets_rounds(real: Any, state: AgentState, held: Held, seat: MaskSeat, document: str) -> MaskSeat:
    """Only the last round is remembered."""
    kept = {
        run: replace(u, sets={index: digest for index, digest in u.sets.items() if index == str(u.round)})
        for run, u in state.unmasked.items()
    }
    return real(replace(state, unmasked=kept), held, seat, document)


def _forgets_all(real: Any, state: AgentState, held: Held, seat: MaskSeat, document: str) -> MaskSeat:
    """Which sum was opened is not remembered at all."""
    return real(replace(state, unmasked={}), held, seat, document)


def _counts_nobody(real: Any, state: AgentState, held: Held, seat: MaskSeat, document: str) -> MaskSeat:
    """The signatures of an unmask are not counted."""
    asked = canonical.decode(masks.Unmask, document)
    return replace(seat, stage=SeatStage.OPENED) if asked.survivors == seat.survivors else real(
        state, held, seat, document
    )  # fmt: skip


def _opens_any(real: Any, state: AgentState, held: Held, seat: MaskSeat, document: str) -> MaskSeat:
    """Shares are given for whatever set is asked for."""
    survivors = canonical.decode(masks.Unmask, document).survivors
    return replace(seat, stage=SeatStage.OPENED, survivors=survivors)


def _gives_both(real: Any) -> Any:
    """Both shares of a lost site."""

    def opened(self: Seats, order: Any, seat: MaskSeat, kept: Any, told: masks.Delivery) -> Any:
        shares = self._unsealed(order.id, seat, told)
        kept, text = real(self, order, seat, kept, told)
        said = canonical.decode(masks.Opened, text)
        both = {**said.seeds, **{site: shares[site][1].hex() for site in said.keys if site in shares}}
        return kept, masks.spelled(replace(said, seeds=both))

    return opened


def plant(patch: pytest.MonkeyPatch, name: str) -> None:
    """One fault in the site's half, by name."""
    readers: Mapping[str, tuple[str, Any]] = {
        "only the last round is remembered": ("survivors", _forgets_rounds),
        "no opened round is remembered": ("survivors", _forgets_all),
        "signatures are not counted": ("unmask", _counts_nobody),
        "any set is opened": ("unmask", _opens_any),
    }
    if name in readers:
        topic, change = readers[name]
        patch.setitem(masked_seat._READERS, topic, reading(topic, change))
    elif name == "strangers are welcome":
        patch.setattr(masked_seat, "_stranger", lambda state, sites: "")
    elif name == "few are enough":
        patch.setattr(masked_seat, "_too_small", lambda *_: "")
        patch.setattr(masked_seat, "_too_lonely", lambda *_: "")
    elif name == "keys need no signature":
        patch.setattr(Seats, "_fault_of_keys", lambda *_: "")
    elif name == "affirmations need no signature":
        patch.setattr(Seats, "_fault_of_unmask", lambda *_: "")
    elif name == "any proposal fits the order":
        patch.setattr(masks, "fault_of", lambda proposal, order: "")
    elif name == "masks are not required":
        patch.setattr(judgement, "promise_reasons", lambda *_: [])
    else:
        assert name == "both shares are given"
        patch.setattr(Seats, "_opened", _gives_both(Seats._opened))


PLANTED = {
    "only the last round is remembered": "opens round",
    "no opened round is remembered": "opens round",
    "signatures are not counted": "can have affirmed",
    "any set is opened": "I6: ",
    "strangers are welcome": "takes another key for",
    "few are enough": "I6: ",
    "keys need no signature": "seals shares for",
    "affirmations need no signature": "can have affirmed",
    "any proposal fits the order": "takes part",
    "masks are not required": "leaves without masks",
    "both shares are given": "gives both shares",
}
"""Planted fault -> what the judge says of it: less where it depends on the world."""


@pytest.mark.parametrize("name", PLANTED)
def test_a_site_that_checks_less_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within forty worlds, which all hold without the fault."""
    plant(monkeypatch, name)
    with pytest.raises(Gained, match=PLANTED[name]):
        endure_many(range(1, CAUGHT_WITHIN + 1))


def test_what_is_the_coordinators_own_is_counted_as_such() -> None:
    """Its sites and the name that nobody knows are never more than a fifth of all, rounded up."""
    for seed in range(1, 200):
        world = Coordinator(seed)
        own = len(world.sybils) + bool(world.stranger)
        assert own <= -(-(len(world.honest) + len(world.sybils)) // 5), seed
