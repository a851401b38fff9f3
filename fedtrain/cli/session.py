"""From a folder to an answer of its coordinator: who we are, where it is, and why it does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from fedtrain.cli.epochs import remembered
from fedtrain.errors import ConfigError, FedtrainError, StaleEpoch, UnreachableError
from fedtrain.trust.certificates import read_certificate, renew_at_ms
from fedtrain.trust.diagnosis import explain_unreachable
from fedtrain.trust.folders import MemberKeys, load_member
from fedtrain.trust.identity import Role
from fedtrain.trust.renewal import begin_renewal, finish_renewal, renewal_lock
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials
from fedtrain.wire.values import SigningRequest

T = TypeVar("T")

PATIENCE_S = 10.0
"""How long a person waits for a coordinator that does not answer; agents are more patient."""

RENEWAL_S = 5.0
"""How long a command may be held up by the renewal of its own certificate."""

OPERATOR = "operator"
STATE = "state"
PEER_FILE = "peer.yaml"


def ask(folder: Path, question: Callable[[CoordinatorClient], Awaitable[T]]) -> T:
    """What the coordinator of the consortium in `folder` answers to one question.

    Args:
        folder: made by `join` (the member's own identity is used) or by `coordinator init` (the
            operator's, which lies inside it).
        question: what to ask of a connected client.

    Raises `ConfigError` if the folder is neither, `UnreachableError` with the cause if nobody answers.
    """
    state, proxy = _find_identity(folder)
    return asyncio.run(_ask(state, proxy, question))


def load_identity(folder: Path) -> tuple[MemberKeys, str | None]:
    """The keys to speak with, and the proxy to go through, from a folder."""
    state, proxy = _find_identity(folder)
    return load_member(state), proxy


def _find_identity(folder: Path) -> tuple[Path, str | None]:
    """Where the keys lie, and the proxy to go through."""
    if (folder / OPERATOR).is_dir():
        return folder / OPERATOR, None
    if (folder / PEER_FILE).is_file():
        from fedtrain.config import load_peer

        config = load_peer(folder / PEER_FILE)
        return Path(config.state), config.proxy
    if not (folder / STATE).is_dir():
        raise ConfigError(
            "nobody's folder: name one with --dir that `fedtrain coordinator init DIR` made, or run "
            "`fedtrain join INVITE DIR` first",
            file=str(folder.absolute()),
        )
    return folder / STATE, None


def open_client(keys: MemberKeys, proxy: str | None) -> CoordinatorClient:
    """A client that shows this member's certificate. Nothing is dialled yet."""
    credentials = channel_credentials(keys.tls_key_pem, keys.chain_pem, keys.ca_pem)
    member = keys.membership
    return CoordinatorClient(member.address, credentials, member.server_name, proxy)


async def _ask(state: Path, proxy: str | None, question: Callable[[CoordinatorClient], Awaitable[T]]) -> T:
    keys = load_member(state)
    async with open_client(keys, proxy) as client:
        client.follow(remembered(state, keys))
        try:
            await client.connect(PATIENCE_S)
        except StaleEpoch:
            raise
        except UnreachableError as error:
            facts = read_certificate(keys.certificate_pem)
            cause = explain_unreachable(facts, client.address, str(error), _now_ms(), proxy)
            raise UnreachableError(f"{cause} (tried for {PATIENCE_S:.0f} s)") from error
        await _renew(state, keys, client)
        return await question(client)


async def _renew(state: Path, keys: MemberKeys, client: CoordinatorClient) -> None:
    """Renew a person's certificate past its half-life; what fails is tried again by the next command.

    A site's own agent does this for the site, and a coordinator for the operator inside its folder.
    """
    of_coordinator = state.name == OPERATOR and (state.parent / STATE).is_dir()
    young = _now_ms() < renew_at_ms(read_certificate(keys.certificate_pem))
    if young or of_coordinator or keys.membership.role is Role.SITE:
        return
    with contextlib.suppress(FedtrainError, TimeoutError):
        async with asyncio.timeout(RENEWAL_S):
            with renewal_lock(state) as alone:
                if not alone or load_member(state).certificate_pem != keys.certificate_pem:
                    return
                renewal = begin_renewal(state, keys)
                request = SigningRequest(renewal.csr_pem, keys.message_key.public)
                given = await client.renew(request)
                finish_renewal(
                    state, keys, renewal, given.certificate_pem, given.chain_pem, given.intermediates_pem
                )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
