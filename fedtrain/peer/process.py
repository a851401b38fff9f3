"""The agent's process: open the folder, attend, work until told to stop, or once and leave."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from fedtrain.core.agent import AgentState
from fedtrain.errors import ConfigError, UnreachableError
from fedtrain.peer.agent import Agent
from fedtrain.peer.egress import FILE as EGRESS_FILE
from fedtrain.peer.renewal import SPREAD, Renewals
from fedtrain.peer.settings import AgentSettings
from fedtrain.storage.journal import Journal
from fedtrain.storage.snapshots import Snapshots
from fedtrain.trust.certificates import read_certificate
from fedtrain.trust.diagnosis import explain_expired
from fedtrain.trust.folders import TLS_CERTIFICATE, MemberKeys, load_member
from fedtrain.trust.identity import Role
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials

_log = logging.getLogger("fedtrain.peer")

DAMAGED_JOURNAL = (
    "keep the file as evidence under another name and start again: orders in hand are handed out anew"
)

ONCE_PATIENCE_S = 60.0
"""How long `once` tries to reach the coordinator."""

ONCE_IDLE_S = 5.0
"""How long `once` waits for an order. One that is due comes right behind the welcome."""


def run(settings: AgentSettings, once: bool = False) -> None:
    """Run the site's agent until SIGTERM, or Ctrl-C (which raises `KeyboardInterrupt`).

    With `once` it attends, takes the order that waits for it, sees it through (or hands it over to a
    trainer that the site starts itself), delivers what is ready, and leaves.

    Raises:
        ConfigError: the folder is not a joined site's, belongs to another one, or holds a certificate
            that has expired.
        RefusedError: the coordinator does not accept this site.
        UnreachableError: with `once`, nobody answered; without, it is tried for ever.
        StorageError: another agent runs on the folder, or the disk refuses.
        IntegrityError: the journal is damaged.
    """
    import uvloop

    keys = load_member(settings.state)
    _check(settings, keys)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        interrupted = runner.run(_run(settings, keys, once))
    if interrupted:
        raise KeyboardInterrupt


def _check(settings: AgentSettings, keys: MemberKeys) -> None:
    member = keys.membership
    if member.role is not Role.SITE or member.name != settings.site:
        raise ConfigError(
            f"this folder was joined as {member.role.value} {member.name}, its file says site "
            f"{settings.site}: correct the name, or join as that site into a folder of its own",
            file=str(settings.data_file),
            key="site",
        )
    facts, now_ms = read_certificate(keys.certificate_pem), time.time_ns() // 1_000_000
    if now_ms >= facts.not_after_ms:
        raise ConfigError(explain_expired(facts, now_ms), file=str(settings.state / TLS_CERTIFICATE))


async def _run(settings: AgentSettings, keys: MemberKeys, once: bool) -> bool:
    """Work until the end; True if it was Ctrl-C."""
    journal = Journal.open(
        settings.state / "journal.db", lock=settings.state / "lock", remedy=DAMAGED_JOURNAL
    )
    if journal.note:
        _log.warning("%s", journal.note)
    credentials = channel_credentials(keys.tls_key_pem, keys.chain_pem, keys.ca_pem)
    server_name = keys.membership.server_name
    try:
        async with CoordinatorClient(
            settings.coordinator, credentials, server_name, settings.proxy
        ) as client:
            agent = Agent(settings, keys, client, journal, Snapshots(journal, AgentState))
            client.follow(agent.desk.epochs)
            client.account(agent.account.tally)
            agent.account.keep_in(settings.state / EGRESS_FILE, journal)
            # Sites that wake now and then are spread already, and may sleep beyond a moment drawn later.
            spread = 0.0 if once else SPREAD
            renewals = Renewals(settings.state, keys, client, agent.session, agent.desk, spread)
            return await _serve(agent, renewals, once)
    finally:
        journal.close()


async def _serve(agent: Agent, renewals: Renewals, once: bool) -> bool:
    stop = _stop_signals()
    ends: set[asyncio.Future[int] | asyncio.Future[None]] = {stop, agent.failed}
    try:
        await agent.start()
        ends.add(asyncio.create_task(agent.session.keep()))
        if once:
            ends.add(asyncio.create_task(see_through(agent, renewals)))
        else:
            agent.background(renewals.keep())
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in done:
            end.result()
        _log.info("the agent leaves")
        if await agent.session.leave("leaves for now" if once else "is stopped"):
            agent.desk.ended_well()
        return stop.done() and stop.result() == signal.SIGINT
    finally:
        for end in ends - {stop, agent.failed}:
            end.cancel()
        await asyncio.gather(*ends - {stop, agent.failed}, return_exceptions=True)
        await agent.stop()


async def see_through(agent: Agent, renewals: Renewals) -> None:
    """What `once` does between coming and leaving: it renews its certificate, then it works.

    Raises `UnreachableError` if no session could be opened in time.
    """
    try:
        async with asyncio.timeout(ONCE_PATIENCE_S):
            await agent.session.attached.wait()
    except TimeoutError as error:
        raise UnreachableError(f"{agent.session.failure} (tried for {ONCE_PATIENCE_S:.0f} s)") from error
    if renewals.due:
        await renewals.attempt()
    agent.background(renewals.keep())
    try:
        async with asyncio.timeout(ONCE_IDLE_S):
            await agent.until(lambda: bool(agent.state.in_hand))
    except TimeoutError:
        _log.info("no order waits for this site")
        return
    while not agent.at_rest:
        before = agent.progress_count
        waits = {*agent.state.in_hand, *agent.owes_shares}
        patience_ms = max((agent.state.held[order].order.patience_ms for order in waits), default=0)
        try:
            async with asyncio.timeout(patience_ms / 1000):
                await agent.until(lambda: agent.at_rest)
        except TimeoutError:
            if agent.progress_count == before:
                waiting = ", ".join(sorted(waits))
                _log.warning(
                    "nothing moved for %d s; left for the next time: %s", patience_ms // 1000, waiting
                )
                return


def _stop_signals() -> asyncio.Future[int]:
    """Resolves with the first of SIGINT and SIGTERM; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def on(number: int) -> None:
        loop.remove_signal_handler(number)
        if not stop.done():
            stop.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on, number)
    return stop
