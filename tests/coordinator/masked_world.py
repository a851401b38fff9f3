"""Real agents with scripted trainers around a served coordinator, all in this process: masked runs for real.

Everything between trainer and coordinator is the product: gRPC with mutual TLS, journals, keys, masks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_world import Consortium, client_of, spec_of

from fedtrain.coordinator import unmasking
from fedtrain.core import canonical, events as ev, messages as msg
from fedtrain.core.contract import Contract, Rights
from fedtrain.core.masks import Opened, spelled
from fedtrain.core.orders import Order, OrderKind, Result, parse_order_id
from fedtrain.core.spec import RunSpec
from fedtrain.core.state import MaskStage, RunState
from fedtrain.methods import masking
from fedtrain.methods.codecs import block_seed, codec
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelReader, ModelWriter
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter
from fedtrain.peer.agent import Agent
from fedtrain.peer.settings import AgentSettings
from fedtrain.storage.journal import Journal
from fedtrain.storage.mailbox import Claim, Mailbox
from fedtrain.trust import statements
from fedtrain.trust.folders import MemberKeys, begin_join, finish_join
from fedtrain.trust.invites import decode_invite
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials
from fedtrain.wire.values import InviteOrder, SigningRequest

LAYOUT = Layout((Entry("w", (123, 45)), Entry("b", (4_001,))))
NAMES = ("ash", "beech", "cedar", "elm", "fir")
PATIENCE_S = 60.0


def masked_spec(**changes: object) -> RunSpec:
    """One round of five sites under masks; nothing in it waits for a clock that a test could outrun."""
    privacy = changes.pop("privacy", {"masked": {"dropouts_max": -1, "weight_max": 0}})
    task = {"data": "corpus", "model": {}, "name": "scripted", "terms": {"privacy": privacy}, "training": {}}
    fields: dict[str, object] = {
        "task": json.dumps(task),
        "codec_up": "fixed12s8",
        "block_elements": 8192,
        "minimum": 5,
        "quorum": 3,
        "quorum_share": 0.5,
        "rounds": 1,
        "evaluate_every": 0,
        "deadline_ms": 120_000,
        "patience_ms": 60_000,
        "heartbeat_ms": 200,
    }
    return spec_of(**{**fields, **changes})


@dataclass
class Gate:
    """Holds a site's part of the machinery up at a chosen place.

    `muted`: topics, or `upload`, that do not get out; `reached` is set as soon as one would have.
    """

    muted: set[str] = field(default_factory=set)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    trainer: asyncio.Event = field(default_factory=asyncio.Event)


class GatedClient:
    """A client whose uploads can be held up."""

    def __init__(self, client: CoordinatorClient, gate: Gate) -> None:
        self._client = client
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def offer(self, offer: msg.Offer) -> msg.Missing:
        if "upload" in self._gate.muted:
            self._gate.reached.set()
            await asyncio.Event().wait()
        return await self._client.offer(offer)


@dataclass
class MaskedSite:
    """A site: its folder and journal outlive its agents.

    Attributes:
        plain: order -> a copy of the trainer's plain file.
        said: every statement that an agent of this site has said, oldest first.
        lies: shares that it opens are garbage.
    """

    keys: MemberKeys
    settings: AgentSettings
    plain_folder: Path
    gate: Gate = field(default_factory=Gate)
    plain: dict[str, Path] = field(default_factory=dict)
    said: list[msg.Statement] = field(default_factory=list)
    agent: Agent | None = None
    weight: int = 10
    lies: bool = False
    _running: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def name(self) -> str:
        return self.keys.membership.name

    @property
    def masks(self) -> Path:
        """Where secrets lie."""
        return self.settings.state / "masks"

    def secrets(self) -> list[Path]:
        """Files of sessions that are here, drafts too."""
        return sorted(self.masks.iterdir()) if self.masks.exists() else []

    async def start(self) -> None:
        """An agent and a trainer on the folder."""
        await self._running.enter_async_context(self._at_work())

    async def kill(self) -> None:
        """The agent is gone in the middle of whatever it does, without a goodbye."""
        await self._running.aclose()

    @asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        journal = Journal.open(self.settings.state / "journal.db", lock=self.settings.state / "lock")
        client = client_of(self.keys)
        try:
            agent = self.agent = Agent(self.settings, self.keys, GatedClient(client, self.gate), journal)  # type: ignore[arg-type]
            self._listen_in(agent)
            await agent.start()
            tasks = [asyncio.create_task(agent.session.keep()), asyncio.create_task(self._train())]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await agent.stop()
        finally:
            await client.close()
            journal.close()

    def _listen_in(self, agent: Agent) -> None:
        say = agent.session.say

        def gated(message: msg.FromPeer) -> bool:
            if isinstance(message, msg.Statement):
                if message.topic in self.gate.muted:
                    self.gate.reached.set()
                    return False
                if self.lies and message.topic == "opened":
                    message = self._garbage(message)
                self.said.append(message)
            return say(message)

        agent.session.say = gated  # type: ignore[method-assign]

    def _garbage(self, message: msg.Statement) -> msg.Statement:
        """The same shares, all of them false, and signed."""
        opened = canonical.decode(Opened, message.document)
        seeds, keys = (dict.fromkeys(shares, "11" * 33) for shares in (opened.seeds, opened.keys))
        document = spelled(Opened(opened.session, seeds, keys))
        said = statements.said("test", self.name, message.topic, message.order, document)
        signature = statements.sign(said, self.keys.message_key).hex()
        return msg.Statement(message.topic, message.order, document, signature)

    async def _train(self) -> None:
        mailbox = Mailbox(self.settings.mailbox)
        while True:
            await self.gate.trainer.wait()
            claim = await asyncio.to_thread(mailbox.claim, "trainer-1")
            if claim is None:
                await asyncio.sleep(0.005)
                continue
            await asyncio.to_thread(self._answer, mailbox, claim)

    def _answer(self, mailbox: Mailbox, claim: Claim) -> None:
        order = claim.order
        if order.kind is OrderKind.EVALUATE:
            mailbox.publish(Result(order.id, eval_loss=1.0, eval_count=1), None)
            return
        made = mailbox.checkpoints / f"made-{order.id}"
        if order.kind is OrderKind.SEED:
            write_first_model(made, order)
            layout = LAYOUT.to_json()
        else:
            write_update(made, order)
            layout = ""
            copy = self.plain[order.id] = self.plain_folder / f"{self.name}-{order.id}"
            shutil.copyfile(made, copy)
        data = made.read_bytes()
        name = "model.bin" if order.kind is OrderKind.SEED else "update.bin"
        digest = hashlib.sha256(data).hexdigest()
        numbers = (self.weight, order.steps, 0.5, 2.0)
        result = Result(order.id, "", name, digest, len(data), *numbers, layout=layout, seconds=0.1)
        mailbox.publish(result, made)


def write_first_model(path: Path, order: Order) -> None:
    writer = ModelWriter(path, LAYOUT, order.run, 0)
    writer.write(np.zeros(LAYOUT.num_elements, np.float32))
    writer.close()


def write_update(path: Path, order: Order) -> None:
    """An update as a trainer makes it, with numbers that the order's name determines."""
    assert order.model is not None
    header = UpdateHeader(
        run=order.run,
        round=order.round,
        site=order.site,
        direction="up",
        base_version=order.model.version,
        layout_digest=order.model.layout_digest,
        codec=order.codec,
        block_elements=order.block_elements,
        num_elements=LAYOUT.num_elements,
        clip_norm=None,
    )
    digest = hashlib.sha256(order.id.encode()).digest()
    values = np.random.default_rng(list(digest)).standard_normal(LAYOUT.num_elements).astype(np.float32)
    writer = UpdateWriter(path, header)
    for block, start in enumerate(range(0, LAYOUT.num_elements, order.block_elements)):
        seed = block_seed(order.run, order.seed, order.round, order.site, "up", block)
        writer.write_block(codec(order.codec).encode(values[start : start + order.block_elements], seed))
    writer.close()


