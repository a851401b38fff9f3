"""Words of the site's own people on their way to the agent: one small file each, as to a letter box.

    state/decisions/<nanoseconds>-<chance>.json

A command writes the file whole and durable; the agent watches the folder, turns each file into an
event of its journal, and only then deletes it. So a word is taken at once where the agent runs, at
its next start where it does not, and never lost. Who can write into the state folder is the agent's
own account or root; a file that is no word is thrown away with a line in the log all the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedtrain.core import agent as core, canonical
from fedtrain.core.agent import AgentEvent
from fedtrain.core.contract import Verdict, Word
from fedtrain.core.orders import NAME, ORDER_ID
from fedtrain.errors import ConfigError, RemoteError
from fedtrain.peer.jobs import closing, in_thread
from fedtrain.storage.filesystem import disk_errors
from fedtrain.storage.watching import changes
from fedtrain.trust.private_files import make_private_folder, write_private
from fedtrain.wire.status import printable

_log = logging.getLogger("fedtrain.peer")

FILE_BYTES_MAX = 16_384
REASON_CHARACTERS_MAX = 1_000
LOOK_S = 0.02
"""Between two looks of a command whether its word was taken: nobody sees so short a wait."""

RUN_WORDS = {"approve": Word.APPROVED, "deny": Word.DENIED, "withdraw": Word.WITHDRAWN}
UPDATE_WORDS = ("release", "withhold")


@dataclass(frozen=True)
class Decision:
    """A person's word.

    Attributes:
        kind: `approve`, `deny` or `withdraw` of a run; `release` or `withhold` of a held update.
        subject: the run's name, or the update's order.
        reason: in the person's words; it may be told to the coordinator.
        by: the operating system's name of the person; it never leaves the site.
    """

    kind: str
    subject: str
    reason: str = ""
    by: str = ""


def person() -> str:
    """Who gives this command, as the operating system knows them."""
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def put(state: Path, decision: Decision) -> Path:
    """Hand a word to the agent of this state folder; the file, which is gone once it was taken."""
    if fault := _fault_of(decision):
        raise ConfigError(fault)
    folder = state / "decisions"
    make_private_folder(folder)
    path = folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"
    # Shown under its name only when the agent's account can read it.
    draft = folder / f".{path.name}"
    write_private(draft, canonical.encode(decision))
    with disk_errors(f"hand the decision over in {folder}"):
        owner = state.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.chown(folder, owner.st_uid, owner.st_gid)
            os.chown(draft, owner.st_uid, owner.st_gid)
        draft.replace(path)
    return path


def await_taken(path: Path, patience_s: float) -> bool:
    """Whether the agent has taken the word within `patience_s`; it runs, if it has."""
    end_s = time.monotonic() + patience_s
    while path.exists():
        if time.monotonic() > end_s:
            return False
        time.sleep(LOOK_S)
    return True


class LetterBox:
    """The agent's end.

    Args:
        state: the agent's own folder.
    """

    def __init__(self, state: Path) -> None:
        self.folder = state / "decisions"

    def create(self) -> None:
        """Make the folder if it is missing."""
        make_private_folder(self.folder)

    def waiting(self) -> list[tuple[Path, Decision]]:
        """Words that wait, oldest first. What is none is thrown away."""
        with disk_errors(f"list {self.folder}"):
            paths = sorted(entry for entry in self.folder.iterdir() if not entry.name.startswith("."))
        found = []
        for path in paths:
            try:
                found.append((path, _read(path)))
            except RemoteError as error:
                _log.error("%s is no word of this site's people and is thrown away: %s", path, error)
                self.remove(path)
        return found

    async def empty(self, take: Callable[[Decision], None]) -> None:
        """Hand every word over, oldest first; each is deleted once `take` has returned."""
        for path, decision in await in_thread(self.waiting):
            why = f": {printable(decision.reason)}" if decision.reason else ""
            _log.info("%s says: %s %s%s", printable(decision.by), decision.kind, decision.subject, why)
            take(decision)
            await in_thread(self.remove, path)

    async def listen(self, take: Callable[[Decision], None]) -> None:
        """The same for every word that comes, as soon as the kernel tells of it, until cancelled."""
        async with closing(changes([self.folder])) as ticks:
            async for _ in ticks:
                await self.empty(take)

    def remove(self, path: Path) -> None:
        """The word is in the journal."""
        with disk_errors(f"delete {path}"), contextlib.suppress(IsADirectoryError):
            path.unlink(missing_ok=True)


def event_of(decision: Decision, at_ms: int, day: int) -> AgentEvent:
    """What the agent's journal makes of a word; `day` as the contract's zone tells it."""
    if decision.kind in RUN_WORDS:
        verdict = Verdict(RUN_WORDS[decision.kind], decision.reason, decision.by)
        return core.RunDecided(at_ms, decision.subject, verdict)
    if decision.kind == "release":
        return core.UpdateReleased(at_ms, decision.subject, decision.by, day)
    return core.UpdateWithheld(at_ms, decision.subject, decision.by, decision.reason)


def _read(path: Path) -> Decision:
    with disk_errors(f"read {path}"):
        # Links are not followed, and a pipe does not hold the agent up.
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise RemoteError(f"it cannot be opened ({error.strerror})") from error
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RemoteError("it is no regular file")
            data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise RemoteError(f"it has more than {FILE_BYTES_MAX} bytes")
    decision = canonical.decode(Decision, data)
    if fault := _fault_of(decision):
        raise RemoteError(fault)
    return decision


def _fault_of(decision: Decision) -> str:
    """Why nobody can have meant this, "" if somebody can."""
    subjects: Mapping[str, str] = {
        **dict.fromkeys(RUN_WORDS, "run"),
        **dict.fromkeys(UPDATE_WORDS, "order"),
    }
    noun = subjects.get(decision.kind)
    if noun is None:
        return f"{decision.kind[:40]!r} is no decision; valid here: {', '.join(subjects)}"
    form = NAME if noun == "run" else ORDER_ID
    if form.fullmatch(decision.subject) is None:
        return f"{decision.subject[:80]!r} is not the name of {'a run' if noun == 'run' else 'an order'}"
    if len(decision.reason) > REASON_CHARACTERS_MAX:
        return f"the reason has {len(decision.reason)} characters, at most {REASON_CHARACTERS_MAX} travel"
    return ""
