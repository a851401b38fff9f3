"""A real coordinator in this process, and sites that are scripts over the real client."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.consortium import free_port as free_port
from fedtrain.coordinator.process import Serving, open_coordinator
from fedtrain.core import canonical, messages as msg
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.methods.codecs import codec
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelReader, ModelWriter
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter
from fedtrain.trust import statements
from fedtrain.trust.folders import MemberKeys, begin_join, finish_join
from fedtrain.trust.invites import decode_invite
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials
from fedtrain.wire.values import InviteOrder, SigningRequest

LAYOUT = Layout((Entry("w", (3, 4)), Entry("b", (4,))))


def spec_of(**changes: object) -> RunSpec:
    """A small run; every field can be replaced."""
    fields: dict[str, object] = {
        "run": "tiny",
        "seed": 1,
        "task": json.dumps({"data": "corpus", "model": {}, "name": "scripted", "training": {}}),
        "sites": (),
        "minimum": 2,
        "rounds": 2,
        "steps": 3,
        "quorum": 2,
        "quorum_share": 0.5,
        "deadline_ms": 20_000,
        "patience_ms": 10_000,
        "heartbeat_ms": 1_000,
        "late": LatePolicy.DROP,
        "outer": "average",
        "outer_params": {},
        "outer_warmup_rounds": 0,
        "codec_up": "float32",
        "codec_down": "float32",
        "aggregator": "mean",
        "norm_max": None,
        "evaluate_every": 1,
    }
    return RunSpec(**{**fields, **changes})  # type: ignore[arg-type]


def honest_header(order: Order) -> UpdateHeader:
    """The header of an update that answers this order."""
    assert order.model is not None, "an update is made from a model"
    return UpdateHeader(
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


def client_of(keys: MemberKeys) -> CoordinatorClient:
    """A client with a member's certificate."""
    credentials = channel_credentials(keys.tls_key_pem, keys.certificate_pem, keys.ca_pem)
    return CoordinatorClient(keys.membership.address, credentials, keys.membership.server_name)


