"""`approval: hold`: nothing leaves before a person has let it go, and a person can see what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from peer_world import LAYOUT, RUN, SITE, FakeCoordinator, Site, Versions, an_order, settled, sha256

from fedtrain.core import messages as msg
from fedtrain.core.agent import AgentState, Held, Stage
from fedtrain.core.contract import Approval
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.errors import BadUpdate, IntegrityError, NotFoundError
from fedtrain.methods.codecs import codec
from fedtrain.methods.modelfile import ModelWriter
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter
from fedtrain.peer import decisions, held
from fedtrain.peer.agent import Agent
from fedtrain.peer.progress import HELD_PHASE


@pytest.fixture
async def holding(site: Site) -> Site:
    site.settings = replace(site.settings, contract=replace(site.settings.contract, approval=Approval.HOLD))
    return site


async def hold_one(site: Site, agent: Agent, coordinator: FakeCoordinator, versions: Versions) -> Order:
    """Work up to the point at which a person's word is missing."""
    order = an_order(1, model=versions.ref(0))
    coordinator.invite(order)
    await site.claim()
    site.hand_in(order)
    await agent.until(lambda: order.id in agent.state.held and is_held(agent, order))
    return order


def is_held(agent: Agent, order: Order) -> bool:
    return agent.state.held[order.id].stage is Stage.HELD


