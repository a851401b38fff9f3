"""A consortium with one liar in it: real gRPC, mutual TLS, real certificates, and no client's manners.

`Arena` is a run of three sites, two of which are honest, with its first round open. Whatever the liar
has done, `Arena.finish` lets the honest two bring the run to its end, and holds the result and the
journal against what they did.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from coordinator_world import (
    Consortium,
    ScriptedSite,
    client_of,
    free_port,
    spec_of,
    whole_mean,
)

from fedtrain import coordinator
from fedtrain.coordinator.hub import Hub
from fedtrain.coordinator.process import open_coordinator
from fedtrain.core import messages as msg
from fedtrain.core.allowance import Stock
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.state import Phase, RunState
from fedtrain.storage.audit import verify
from fedtrain.storage.chain import Row
from fedtrain.trust.folders import MemberKeys, load_member
from fedtrain.trust.statements import head_check
from fedtrain.wire import options
from fedtrain.wire.status import CODE_KEY, TrueStatus

HONEST = ("alpha", "beta")
LIAR = "mallory"
CALM = {"quorum_share": 0.0, "deadline_ms": 600_000, "patience_ms": 600_000}


@contextmanager
def case(name: object) -> Iterator[None]:
    """Names the case in whatever goes wrong with it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {name}")
        raise


def rows_allowed(stock: Stock, began_s: float) -> int:
    """How many rows a member may have caused since `began_s`, on however slow a machine."""
    return stock.rows_max + int((time.monotonic() - began_s) * 1000 / stock.row_every_ms) + 1


@dataclass(frozen=True)
class Refusal:
    """How a call was refused: gRPC's status, our machine code ("" if the transport refused), the sentence."""

    status: str
    code: str
    sentence: str


