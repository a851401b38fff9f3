"""The trainer's process where the agent launches it: started when there is work, ended with the agent.

It is started in a session of its own, with none of the site's keys among its arguments, none of our
descriptors, and of our environment only what a trainer needs. Its
standard input is a pipe of the agent's: when the agent dies, however it dies, the pipe ends and the
trainer with it, so that a restarted agent never shares its mailbox with a leftover.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from fedtrain.peer.jobs import in_thread
from fedtrain.peer.launching import trainer_environment
from fedtrain.wire.status import printable

_log = logging.getLogger("fedtrain.peer")

END_S = 5.0
"""From asking to end to ending by force. A trainer needs a second or one step."""

TAIL_BYTES = 4096
TAIL_LINES = 3


class TrainerProcess:
    """At most one process at a time.

    Args:
        command: program and arguments.
        folder: its working directory.
        log_path: its standard output and error are appended here.
        died: called with (process id, how it ended) when it ends without having been asked to;
            says whether it is to be started again.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        log_path: Path,
        died: Callable[[int, str], Awaitable[bool]],
    ) -> None:
        self._command = tuple(command)
        self._folder = folder
        self._log_path = log_path
        self._died = died
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ending = False

    @property
    def pid(self) -> int:
        """Its process id, 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def ensure(self) -> None:
        """Start it unless it runs, or is being started."""
        if self._watch is None and not self._ending:
            self._watch = asyncio.get_running_loop().create_task(self._run())

    def kill(self) -> None:
        """End a process that hangs; its death is then told like any other."""
        if self._process is not None:
            _signal(self._process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Ask it to end, and end it by force if it does not; it is not started again."""
        self._ending = True
        watch, process = self._watch, self._process
        if watch is None:
            return
        if process is not None:
            _signal(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await asyncio.shield(watch)
            self.kill()
        await asyncio.wait([watch])

    def last_lines(self) -> list[str]:
        """The last lines of its log. They are for the site's own eyes: they may hold data."""
        try:
            with open(self._log_path, "rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError as error:
            return [f"the log {self._log_path} cannot be read ({error.strerror})"]
        return [printable(line.strip()) for line in lines if line.strip()][-TAIL_LINES:]

    async def _run(self) -> None:
        """Processes one after another, for as long as `died` asks for a next one."""
        try:
            again = True
            while again and not self._ending:
                pid, how = await self._run_once()
                again = not self._ending and await self._died(pid, how)
        finally:
            self._watch = None

    async def _run_once(self) -> tuple[int, str]:
        """(process id, 0 if there was none; how it ended)."""
        try:
            with open(self._log_path, "ab") as log:
                process = self._process = self._start(log)
        except OSError as error:
            return 0, f"it cannot be started: {error}"
        _log.info("trainer started (pid %d, log %s)", process.pid, self._log_path)
        try:
            return process.pid, _how(await in_thread(process.wait))
        finally:
            self._process = None
            if process.stdin is not None:
                process.stdin.close()

    def _start(self, log: BinaryIO) -> subprocess.Popen[bytes]:
        """By `vfork`, which the standard library uses: an event loop's own way of starting processes
        forks, and gRPC's fork handlers then crash the child now and then, because its threads are
        never all at rest."""
        return subprocess.Popen(
            self._command,
            env=trainer_environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=self._folder,
            start_new_session=True,
        )


def _signal(pid: int, number: int) -> None:
    """To the whole session that was made for it, which may have children of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _how(code: int) -> str:
    """An exit in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
