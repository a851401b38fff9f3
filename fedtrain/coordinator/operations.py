"""What operators, observers and auditors ask for."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from fedtrain.coordinator import privacy_plan, views
from fedtrain.coordinator.hub import Hub
from fedtrain.coordinator.sessions import Sessions
from fedtrain.coordinator.versions import file_digest
from fedtrain.core import events as ev, masks, messages as msg
from fedtrain.core.canonical import to_plain
from fedtrain.core.cohort import expected_sites, roster
from fedtrain.core.orders import NAME, Order, OrderKind, order_id
from fedtrain.core.rollback import restorable
from fedtrain.core.spec import RunSpec
from fedtrain.core.state import ENDED, RunState, State
from fedtrain.core.terms import read_asked
from fedtrain.errors import ConfigError, LocalError, NotFoundError, RefusedError
from fedtrain.methods.aggregators import aggregator
from fedtrain.methods.codecs import codec
from fedtrain.methods.outer import outer
from fedtrain.trust.identity import Role
from fedtrain.wire.convert import encode
from fedtrain.wire.values import CHUNK_BYTES, Caller, Document, Export, ExportHead

_log = logging.getLogger(__name__)

ANSWER_S = 10.0
"""How long `run check` waits for a site."""


class Operations:
    """Implements the wire's `OperationsHandler`."""

    def __init__(self, hub: Hub, sessions: Sessions) -> None:
        self._hub = hub
        self._sessions = sessions

    async def start(self, caller: Caller, spec: RunSpec) -> Document:
        """Start a run, unless it cannot work."""
        check_spec(self._hub.state, spec)
        if spec.run in self._hub.state.runs:
            raise RefusedError(f"run {spec.run} exists already: give this one another name")
        self._hub.submit(ev.RunSubmitted(self._hub.clock.now_ms(), spec, caller.name))
        _log.info("%s started run %s", caller.name, spec.run)
        return self._view(spec.run)

    async def check(self, caller: Caller, spec: RunSpec) -> Document:
        """Ask every site that would take part whether it would."""
        check_spec(self._hub.state, spec)
        sites = expected_sites(self._hub.state, spec)
        answers = await asyncio.gather(*(self._ask(spec, site, sites) for site in sites))
        named = spec.sites or tuple(roster(self._hub.state))
        quarantined = {
            site: {"answer": "quarantined", "reasons": [f"in quarantine: {why.reason}"]}
            for site, why in self._hub.state.quarantined.items()
            if site in named
        }
        accepting = sum(1 for answer in answers if answer["answer"] == "accepts")
        privacy = await asyncio.to_thread(privacy_plan.plan, spec, len(sites))
        return {
            "run": spec.run,
            **({"privacy": privacy} if privacy else {}),
            "sites": dict(sorted({**dict(zip(sites, answers, strict=True)), **quarantined}.items())),
            "accepting": accepting,
            "needed": max(spec.minimum, spec.quorum),
            "can_start": accepting >= max(spec.minimum, spec.quorum),
        }

    async def _ask(self, spec: RunSpec, site: str, sites: tuple[str, ...]) -> Document:
        order = _first_order(spec, site, sites)
        if site not in self._hub.state.attached:
            return {"answer": "absent", "reasons": ["its agent is not attached"]}
        answer = await self._sessions.ask(site, msg.Inquiry(order.id, order), ANSWER_S)
        if answer is None:
            return {"answer": "silent", "reasons": [f"no answer within {ANSWER_S:g} s"]}
        return {"answer": "accepts" if answer.accepted else "refuses", "reasons": list(answer.reasons)}

    async def pause(self, caller: Caller, run: str) -> Document:
        """Let the open round end and start no other."""
        self._going(run)
        self._hub.submit(ev.RunPaused(self._hub.clock.now_ms(), run, caller.name))
        return self._view(run)

    async def resume(self, caller: Caller, run: str) -> Document:
        """Go on."""
        self._going(run)
        self._hub.submit(ev.RunResumed(self._hub.clock.now_ms(), run, caller.name))
        return self._view(run)

    async def stop(self, caller: Caller, run: str) -> Document:
        """End the run for good; its newest model stays."""
        self._going(run)
        self._hub.submit(ev.RunStopped(self._hub.clock.now_ms(), run, caller.name))
        return self._view(run)

    async def roll_back(self, caller: Caller, run: str, version: int) -> Document:
        """Go on from an earlier version, which becomes the newest one."""
        self._going(run)
        check_version(self._run(run), version)
        self._hub.submit(ev.RunRolledBack(self._hub.clock.now_ms(), run, version, caller.name))
        _log.info("%s takes run %s back to version %d", caller.name, run, version)
        return self._view(run)

    async def runs(self, caller: Caller) -> Document:
        """All runs."""
        return views.runs_view(self._hub.state)

    async def run(self, caller: Caller, run: str) -> Document:
        """One run."""
        return self._view(run)

    async def rounds(self, caller: Caller, run: str) -> Document:
        """Its closed and abandoned rounds."""
        return views.rounds_view(self._run(run))

    async def members(self, caller: Caller) -> Document:
        """All members, open invites, and misuse of invites."""
        misuses = [json.loads(row.payload) for row in self._hub.journal.read(kinds=("InviteMisused",))]
        return views.members_view(self._hub.state, misuses)

    async def member(self, caller: Caller, name: str) -> Document:
        """One member."""
        member = self._hub.state.members.get(name)
        if member is None:
            raise NotFoundError(f"no member {name!r}: `fedtrain site list` shows all")
        return views.member_view(self._hub.state, member)

    async def models(self, caller: Caller, run: str) -> Document:
        """The published versions of a run."""
        return views.models_view(self._run(run))

    async def lineage(self, caller: Caller, run: str, version: int | None) -> Document:
        """Where a published version comes from, signed; the newest one by default."""
        state = self._run(run)
        if state.model is None:
            raise NotFoundError(f"run {run} has no model yet: its initial weights are still being made")
        wanted = state.model.ref.version if version is None else version
        document: Document = to_plain(await asyncio.to_thread(self._hub.lineages.statement, run, wanted))
        return document

    async def watch(self, caller: Caller, run: str) -> AsyncIterator[Document]:
        """The run now, and again after every change, until it has ended."""
        seen = -1
        while True:
            seen = await self._hub.changes.after(seen)
            # Asked before the yield: a run may end while its view is on the way, and its end must be told.
            ended = self._run(run).phase in ENDED
            yield self._view(run)
            if ended:
                return

    async def export(self, caller: Caller, run: str, version: int | None) -> Export:
        """The newest public model as a file. Older ones are not kept whole."""
        state = self._run(run)
        if state.model is None:
            raise NotFoundError(f"run {run} has no model yet: its initial weights are still being made")
        newest = state.model.ref.version
        if version not in (None, newest):
            raise NotFoundError(f"version {version} of {run} is not kept: export the newest, {newest}")
        path = self._hub.versions.public(run, newest)
        digest = await asyncio.to_thread(file_digest, path)
        head = ExportHead(newest, path.stat().st_size, digest, state.model.ref.digest)
        return Export(head, _pieces(path))

    async def journal(self, caller: Caller, after: int) -> AsyncIterator[Document]:
        """Rows behind `after`, as of now."""
        for row in self._hub.journal.read(after):
            yield row._asdict()

    def _view(self, run: str) -> Document:
        return views.run_view(self._hub.state, self._run(run), self._hub.pulse.progress)

    def _run(self, name: str) -> RunState:
        run = self._hub.state.runs.get(name)
        if run is None:
            raise NotFoundError(f"no run {name!r}: `fedtrain run list` shows all")
        return run

    def _going(self, name: str) -> None:
        run = self._run(name)
        if run.phase in ENDED:
            raise RefusedError(f"run {name} has ended ({run.reason})")