async def raw(
    keys: MemberKeys,
    path: str,
    messages: bytes | Sequence[bytes] | AsyncIterator[bytes],
    *,
    streaming_answer: bool = False,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Refusal | list[bytes]:
    """Send any bytes to any call; its refusal, or its answers.

    Args:
        messages: one request, or those of a stream.
        credentials: instead of those of `keys`.
    """
    credentials = credentials or options.channel_credentials(
        keys.tls_key_pem, keys.certificate_pem, keys.ca_pem
    )
    wide = [
        (name, value)
        for name, value in options.channel_options(keys.membership.server_name)
        if "message_length" not in name
    ]
    kind = ("unary" if isinstance(messages, bytes) else "stream") + (
        "_stream" if streaming_answer else "_unary"
    )
    address = keys.membership.address
    async with grpc.aio.secure_channel(address, credentials, options=wide) as channel:
        request: Any = iter(messages) if isinstance(messages, (list, tuple)) else messages
        call = getattr(channel, kind)(path)(request, timeout=60, metadata=metadata)
        status = TrueStatus(call)
        try:
            return [answer async for answer in call] if streaming_answer else [await call]
        except grpc.aio.AioRpcError as seen:
            error = await status.of(seen)
            trailing = dict(error.trailing_metadata() or ())
            return Refusal(error.code().name, str(trailing.get(CODE_KEY, "")), error.details() or "")


@dataclass
class Arena:
    """A run whose first round is open: `orders` by site, the liar's among them."""

    consortium: Consortium
    orders: dict[str, Order]

    @property
    def hub(self) -> Hub:
        return self.consortium.serving.hub

    @property
    def run(self) -> RunState:
        return self.hub.state.runs["tiny"]

    @property
    def liar(self) -> ScriptedSite:
        return self.site(LIAR)

    @property
    def liars(self) -> list[ScriptedSite]:
        return [site for site in self.consortium.sites if site.name not in HONEST]

    @property
    def order(self) -> Order:
        """The liar's order."""
        return self.orders[LIAR]

    def site(self, name: str) -> ScriptedSite:
        return next(site for site in self.consortium.sites if site.name == name)

    def rows(self, *kinds: str) -> list[Row]:
        """The journal's rows of these kinds."""
        self.hub.submit()  # what waits for company goes in first
        return [row for row in self.hub.journal.read() if row.kind in kinds]

    async def upload(self, path: Path, commit: msg.Commit, site: ScriptedSite | None = None) -> msg.Receipt:
        """Offer, send and commit as the (first) liar, each as the real client does it."""
        client = (site or self.liar).client
        missing = await client.offer(msg.Offer(commit.order, commit.digest, commit.size_bytes))
        await client.send_file(path, commit.digest, commit.size_bytes, missing.offset)
        return await client.commit(commit)

    async def until(self, holds: Callable[[], bool]) -> None:
        await self.consortium.until(holds)

    async def finish(self, *, liar_counts: bool = False) -> None:
        """The honest sites bring the run to its end; the liar gives up whatever is still asked of it.

        Then the first version is the mean of those who counted, the run has its rounds, and the journal
        and its signed heads verify.
        """
        for name in HONEST:
            await self._work(self.site(name), self.orders[name])
        for liar in self.liars:
            self._give_up(self.orders[liar.name])
        while self.run.phase is not Phase.DONE:
            await self.until(lambda: self.run.phase is Phase.DONE or bool(self._waiting()))
            for site, order in self._waiting():
                if site.name not in HONEST:
                    self._give_up(order)
                else:
                    await self._work(site, order)
        record = next(record for record in self.run.records if record.version == 1)
        expected = set(HONEST) | ({LIAR} if liar_counts else set())
        assert {order.rsplit(".", 1)[-1] for order in record.counted} == expected
        assert self.run.rounds_done == self.run.spec.rounds
        if not liar_counts and self.run.spec.codec_up == "float32":
            whole_mean(self.hub.versions.public("tiny", self.run.rounds_done), float(self.run.rounds_done))
        path = self.consortium.folder / "coordinator" / "state" / "journal.db"
        report = verify(path, head_check({self.hub.keys.message_key.public}))
        assert report.problems == () and report.heads_checked > 0

    def _waiting(self) -> list[tuple[ScriptedSite, Order]]:
        """Orders of the open round that nobody has answered yet."""
        opened = self.run.round
        if opened is None or self.run.phase is Phase.AGGREGATING:
            return []
        return [
            (self.site(name), seat.order)
            for name, seat in opened.seats.items()
            if seat.standing.value in ("invited", "working")
        ]

    async def _work(self, site: ScriptedSite, order: Order) -> None:
        if not any(order == open_order for _, open_order in self._waiting()):
            return
        site.consent(order)
        if order.kind is OrderKind.EVALUATE:
            site.outbox.put_nowait(msg.Evaluation(order.id, 1.0, 1))
            await self.until(lambda: order not in [waiting for _, waiting in self._waiting()])
        else:
            await site.answer(order, 1.0)

    def _give_up(self, order: Order) -> None:
        """By the event that a site's own word leads to: the liar's session may be long gone."""
        from fedtrain.core import events as ev

        self.hub.submit(ev.WorkFailed(self.hub.clock.now_ms(), order.id, "gives up"))


@asynccontextmanager
async def arena_in(folder: Path, liars: int = 1, **spec: object) -> AsyncIterator[Arena]:
    """A served coordinator below `folder` with the run `tiny`, whose first round is open.

    Liars are called `mallory`, `mallory-2` and so on. Patience is long: no clock decides a test.
    """
    home = folder / "coordinator"
    coordinator.init(home, "test", f"127.0.0.1:{free_port()}")
    operator = client_of(load_member(home / "operator"))
    made = Consortium(folder, await open_coordinator(home), operator)
    try:
        names = (*HONEST, LIAR, *(f"{LIAR}-{index}" for index in range(2, liars + 1)))
        for name in names:
            await (await made.join(name)).attend()
        await operator.start(spec_of(**{**CALM, "sites": tuple(sorted(names)), **spec}))
        maker = made.sites[0]
        seed = await maker.order()
        maker.consent(seed)
        await maker.answer(seed, 0.0)
        orders = {site.name: await site.order() for site in made.sites}
        yield Arena(made, orders)
    finally:
        for site in made.sites:
            await site.close()
        await operator.close()
        await made.serving.close()