@dataclass
class ScriptedSite:
    """A site without agent and trainer: answers orders by hand.

    `work` maps an order to the value that fills its pseudo-gradient.
    """

    keys: MemberKeys
    folder: Path
    client: CoordinatorClient
    inbox: asyncio.Queue[msg.ToPeer] = field(default_factory=asyncio.Queue)
    outbox: asyncio.Queue[msg.FromPeer | None] = field(default_factory=asyncio.Queue)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.keys.membership.name

    async def attend(self, session: str = "first", holding: tuple[str, ...] = ()) -> msg.Welcome:
        """Open the session and wait for its welcome."""
        self.outbox.put_nowait(
            msg.Hello(msg.PROTOCOL_VERSION, "0.1.0", session, ("scripted",), ("float32",), holding)
        )
        self.tasks.append(asyncio.create_task(self._pump(self.outbox)))
        welcome = await self.next(msg.Welcome)
        assert isinstance(welcome, msg.Welcome)
        return welcome

    async def _pump(self, outbox: asyncio.Queue[msg.FromPeer | None]) -> None:
        async def outgoing() -> AsyncIterator[msg.FromPeer]:
            while (message := await outbox.get()) is not None:
                yield message

        async for _, message in self.client.attend(outgoing()):
            self.inbox.put_nowait(message)

    async def next(self, kind: type[msg.ToPeer]) -> msg.ToPeer:
        """The next message of this kind; others are skipped."""
        while True:
            message = await asyncio.wait_for(self.inbox.get(), 10)
            if isinstance(message, kind):
                return message

    async def order(self) -> Order:
        """The next invitation's order."""
        invitation = await self.next(msg.Invitation)
        assert isinstance(invitation, msg.Invitation)
        return invitation.order

    def consent(self, order: Order, *reasons: str) -> None:
        """Agree, or refuse with reasons."""
        statement = statements.Consent(order.id, canonical.digest(order), not reasons, reasons)
        signature = statements.sign(statement, self.keys.message_key).hex()
        self.outbox.put_nowait(msg.Consent(order.id, not reasons, reasons, signature))

    def make_file(self, order: Order, value: float) -> Path:
        """The answer to an order as a file: a first model, or a constant update."""
        path = self.folder / order.id
        if order.kind is OrderKind.SEED:
            writer = ModelWriter(path, LAYOUT, order.run, 0)
            writer.write(np.arange(LAYOUT.num_elements, dtype=np.float32))
            writer.close()
            return path
        update = UpdateWriter(path, honest_header(order))
        values = np.full(LAYOUT.num_elements, value, np.float32)
        # The honest encoder refuses what is not finite; a hostile site has no such scruples.
        honest = bool(np.isfinite(values).all())
        update.write_block(codec(order.codec).encode(values, bytes(32)) if honest else values.tobytes())
        update.close()
        return path

    def commit(self, order: Order, path: Path, weight: int = 10) -> msg.Commit:
        """The signed commit of a file."""
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        statement = statements.Commit(order.run, order.id, digest, len(data), weight, order.steps)
        signature = statements.sign(statement, self.keys.message_key).hex()
        layout = LAYOUT.to_json() if order.kind is OrderKind.SEED else ""
        return msg.Commit(
            order.id, digest, len(data), weight, order.steps, 0.0, 1.5, 2.5, 7, 0.1, layout, signature
        )

    async def answer(self, order: Order, value: float, weight: int = 10) -> msg.Receipt:
        """Upload and commit, as an agent would."""
        path = self.make_file(order, value)
        commit = self.commit(order, path, weight)
        missing = await self.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
        await self.client.send_file(path, commit.digest, commit.size_bytes, missing.offset)
        return await self.client.commit(commit)

    async def close(self) -> None:
        """Leave without a goodbye."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.close()


@dataclass
class Consortium:
    """A served coordinator with its folder, and what was opened to it."""

    folder: Path
    serving: Serving
    operator: CoordinatorClient
    sites: list[ScriptedSite] = field(default_factory=list)

    async def join(self, name: str) -> ScriptedSite:
        """Invite and enrol a site over the wire."""
        invite = decode_invite(await self.operator.invite(InviteOrder(name, "site", 600)), self.now_ms())
        state = self.folder / "sites" / name
        application = begin_join(state, invite)
        credentials = channel_credentials(invite.key_pem, invite.certificate_pem, invite.ca_pem)
        async with CoordinatorClient(invite.address, credentials, invite.server_name) as newcomer:
            admission = await newcomer.enrol(
                SigningRequest(application.csr_pem, application.message_key.public)
            )
        keys = finish_join(state, invite, application, admission.certificate_pem, admission.message_key)
        site = ScriptedSite(keys, state, client_of(keys))
        self.sites.append(site)
        return site

    def now_ms(self) -> int:
        return self.serving.hub.clock.now_ms()

    async def restart(self) -> None:
        """Stop the coordinator and open its folder again."""
        await self.serving.close()
        self.serving = await open_coordinator(self.folder / "coordinator")

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition on the coordinator's state, woken by its changes."""
        changes = self.serving.hub.changes
        while not holds():
            await asyncio.wait_for(changes.after(changes.count), 10)


async def two_sites(consortium: Consortium) -> tuple[ScriptedSite, ScriptedSite]:
    """Two attached sites and a started run, seeded by the first of them."""
    first, second = await consortium.join("alpha"), await consortium.join("beta")
    await first.attend()
    await second.attend()
    await consortium.operator.start(spec_of())
    order = await first.order()
    assert order.kind is OrderKind.SEED
    first.consent(order)
    receipt = await first.answer(order, 0.0)
    assert receipt.outcome == "stored"
    return first, second


def whole_mean(path: Path, mean: float) -> None:
    """The public model of a first round is the initial one minus the mean of the updates."""
    with ModelReader(path) as model:
        out = np.empty(LAYOUT.num_elements, np.float32)
        model.read(0, out)
    np.testing.assert_array_equal(out, np.arange(LAYOUT.num_elements, dtype=np.float32) - mean)
