"""From the pasted line to an identity: the keys are made here and never leave.

A lost reply is harmless: the keys are saved before the coordinator hears of them, so joining again
with the same line asks for the same certificate and gets it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from fedtrain.errors import BusyError, UnreachableError
from fedtrain.peer.egress import FILE as EGRESS_FILE, keep_enrolment
from fedtrain.trust.certificates import read_certificate
from fedtrain.trust.diagnosis import explain_unreachable
from fedtrain.trust.folders import Application, MemberKeys, begin_join, finish_join
from fedtrain.trust.identity import Role
from fedtrain.trust.invites import Invite, decode_invite
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials
from fedtrain.wire.traffic import SocketMeter
from fedtrain.wire.values import Admission, SigningRequest

PATIENCE_S = 20.0
"""How long the coordinator is tried before a person is told to look."""


@dataclass(frozen=True)
class JoinReport:
    """What `join` made.

    Attributes:
        folder: the site's folder; keys and certificate lie in its `state`.
        role: role word of the certificate, e.g. `site`.
        address: the coordinator's `host:port`.
        key_id: short name of the message key that was made here.
        expires_ms: end of the certificate, UTC milliseconds.
    """

    folder: Path
    consortium: str
    name: str
    role: str
    address: str
    key_id: str
    expires_ms: int


def join(invite_line: str, folder: Path, patience_s: float = PATIENCE_S) -> JoinReport:
    """Make keys in `folder`/state, enrol with the invite, and save the identity.

    Raises:
        ConfigError: the line is cut off, mistyped or expired, or the folder belongs to somebody else.
        RefusedError: the invite was used with another key.
        BusyError: the coordinator takes in nobody for longer than `patience_s`.
        UnreachableError: nobody answered for `patience_s`; the same line may be used again.
        RemoteError: the answer is not what the invite promised; nothing is saved.
    """
    invite = decode_invite(invite_line, _now_ms())
    state = folder / "state"
    application = begin_join(state, invite)
    admission, sent_bytes = asyncio.run(_enrol(invite, application, patience_s))
    keys = finish_join(
        state,
        invite,
        application,
        admission.certificate_pem,
        admission.message_key,
        admission.chain_pem,
        admission.intermediates_pem,
    )
    if keys.membership.role is Role.SITE:
        keep_enrolment(state / EGRESS_FILE, sent_bytes)
    return _report(folder, keys)


async def _enrol(invite: Invite, application: Application, patience_s: float) -> tuple[Admission, int]:
    credentials = channel_credentials(invite.key_pem, invite.chain_pem, invite.ca_pem)
    async with CoordinatorClient(invite.address, credentials, invite.server_name) as client:
        request = SigningRequest(application.csr_pem, application.message_key.public)
        meter = SocketMeter(int(invite.address.rpartition(":")[2]))
        end = time.monotonic() + patience_s
        pause_s = 0.1
        while True:
            wait_s = pause_s
            try:
                admission = await client.enrol(request)
                return admission, meter.look()
            except BusyError as error:
                wait_s = max(pause_s, error.retry_after_ms / 1000)
                if time.monotonic() + wait_s >= end:
                    raise
            except UnreachableError as error:
                if time.monotonic() + wait_s >= end:
                    why = explain_unreachable(invite.facts, invite.address, str(error), _now_ms())
                    raise UnreachableError(
                        f"{why} (tried for {patience_s:.0f} s; the same invite can be used again)"
                    ) from error
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, 2.0)


def _report(folder: Path, keys: MemberKeys) -> JoinReport:
    membership = keys.membership
    return JoinReport(
        folder=folder,
        consortium=membership.consortium,
        name=membership.name,
        role=membership.role.value,
        address=membership.address,
        key_id=keys.message_key.key_id,
        expires_ms=read_certificate(keys.certificate_pem).not_after_ms,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