def check_spec(state: State, spec: RunSpec) -> None:
    """Refuse a run that could never work, naming the key. The file was checked where it was read; this
    holds what only the coordinator knows, and does not trust the other side.
    """
    if NAME.fullmatch(spec.run) is None:
        raise ConfigError("use 1 to 63 of a-z, 0-9 and -, not at the ends", key="run")
    codec(spec.codec_up), codec(spec.codec_down)
    outer(spec.outer).settings(spec.outer_params)
    aggregator(spec.aggregator)
    enrolled = {member.name for member in state.members.values() if member.role == Role.SITE}
    strangers = sorted(set(spec.sites) - enrolled)
    if strangers:
        raise ConfigError(f"{strangers[0]} is not a site here: invite it first", key="sites.include")
    included = expected_sites(state, spec)
    for key, wanted in (("sites.minimum", spec.minimum), ("rounds.quorum", spec.quorum)):
        if not 1 <= wanted <= len(included):
            who = ", ".join(included) or "none"
            raise ConfigError(f"{wanted} cannot be met: {len(included)} sites take part ({who})", key=key)
    positive = {
        "rounds.count": spec.rounds,
        "rounds.steps": spec.steps,
        "rounds.deadline_s": spec.deadline_ms,
        "rounds.patience_s": spec.patience_ms,
        "rounds.heartbeat_s": spec.heartbeat_ms,
    }
    for key, value in positive.items():
        if value < 1:
            raise ConfigError(f"{value} is not above zero", key=key)
    if not 0 <= spec.quorum_share <= 1:
        raise ConfigError(f"{spec.quorum_share:g} is not a share between 0 and 1", key="rounds.quorum_share")

    key, why = masks.spec_fault(spec.task, spec.codec_up, spec.minimum, len(included))
    if why:
        raise ConfigError(why, key=key)
    try:
        encode(_first_order(spec, included[0], included))
    except LocalError as error:
        raise ConfigError(f"no site could be sent an order of this run: {error}") from error
    if fault := read_asked(spec.task).fault:
        raise ConfigError(f"no site could judge this run: {fault}", key="task")


