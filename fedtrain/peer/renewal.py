"""A site's certificate is renewed by its agent, half-way through its life, without losing a message.

Three steps, each of which may be repeated: the next certificate is asked for over the connection that is
open and saved (`trust.renewal`), calls that begin take a new channel that shows it (`Connection.move`),
and the session moves there (`Session.renew`). What breaks is tried again until the certificate's end.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from pathlib import Path
from typing import Protocol

import grpc

from fedtrain.errors import BusyError, FedtrainError, UnreachableError
from fedtrain.peer.backoff import Backoff
from fedtrain.peer.jobs import in_thread
from fedtrain.trust.certificates import LeafFacts, read_certificate, renew_at_ms, utc_text
from fedtrain.trust.diagnosis import explain_expired
from fedtrain.trust.folders import MemberKeys, load_member
from fedtrain.trust.renewal import begin_renewal, finish_renewal, renewal_lock
from fedtrain.wire.options import channel_credentials
from fedtrain.wire.values import Admission, SigningRequest

_log = logging.getLogger("fedtrain.peer")

SPREAD = 0.1
"""Sites renew within this share of their certificates' life behind its half, each at a moment of its own:
a thousand that joined on one day are then two a minute, with three days to live."""

WARN_AT = 0.25
"""With less than this share of the life left, a person is told."""

PAUSE_SHARE = 0.02
LONGEST_PAUSE_S = 600.0
"""Between two tries: up to this share of the certificate's life, and not longer than ten minutes."""

ATTACH_S = 30.0
"""A renewal waits so long for a session: without one the coordinator is away, or not one to be obeyed."""

LOOK_S = 30.0
"""The wall clock may be set, and a machine may sleep: it is looked at this often."""


class Client(Protocol):
    """What a renewal needs of the connection: `wire.client.CoordinatorClient`, or a test's own."""

    async def renew(self, request: SigningRequest) -> Admission:
        """The next certificate of the member whose certificate the connection shows."""

    async def move(self, credentials: grpc.ChannelCredentials, left_s: float) -> None:
        """From now on calls begin on a new channel with these credentials."""


class Conversation(Protocol):
    """What a renewal needs of the session."""

    attached: asyncio.Event

    async def renew(self) -> None:
        """Move to the connection's newest channel."""


class Desk(Protocol):
    """Where the present certificate is known, to explain failures by."""

    facts: LeafFacts


class Renewals:
    """Keeps one member's certificate young.

    Args:
        state: the folder that holds `keys`.
        spread: share of the life within which the moment is drawn.
    """

    def __init__(
        self,
        state: Path,
        keys: MemberKeys,
        client: Client,
        session: Conversation,
        desk: Desk,
        spread: float = SPREAD,
    ) -> None:
        self.renewed = 0
        self._state = state
        self._keys = keys
        self._client = client
        self._session = session
        self._desk = desk
        self._spread = spread * random.SystemRandom().random()
        self._saved: MemberKeys | None = None
        self._moves = False
        self._told: set[str] = set()

    @property
    def due(self) -> bool:
        """Whether the time has come, or a renewal was begun and is not over."""
        facts = self._desk.facts
        return self._saved is not None or self._moves or _now_ms() >= self._due_ms(facts)

    async def keep(self) -> None:
        """Renew when it is due, for as long as the agent lives. Failures are told and tried again."""
        backoff = self._backoff()
        while True:
            while not self.due:
                left_s = (self._due_ms(self._desk.facts) - _now_ms()) / 1000
                await asyncio.sleep(min(max(left_s, 0.01), LOOK_S))
            pause_s = await self.attempt(backoff)
            if not pause_s:
                backoff = self._backoff()
            await asyncio.sleep(pause_s)

    async def attempt(self, backoff: Backoff | None = None) -> float:
        """One try; 0 if the certificate is young now, else the seconds to wait before the next."""
        backoff = backoff or self._backoff()
        try:
            await self._renew()
        except BusyError as error:
            self._tell(error)
            return backoff.told_s(error.retry_after_ms / 1000)
        except FedtrainError as error:
            self._tell(error)
            return backoff.next_s()
        return 0.0

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(ATTACH_S):
                await self._session.attached.wait()
        except TimeoutError as error:
            raise UnreachableError("there is no session with the coordinator") from error
        if not self._moves:
            keys = self._saved = self._saved or await self._next_keys()
            credentials = channel_credentials(keys.tls_key_pem, keys.chain_pem, keys.ca_pem)
            left_s = (self._desk.facts.not_after_ms - _now_ms()) / 1000
            await self._client.move(credentials, left_s)
            self._keys, self._saved, self._moves = keys, None, True
            self._desk.facts = read_certificate(keys.certificate_pem)
        await self._session.renew()
        self._moves = False
        self.renewed += 1
        self._told.clear()
        _log.info("the certificate is renewed, to %s", utc_text(self._desk.facts.not_after_ms))

    async def _next_keys(self) -> MemberKeys:
        """Ask for the next certificate, unless another process of this folder has done so."""
        with renewal_lock(self._state) as alone:
            if not alone:
                raise UnreachableError("another process renews the certificate in this folder")
            found = await in_thread(load_member, self._state)
            if found.certificate_pem != self._keys.certificate_pem:
                return found
            renewal = await in_thread(begin_renewal, self._state, self._keys)
            request = SigningRequest(renewal.csr_pem, self._keys.message_key.public)
            admission = await self._client.renew(request)
            return await in_thread(
                finish_renewal,
                self._state,
                self._keys,
                renewal,
                admission.certificate_pem,
                admission.chain_pem,
                admission.intermediates_pem,
            )

    def _due_ms(self, facts: LeafFacts) -> int:
        return renew_at_ms(facts) + int(_life_ms(facts) * self._spread)

    def _backoff(self) -> Backoff:
        cap_s = min(LONGEST_PAUSE_S, _life_ms(self._desk.facts) * PAUSE_SHARE / 1000)
        return Backoff(cap_s / 8, cap_s)

    def _tell(self, error: FedtrainError) -> None:
        """Once when the trouble begins, once when the end is near, once when it has come."""
        facts, now_ms = self._desk.facts, _now_ms()
        end = utc_text(facts.not_after_ms)
        left_ms = facts.not_after_ms - now_ms
        if left_ms <= 0:
            stage, level, words = "expired", logging.ERROR, explain_expired(facts, now_ms)
        elif left_ms < WARN_AT * _life_ms(facts):
            stage, level = "near", logging.WARNING
            words = (
                f"the certificate ends at {end} and could not be renewed ({error}); if that stays so, ask an"
                f" operator for an invite (`fedtrain site invite {facts.identity.name} --again`) and join"
                " again (`fedtrain join INVITE DIR`)"
            )
        else:
            stage, level = "begun", logging.WARNING
            words = f"the certificate, good until {end}, is not renewed yet: {error} (trying on)"
        if stage not in self._told:
            self._told.add(stage)
            _log.log(level, "%s", words)


def _life_ms(facts: LeafFacts) -> int:
    """From the certificate's making to its end."""
    return max(1, 2 * (facts.not_after_ms - renew_at_ms(facts)))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