@dataclass
class MaskedWorld:
    """A coordinator, its sites, and every sum that it took the masks off."""

    consortium: Consortium
    sites: dict[str, MaskedSite]
    sums: list[masking.Unmasked]

    @property
    def run(self) -> RunState:
        return self.consortium.serving.hub.state.runs["tiny"]

    @property
    def stage(self) -> MaskStage | None:
        opened = self.run.round
        return opened.masks.stage if opened is not None and opened.masks is not None else None

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition, looked at after every change at the coordinator."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                changes = self.consortium.serving.hub.changes
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changes.after(changes.count), 0.2)

    async def lose(self, name: str) -> None:
        """Its agent dies, and the coordinator notices at once instead of after the patience."""
        await self.sites[name].kill()
        hub = self.consortium.serving.hub
        hub.submit(ev.SiteLost(hub.clock.now_ms(), name, "killed by the test"))

    def pass_time(self) -> None:
        """The stage's time is over, as the core hears it."""
        opened, hub = self.run.round, self.consortium.serving.hub
        assert opened is not None and opened.masks is not None
        hub.submit(ev.TimerFired(opened.masks.until_ms, "tiny", "masks"))

    def let_train(self) -> None:
        """Trainers answer whatever comes."""
        for site in self.sites.values():
            site.gate.trainer.set()

    async def start(self, **changes: object) -> None:
        """The operator starts the run."""
        await self.consortium.operator.start(masked_spec(**changes))

    async def version(self, number: int = 1) -> None:
        """Wait until this version is out, or the run cannot go on."""
        await self.until(lambda: self.run.rounds_done >= number or bool(self.run.paused))
        assert not self.run.paused, self.run.paused

    def counted(self) -> list[str]:
        """Sites in the newest version."""
        return sorted(parse_order_id(order)[3] for order in self.run.records[-1].counted)

    def check_sum(self) -> None:
        """The newest version is the model before minus the mean of exactly the counted sites' integers."""
        record = self.run.records[-1]
        plain = [self.sites[parse_order_id(order)[3]].plain[order] for order in record.counted]
        assert self.sums[-1].sum_digest == masking.plain_sum(plain)
        assert record.index == 1, "the first model is all zeros, and its folder is gone by now"
        after = model_values(self.consortium.serving.hub.versions.public("tiny", 1))
        row = codec(self.run.spec.codec_up)
        total = sum(plain_values(path, row) for path in plain)
        mean = np.asarray(total / len(plain), np.float32)
        np.testing.assert_array_equal(after, -mean)


