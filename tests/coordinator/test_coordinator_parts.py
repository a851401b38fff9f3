"""The coordinator's small parts: gate, pulse, changes, clock, versions on disk."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from coordinator_world import LAYOUT, Consortium, client_of, spec_of

from fedtrain.coordinator.changes import Changes
from fedtrain.coordinator.clock import Clock
from fedtrain.coordinator.gate import allowed_roles
from fedtrain.coordinator.pulse import PulseWatch
from fedtrain.core.liveness import Lost, Stalled
from fedtrain.core.orders import Progress
from fedtrain.errors import ConfigError, NotFoundError, RefusedError
from fedtrain.trust.identity import Role
from fedtrain.trust.invites import decode_invite
from fedtrain.wire.calls import CALLS
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials
from fedtrain.wire.values import InviteOrder, SigningRequest


def test_every_call_has_its_roles() -> None:
    """Each call of the protocol is open to exactly the roles that its service is for."""
    readers = {Role.OPERATOR, Role.OBSERVER}
    expected = {
        ("Enrolment", "Enrol"): {Role.ENROLLING},
        ("Session", "Attend"): {Role.SITE},
        ("Transfer", "Fetch"): {Role.SITE},
        ("Operations", "Start"): {Role.OPERATOR},
        ("Operations", "MakeInvite"): {Role.OPERATOR},
        ("Operations", "Export"): {Role.OPERATOR},
        ("Operations", "Rounds"): readers,
        ("Operations", "Watch"): readers,
        ("Operations", "Journal"): {Role.OPERATOR, Role.AUDITOR},
        ("Nothing", "Known"): set(),
    }
    for (service, method), roles in expected.items():
        assert allowed_roles(service, method) == roles, (service, method)
    for one in CALLS.values():
        service, method = one.path.strip("/").rsplit(".", 1)[-1].split("/")
        assert Role.COORDINATOR not in allowed_roles(service, method)
        enrols = (service, method) == ("Enrolment", "Enrol")
        assert (Role.ENROLLING in allowed_roles(service, method)) == enrols


async def test_a_silent_site_and_a_stalled_order_are_told() -> None:
    """Patience that runs out becomes one verdict each, and a sign of life puts it off."""
    told: list[Lost | Stalled] = []
    now_ms = 0
    pulse = PulseWatch(told.extend, lambda: now_ms)
    pulse.hear("silent")
    pulse.move("busy", "tiny.1.1.busy", 60_000)
    now_ms = 59_999
    pulse.hear("busy", (Progress("tiny.1.1.busy", -1),))
    watching = asyncio.create_task(pulse.run())
    await asyncio.sleep(0)
    assert told == []
    now_ms = 60_000
    async with asyncio.timeout(10):
        while len(told) < 2:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert {type(verdict) for verdict in told} == {Lost, Stalled}
    assert {verdict.site for verdict in told} == {"silent", "busy"}


async def test_who_did_not_listen_gives_nobody_up() -> None:
    """A coordinator that was stopped for longer than every lease gives each of them a lease more."""
    told: list[Lost | Stalled] = []
    now_ms = 0
    pulse = PulseWatch(told.extend, lambda: now_ms)
    pulse.move("alive", "tiny.1.1.alive", 20)
    watching = asyncio.create_task(pulse.run())
    await asyncio.sleep(0)
    now_ms = 90_000
    await asyncio.sleep(0.1)
    assert told == []
    async with asyncio.timeout(10):
        while not told:
            now_ms += 1
            await asyncio.sleep(0.01)
    watching.cancel()
    assert now_ms >= 90_020


async def test_progress_of_another_site_is_not_taken() -> None:
    """A site can speak for its own orders only, and only for those that are expected of it."""
    pulse = PulseWatch(lambda _: None)
    pulse.move("alpha", "tiny.1.1.alpha", 60_000)
    pulse.hear(
        "alpha", (Progress("tiny.1.1.beta", 5), Progress("tiny.1.1.alpha", 3), Progress("new.1.1.alpha", 1))
    )
    assert set(pulse.progress) == {"tiny.1.1.alpha"}


async def test_a_slow_watcher_sees_the_latest_change() -> None:
    """Changes that come together are one step, and none is missed."""
    changes = Changes()
    waiting = asyncio.create_task(changes.after(0))
    await asyncio.sleep(0)
    changes.tell()
    changes.tell()
    assert await waiting == 2
    assert await changes.after(1) == 2


def test_a_jump_of_the_wall_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the start, time advances with the monotonic clock alone."""
    clock = Clock()
    before = clock.now_ms()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert 0 <= clock.now_ms() - before < 60_000


def test_a_clock_that_was_set_back_does_not_stop_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A life begins no earlier than the journal's last event, from which its deadlines are set."""
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000_000)
    assert 5_000 <= Clock(1_000).now_ms() < 65_000
    assert 9_000 <= Clock(9_000).now_ms() < 69_000