async def test_nothing_leaves_until_it_is_released(
    holding: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """A held update shows progress and nothing else; a word in the state folder sends it."""
    async with holding.start() as agent:
        await agent.session.attached.wait()
        order = await hold_one(holding, agent, coordinator, versions)
        beats: list[msg.Heartbeat] = await coordinator.until(
            lambda: [b for b in coordinator.of(msg.Heartbeat) if told(b)][2:]
        )
        counters = [told(beat)[0].counter for beat in beats]
        assert counters == sorted(set(counters)), "it moves, so the round waits for its deadline"
        assert coordinator.received == {} and coordinator.commits == []
        assert agent.at_rest
        decisions.put(holding.settings.state, decisions.Decision("release", order.id, by="anna"))
        await settled(agent)
    assert [commit.order for commit in coordinator.commits] == [order.id]
    (row,) = [row for row in holding.entries("BytesSent") if row["order"]]
    assert "hold (released)" in row["clause"]
    assert holding.entries("UpdateReleased")[0]["by"] == "anna"


def told(beat: msg.Heartbeat) -> list[msg.Progress]:
    return [progress for progress in beat.progress if progress.phase == HELD_PHASE]


async def test_a_withheld_update_never_leaves(
    holding: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """The coordinator hears that there will be none, and why; the bytes are deleted, and no name is told."""
    async with holding.start() as agent:
        await agent.session.attached.wait()
        order = await hold_one(holding, agent, coordinator, versions)
        word = decisions.Decision("withhold", order.id, "too much in one layer", "anna")
        decisions.put(holding.settings.state, word)
        (failure,) = await coordinator.until(lambda: coordinator.of(msg.Failure))
        await settled(agent)
    assert failure.order == order.id and "too much in one layer" in failure.reason
    assert "anna" not in failure.reason
    assert coordinator.received == {}
    assert not list((holding.settings.state / "outbox").iterdir())


async def test_a_held_update_outlives_the_agent(
    holding: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """It waits over a restart, out of the trainer's reach, and a word that was given meanwhile is taken."""
    async with holding.start() as agent:
        await agent.session.attached.wait()
        order = await hold_one(holding, agent, coordinator, versions)
        outbox = holding.settings.state / "outbox" / order.id
        await coordinator.until(lambda: outbox.exists() and not held_in_mailbox(holding, order))
    decisions.put(holding.settings.state, decisions.Decision("release", order.id, by="anna"))
    async with holding.start() as agent:
        await settled(agent)
    assert [commit.order for commit in coordinator.commits] == [order.id]


def held_in_mailbox(site: Site, order: Order) -> bool:
    return (site.mailbox.results_folder / order.id).exists()


async def test_a_file_that_is_gone_is_not_waited_for(
    holding: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """If another file lies where the held one belongs, the coordinator hears of it at once."""
    order = an_order(1, model=versions.ref(0))
    async with holding.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await holding.claim()
        (holding.settings.state / "outbox" / order.id).write_bytes(b"no update")
        holding.hand_in(order)
        (failure,) = await coordinator.until(lambda: coordinator.of(msg.Failure))
        await settled(agent)
    assert failure.order == order.id and "not one regular file" in failure.reason


# -- inspection ------------------------------------------------------------------------------------------


class Bench:
    """A state folder with held updates of chosen values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = AgentState()
        (folder / "outbox").mkdir(parents=True)

    def hold(self, values: np.ndarray, round_index: int = 1, codec_name: str = "float32") -> str:
        order = an_order(round_index, codec=codec_name)
        header = UpdateHeader(
            RUN, round_index, SITE, "up", 0, LAYOUT.digest, codec_name, 4096, len(values), None
        )
        path = self.folder / "outbox" / order.id
        writer = UpdateWriter(path, header)
        writer.write_block(codec(codec_name).encode(values, b"\0" * 32))
        digest, size_bytes = writer.close()
        self._keep(order, digest, size_bytes)
        return order.id

    def hold_model(self, values: np.ndarray) -> str:
        order = an_order(0, OrderKind.SEED)
        path = self.folder / "outbox" / order.id
        writer = ModelWriter(path, LAYOUT, RUN, 0)
        writer.write(values)
        writer.close()
        self._keep(order, sha256(path.read_bytes()), path.stat().st_size)
        return order.id

    def know_layout(self) -> None:
        """Keep a public model, as an agent does that works for the run."""
        models = self.folder / "models" / RUN
        models.mkdir(parents=True)
        writer = ModelWriter(models / "3.safetensors", LAYOUT, RUN, 3)
        writer.write(np.zeros(LAYOUT.num_elements, np.float32))
        writer.close()

    def inspect(self, order: str) -> held.Inspection:
        return held.inspect(self.folder, self.state, order)

    def _keep(self, order: Order, digest: str, size_bytes: int) -> None:
        result = Result(order.id, "", "update.bin", digest, size_bytes)
        one = Held(order, Stage.HELD, result)
        self.state = replace(self.state, held={**self.state.held, order.id: one})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(LAYOUT.num_elements).astype(np.float32)


def test_tensors_come_by_name_with_their_own_numbers(bench: Bench) -> None:
    """Each tensor of the layout has its shape, its norm and its extremes, and the whole has one norm."""
    bench.know_layout()
    values = noise()
    values[:300] = 0
    values[300:] = 2
    found = bench.inspect(bench.hold(values))
    first, second = found.tensors
    assert [(t.name, t.shape) for t in found.tensors] == [("a", (300,)), ("b", (17, 4))]
    assert (first.likeness.norm, first.likeness.zeros, first.likeness.deviation) == (0, 1.0, 0)
    assert (second.likeness.low, second.likeness.high, second.likeness.mean) == (2, 2, 2)
    assert found.norm == pytest.approx(2 * np.sqrt(68))
    assert not first.likeness.like_noise and not second.likeness.like_noise


@pytest.mark.parametrize("codec_name", ["float32", "int8", "bfloat16", "float16"])
def test_what_is_shown_is_what_would_be_decoded(bench: Bench, codec_name: str) -> None:
    """Every codec's update is opened as the coordinator opens it, within the codec's own error."""
    values = noise()
    found = bench.inspect(bench.hold(values, codec_name=codec_name))
    (whole,) = found.tensors
    assert whole.name == "(all tensors)", "no public model is here that knows the names"
    assert found.codec == codec_name
    assert whole.likeness.norm == pytest.approx(float(np.linalg.norm(values)), rel=0.02)
    assert whole.likeness.like_noise


def test_the_direction_is_held_against_the_round_before(bench: Bench) -> None:
    """The same update twice has cosine 1, its opposite -1, and the first one of a run none."""
    values = noise()
    first = bench.hold(values, 1)
    assert bench.inspect(first).cosine is None
    again = bench.inspect(bench.hold(3 * values, 2))
    assert (again.cosine, again.beside) == (pytest.approx(1), first)
    assert bench.inspect(bench.hold(-values, 3)).cosine == pytest.approx(-1)


def test_initial_weights_know_their_own_names(bench: Bench) -> None:
    """A model that would leave is shown by tensor, too."""
    found = bench.inspect(bench.hold_model(noise()))
    assert found.kind == "model" and [tensor.name for tensor in found.tensors] == ["a", "b"]
    assert found.document()["meaning"]["limits"]


def test_a_file_that_is_not_the_trainers_is_told(bench: Bench) -> None:
    """Bytes that changed since they were handed in are an integrity error, and no numbers are shown."""
    order = bench.hold(noise())
    path = bench.folder / "outbox" / order
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="the trainer handed in"):
        bench.inspect(order)


def test_what_the_coordinator_would_refuse_is_refused_here(bench: Bench) -> None:
    """A file that is no update cannot be inspected, which is reason enough to withhold it."""
    order = bench.hold(noise())
    path = bench.folder / "outbox" / order
    path.write_bytes(b"records, as they are")
    result = Result(order, "", "update.bin", sha256(path.read_bytes()), path.stat().st_size)
    one = replace(bench.state.held[order], result=result)
    bench.state = replace(bench.state, held={order: one})
    with pytest.raises(BadUpdate):
        bench.inspect(order)


def test_an_unknown_order_is_answered_with_what_is_held(bench: Bench) -> None:
    """A slip of the hand names what there is."""
    order = bench.hold(noise())
    with pytest.raises(NotFoundError, match=order):
        bench.inspect("library.9.1.jsc")
    (bench.folder / "outbox" / order).unlink()
    with pytest.raises(NotFoundError, match="not there yet"):
        bench.inspect(order)