def model_values(path: Path) -> np.ndarray:
    with ModelReader(path) as reader:
        out = np.empty(LAYOUT.num_elements, np.float32)
        reader.read(0, out)
    return out


def plain_values(path: Path, row: Any) -> np.ndarray:
    """A plain update's values: integers times a power of two, so sums of them in float64 are exact."""
    body = path.read_bytes()[-row.encoded_bytes(LAYOUT.num_elements) :]
    out = np.empty(LAYOUT.num_elements, np.float32)
    row.decode(body, out)
    return out.astype(np.float64)


async def join(consortium: Consortium, name: str, contract: Contract) -> MaskedSite:
    """Invite and enrol a site, and give it a folder."""
    order = InviteOrder(name, "site", 600)
    invite = decode_invite(await consortium.operator.invite(order), consortium.now_ms())
    folder = consortium.folder / "sites" / name
    state = folder / "state"
    application = begin_join(state, invite)
    credentials = channel_credentials(invite.key_pem, invite.certificate_pem, invite.ca_pem)
    async with CoordinatorClient(invite.address, credentials, invite.server_name) as newcomer:
        request = SigningRequest(application.csr_pem, application.message_key.public)
        admission = await newcomer.enrol(request)
    keys = finish_join(state, invite, application, admission.certificate_pem, admission.message_key)
    settings = AgentSettings(
        folder=folder,
        site=name,
        coordinator=keys.membership.address,
        proxy=None,
        state=state,
        mailbox=folder / "mailbox",
        launch="external",
        contract=contract,
        data_file=folder / "peer.yaml",
    )
    return MaskedSite(keys, settings, consortium.folder)


def contract_of(**changes: Any) -> Contract:
    """What allows the run."""
    corpus = Rights(discoverable=True, execute=("scripted",))
    return Contract(runs=("tiny",), tasks=("scripted",), cohort_min=3, datasets={"corpus": corpus}, **changes)


@asynccontextmanager
async def masked_world(
    consortium: Consortium,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...] = NAMES,
    contract: Contract | None = None,
) -> AsyncIterator[MaskedWorld]:
    """Sites that are attached; the run is for the test to start."""
    sums: list[masking.Unmasked] = []
    true_unmask = masking.unmask

    def unmask(*args: Any, **kwargs: Any) -> masking.Unmasked:
        sums.append(true_unmask(*args, **kwargs))
        return sums[-1]

    monkeypatch.setattr(unmasking.masking, "unmask", unmask)
    sites = {name: await join(consortium, name, contract or contract_of()) for name in names}
    world = MaskedWorld(consortium, sites, sums)
    try:
        for site in sites.values():
            await site.start()
        state = lambda: consortium.serving.hub.state  # noqa: E731
        await world.until(lambda: len(state().attached) == len(names))
        yield world
    finally:
        await asyncio.gather(*(site.kill() for site in sites.values()))
