"""Sites of the previous minor version at today's coordinator, and of versions too far away."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from coordinator_world import LAYOUT, Consortium, spec_of, whole_mean
from old_peer import OldPeer, canonical, plain_order

from fedtrain.core import canonical as core_canonical, messages as msg
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.state import Phase
from fedtrain.errors import RefusedError
from fedtrain.trust import statements
from fedtrain.trust.folders import begin_join, finish_join
from fedtrain.trust.invites import decode_invite
from fedtrain.wire import versions
from fedtrain.wire.values import InviteOrder

pytestmark = pytest.mark.timeout(60)


async def join_old(consortium: Consortium, name: str) -> tuple[OldPeer, Any]:
    """A site that was invited and enrolled by 1.0's messages, and its keys."""
    invite = decode_invite(
        await consortium.operator.invite(InviteOrder(name, "site", 600)), consortium.now_ms()
    )
    state = consortium.folder / "sites" / name
    application = begin_join(state, invite)
    keys = (invite.key_pem, invite.certificate_pem, invite.ca_pem)
    newcomer = OldPeer(invite.address, keys, invite.server_name, application.message_key.pem())
    admission = await newcomer.enrol(application.csr_pem, application.message_key.public)
    await newcomer.close()
    member = finish_join(state, invite, application, admission.certificate_pem, admission.message_key)
    keys = (member.tls_key_pem, member.certificate_pem, member.ca_pem)
    return OldPeer(invite.address, keys, invite.server_name, application.message_key.pem()), member


async def work_old(peer: OldPeer, consortium: Consortium, folder: Path, value: float) -> list[Any]:
    """Answers every order until the last, which evaluates; the receipts."""
    receipts = []
    writer: Any = SimpleNamespace(folder=folder)
    while True:
        order = await peer.order()
        fields = plain_order(order)
        today = core_canonical.from_plain(Order, fields)
        assert core_canonical.encode(today) == canonical(fields), "an order is spelled as it was"
        if today.kind is OrderKind.EVALUATE:
            await peer.say(evaluation={"order": order.id, "loss": 2.0, "count": 7})
            return receipts
        path = type(consortium.sites[0]).make_file(writer, today, value)
        layout = LAYOUT.to_json() if today.kind is OrderKind.SEED else ""
        receipts.append(await peer.deliver(order, path, layout, 0 if layout else 10))


async def work_new(site: Any, value: float) -> None:
    """The same for a site of today."""
    while True:
        order = await site.order()
        site.consent(order)
        if order.kind is OrderKind.EVALUATE:
            site.outbox.put_nowait(msg.Evaluation(order.id, 2.0, 7))
            return
        await site.answer(order, value)


async def test_a_site_of_the_previous_minor_takes_part_in_a_run(
    consortium: Consortium, caplog: pytest.LogCaptureFixture
) -> None:
    """It enrols, attends, consents, uploads, commits and fetches beside one of today; both count alike."""
    caplog.set_level(logging.INFO)
    old, member = await join_old(consortium, "east")
    new = await consortium.join("west")
    try:
        welcome = await old.attend()
        assert (welcome.protocol.major, welcome.protocol.minor) == (1, 1)
        await new.attend()
        assert "east is attached (fedtrain 0.1.0, protocol 1.0, without signed epochs" in caplog.text
        await consortium.operator.start(spec_of())
        receipts, _ = await asyncio.gather(
            work_old(old, consortium, consortium.folder / "sites" / "east", 1.0), work_new(new, 3.0)
        )
        for receipt in receipts:
            said = statements.Receipt(
                receipt.order, receipt.digest, receipt.outcome, receipt.epoch, receipt.at_ms
            )
            statements.verify(said, member.coordinator_public, bytes.fromhex(receipt.signature))
        kinds = [type(message).__name__ for message in old.heard]
        assert kinds.count("Publication") == kinds.count("Head") == 2
        await consortium.until(lambda: consortium.serving.hub.state.runs["tiny"].phase is Phase.DONE)
        run = consortium.serving.hub.state.runs["tiny"]
        assert [len(record.counted) for record in run.records if record.version] == [2, 2]
        assert run.model is not None
        for _, blob, size_bytes in run.model.ref.chain:
            assert len(await old.fetch(blob)) == size_bytes
        whole_mean(consortium.folder / "coordinator/state/models/tiny/2/public.safetensors", 4.0)
    finally:
        await old.close()


@pytest.mark.parametrize("protocol", [(2, 0), (1, 3), (0, 1)])
async def test_a_site_too_far_away_is_turned_away_in_words(
    consortium: Consortium, caplog: pytest.LogCaptureFixture, protocol: tuple[int, int]
) -> None:
    """Its call ends with both versions and what to install, and the coordinator's log says the same."""
    old, _ = await join_old(consortium, "east")
    try:
        with pytest.raises((AssertionError, grpc.aio.AioRpcError)):
            await old.attend(protocol=protocol)
        assert await old._stream.code() is grpc.StatusCode.PERMISSION_DENIED
        sentence = await old._stream.details()
        assert f"the site speaks protocol {versions.text(protocol)} (fedtrain 0.1.0)" in sentence
        assert f"the coordinator {versions.text(versions.PROTOCOL_VERSION)}" in sentence
        assert "install fedtrain" in sentence and sentence in caplog.text
    finally:
        await old.close()


def test_equal_majors_and_neighbouring_minors_talk() -> None:
    """The smaller minor is spoken; both sides come to the same answer, or name the same remedy."""
    major, minor = versions.PROTOCOL_VERSION
    for theirs in [(major, minor - 1), (major, minor), (major, minor + 1)]:
        assert versions.negotiate(theirs, "x", "site", "y") == min(theirs, (major, minor))
    assert versions.unspoken((major, minor)) == () and versions.unspoken((1, 0)) != ()
    for theirs, older in [((major, minor + 2), "coordinator"), ((major + 1, minor), "coordinator"),
                          ((major - 1, minor), "site")]:  # fmt: skip
        with pytest.raises(RefusedError, match=f"before it, at the {older}") as caught:
            versions.negotiate(theirs, "9.9", "site", "1.1")
        assert "fedtrain 9.9" in str(caught.value) and "fedtrain 1.1" in str(caught.value)
    with pytest.raises(RefusedError, match="at the site"):
        versions.negotiate((major + 1, 0), "9.9", "coordinator", "1.1")


def test_a_release_with_escape_codes_is_shown_harmlessly() -> None:
    """What the other side calls itself reaches no terminal as it is."""
    with pytest.raises(RefusedError) as caught:
        versions.negotiate((9, 9), "1\x1b[2J", "site", "1.1")
    assert "\x1b" not in str(caught.value)