def check_version(run: RunState, version: int) -> None:
    """Refuse to go back to a version that cannot be had, and say which can.

    Raises `NotFoundError` for one that never was, `RefusedError` for one that is no way back.
    """
    name, model = run.spec.run, run.model
    if model is None:
        raise RefusedError(f"run {name} has no model yet: its initial weights are still being made")
    newest, found = model.ref.version, restorable(model)
    if not 0 <= version <= newest:
        raise NotFoundError(f"run {name} has no version {version}: its versions are 0 to {newest}")
    if version in found:
        return
    had = f"it can go back to {_span(found)}" if found else "it cannot go back yet"
    if version == newest:
        raise RefusedError(f"version {version} is the newest of run {name}; {had}")
    raise RefusedError(f"version {version} of run {name} is too old, its parts are gone: {had}")


def _span(found: tuple[int, ...]) -> str:
    return f"version {found[0]}" if len(found) == 1 else f"versions {found[0]} to {found[-1]}"


def _first_order(spec: RunSpec, site: str, cohort: tuple[str, ...]) -> Order:
    """What a site is asked for at the start of the run."""
    return Order(
        id=order_id(spec.run, 1, 1, site),
        kind=OrderKind.SEED,
        run=spec.run,
        round=1,
        attempt=1,
        site=site,
        seed=spec.seed,
        model=None,
        steps=spec.steps,
        evaluate=False,
        parent="",
        returned=(),
        cohort=cohort,
        task=spec.task,
        codec=spec.codec_up,
        block_elements=spec.block_elements,
        patience_ms=spec.patience_ms,
    )


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with open(path, "rb") as file:
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield data
