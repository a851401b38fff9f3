"""Masked rounds over real gRPC with real keys: five agents, and one of them dies in each phase in turn."""

from __future__ import annotations

import asyncio
import stat

import pytest
from coordinator_world import Consortium
from masked_world import NAMES, MaskedWorld, masked_world

from fedtrain.core import canonical
from fedtrain.core.agent import SeatStage
from fedtrain.core.masks import Advert
from fedtrain.core.state import Phase, Standing

VICTIM = "beech"

PHASES = {
    "before advert": "advert",
    "after advert": "boxes",
    "after boxes": "trainer",
    "after delivery": "upload",
    "after upload": "affirmation",
    "after affirmation": "opened",
}
"""How far the victim gets, and what of it does not get out any more."""

COUNTED = frozenset({"after upload", "after affirmation"})
"""Phases behind which the victim's update is in the sum."""


async def until_stuck(world: MaskedWorld, phase: str) -> None:
    """The run as far as it goes while the victim is held up in this phase."""
    victim = world.sites[VICTIM]
    for name, site in world.sites.items():
        if not (phase == "after boxes" and name == VICTIM):
            site.gate.trainer.set()
    victim.gate.muted.add(PHASES[phase])
    await world.start()
    if phase == "after boxes":
        agent = victim.agent
        assert agent is not None
        # It has heard with whom it masks, and has no update yet.
        await world.until(lambda: any(seat.stage is SeatStage.READY for seat in agent.state.masks.values()))
    else:
        async with asyncio.timeout(60):
            await victim.gate.reached.wait()


async def no_secrets_left(world: MaskedWorld) -> None:
    await world.until(lambda: not any(site.secrets() for site in world.sites.values()))


async def test_five_sites_give_the_sum_and_nothing_else(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is the mean of the five updates' integers, bit for bit; no plain update leaves a site, no
    plain sum stays at the coordinator, and no secret outlives the round.
    """
    async with masked_world(consortium, monkeypatch) as world:
        world.let_train()
        await world.start()
        await world.version()
        assert world.counted() == sorted(NAMES)
        world.check_sum()
        await no_secrets_left(world)
        plain = {path.read_bytes() for site in world.sites.values() for path in site.plain.values()}
        home = consortium.folder / "coordinator"
        assert not plain & {path.read_bytes() for path in home.rglob("*") if path.is_file()}
        assert not [path for path in home.rglob("*") if "bare" in path.name or path.name == "mean"]


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
async def test_a_site_that_dies_in_any_phase_leaves_an_exact_sum(
    phase: str, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of five are enough in every phase: the sum is that of exactly those whose updates are there, the
    dead site's too if it was. Started again, it destroys what it kept.
    """
    async with masked_world(consortium, monkeypatch) as world:
        await until_stuck(world, phase)
        await world.lose(VICTIM)
        await world.version()
        counted = set(NAMES) if phase in COUNTED else set(NAMES) - {VICTIM}
        assert set(world.counted()) == counted
        record = world.run.records[-1]
        assert record.attempt == 1, "nobody had to begin anew"
        assert (record.seats[VICTIM].standing is Standing.STORED) == (phase in COUNTED)
        world.check_sum()
        await world.sites[VICTIM].start()
        await no_secrets_left(world)


async def test_two_that_die_leave_nothing_to_release(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the threshold of four no sum is had: the attempt ends, its keys with it, and the next one has
    other keys and other orders."""
    async with masked_world(consortium, monkeypatch) as world:
        world.sites["cedar"].gate.muted.add("affirmation")
        await until_stuck(world, "after upload")
        await world.until(lambda: world.run.phase is Phase.UNMASKING)
        await world.lose(VICTIM)
        await world.lose("cedar")
        world.pass_time()
        await world.until(lambda: any(record.index == 1 for record in world.run.records))
        (given_up,) = [record for record in world.run.records if record.index == 1]
        assert given_up.version is None and not given_up.counted
        assert not world.sums
        await no_secrets_left_but(world, VICTIM, "cedar")
        for name in (VICTIM, "cedar"):
            world.sites[name].gate.muted.clear()
            await world.sites[name].start()
        await world.version()
        world.check_sum()
        adverts = [
            canonical.decode(Advert, said.document)
            for site in world.sites.values()
            for said in site.said
            if said.topic == "advert"
        ]
        assert len({advert.session for advert in adverts}) == 2
        assert len({advert.mask_key for advert in adverts}) == len(adverts)
        assert world.run.records[-1].attempt == 2


async def no_secrets_left_but(world: MaskedWorld, *dead: str) -> None:
    alive = [site for name, site in world.sites.items() if name not in dead]
    await world.until(lambda: not any(site.secrets() for site in alive))


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
async def test_an_agent_that_restarts_in_any_phase_goes_on(
    phase: str, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session is durable at its sites: an agent that dies and comes back says the same words again, sends
    the same bytes, and everybody is in the sum. What it keeps is readable by its own account only.
    """
    async with masked_world(consortium, monkeypatch) as world:
        await until_stuck(world, phase)
        victim = world.sites[VICTIM]
        for path in victim.secrets():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(victim.masks.stat().st_mode) == 0o700
        await victim.kill()
        victim.gate.muted.clear()
        victim.gate.trainer.set()
        await victim.start()
        await world.version()
        assert world.counted() == sorted(NAMES)
        world.check_sum()
        words: dict[str, set[str]] = {}
        for said in victim.said:
            words.setdefault(said.topic, set()).add(said.document)
        assert {topic: len(different) for topic, different in words.items()} == dict.fromkeys(words, 1)
        await no_secrets_left(world)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
async def test_a_coordinator_that_restarts_in_any_phase_goes_on(
    phase: str, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session is durable at the coordinator: its next life asks for what is missing, and the same session
    leads to the sum of all."""
    async with masked_world(consortium, monkeypatch) as world:
        await until_stuck(world, phase)
        opened = world.run.round
        assert opened is not None and opened.masks is not None
        session = opened.masks.session
        await consortium.restart()
        victim = world.sites[VICTIM]
        victim.gate.muted.clear()
        victim.gate.trainer.set()
        if phase == "after delivery":  # its upload hangs for ever: the gate holds the call itself
            await victim.kill()
            await victim.start()
        await world.version()
        assert world.counted() == sorted(NAMES)
        world.check_sum()
        said = [canonical.decode(Advert, s.document) for s in victim.said if s.topic == "advert"]
        assert {advert.session for advert in said} == {session}
        await no_secrets_left(world)