async def test_an_invite_works_once(consortium: Consortium) -> None:
    """The same key gets the same certificate again; another key is refused and journaled."""
    line = await consortium.operator.invite(InviteOrder("alpha", "site", 600))
    invite = decode_invite(line, consortium.now_ms())
    credentials = channel_credentials(invite.key_pem, invite.certificate_pem, invite.ca_pem)
    from fedtrain.trust.keys import MessageKey, make_tls_key_and_csr

    message = MessageKey.generate().public
    _, csr = make_tls_key_and_csr("alpha")
    _, other = make_tls_key_and_csr("alpha")
    async with CoordinatorClient(invite.address, credentials, invite.server_name) as newcomer:
        first = await newcomer.enrol(SigningRequest(csr, message))
        assert await newcomer.enrol(SigningRequest(csr, message)) == first
        with pytest.raises(RefusedError, match="used before"):
            await newcomer.enrol(SigningRequest(other, message))
    kinds = [row.kind for row in consortium.serving.hub.journal.read()]
    assert kinds.count("MemberEnrolled") == 2 and kinds.count("InviteMisused") == 1


async def test_a_site_may_not_operate(consortium: Consortium) -> None:
    """A site's certificate opens no operation, and the sentence names the role that it needs."""
    site = await consortium.join("alpha")
    with pytest.raises(RefusedError, match="operator"):
        await site.client.start(spec_of())


async def test_what_cannot_work_is_not_started(consortium: Consortium) -> None:
    """Too many sites asked for, unknown sites, a name twice: refused with the key."""
    operator = consortium.operator
    with pytest.raises(ConfigError, match=r"sites.minimum.*0 sites"):
        await operator.start(spec_of())
    await consortium.join("alpha")
    await consortium.join("beta")
    with pytest.raises(ConfigError, match=r"rounds.quorum: 3 cannot be met"):
        await operator.start(spec_of(quorum=3))
    with pytest.raises(ConfigError, match=r"sites.include: gamma"):
        await operator.start(spec_of(sites=("alpha", "gamma")))
    await operator.start(spec_of())
    with pytest.raises(RefusedError, match="exists already"):
        await operator.start(spec_of())
    with pytest.raises(NotFoundError, match="run list"):
        await operator.run("nothing")


async def test_documents_have_their_keys(consortium: Consortium) -> None:
    """The documents behind `--json` hold the keys that other programs rely on."""
    await consortium.join("alpha")
    await consortium.join("beta")
    await consortium.operator.invite(InviteOrder("gamma", "site", 600))
    view = await consortium.operator.start(spec_of())
    assert {"run", "phase", "reason", "version", "rounds", "round", "last", "evaluations"} <= view.keys()
    assert view["phase"] == "waiting" and "waiting for alpha, beta" in view["reason"]
    members = await consortium.operator.members()
    assert [member["name"] for member in members["members"]] == ["alpha", "beta", "operator"]
    assert [invite["name"] for invite in members["invites"]] == ["gamma"]
    assert (await consortium.operator.member("alpha"))["runs"] == ["tiny"]
    assert (await consortium.operator.rounds("tiny"))["rounds"] == []


async def test_half_made_versions_are_thrown_away(consortium: Consortium, tmp_path: Path) -> None:
    """What a crash left of a version is never taken for it: the folder appears by one rename."""
    site = await consortium.join("alpha")
    await consortium.join("beta")
    await site.attend()
    versions = consortium.serving.hub.versions
    leftover = consortium.folder / "coordinator" / "state" / "models" / "tiny" / ".0.part"
    leftover.mkdir(parents=True)
    (leftover / "exact.f32").write_bytes(b"half")
    spec = spec_of(minimum=1, quorum=1, sites=("alpha",))
    await consortium.operator.start(spec)
    order = await site.order()
    await site.answer(order, 0.0)
    assert not leftover.exists()
    assert versions.public("tiny", 0).stat().st_size > 4 * LAYOUT.num_elements


async def test_a_stranger_is_not_let_in(consortium: Consortium, tmp_path: Path) -> None:
    """A member whose key is not the enrolled one any more is refused, though its certificate holds."""
    site = await consortium.join("alpha")
    hub = consortium.serving.hub
    from dataclasses import replace

    from fedtrain.core import events as ev

    member = hub.state.members["alpha"]
    hub.submit(
        ev.MemberEnrolled(
            hub.clock.now_ms(),
            "alpha",
            "site",
            member.invite,
            "0" * 64,
            member.certificate,
            member.message_key,
        )
    )
    stranger = replace(site, client=client_of(site.keys))
    consortium.sites.append(stranger)
    with pytest.raises(RefusedError, match="not enrolled with this key"):
        await stranger.client.connect(5)
