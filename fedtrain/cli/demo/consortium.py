"""The demo's processes: a coordinator and one agent per site, each with a folder of its own.

    DIR/coordinator        made by `coordinator init`
    DIR/sites/<name>       made by `join`, with the site's own peer.yaml
    DIR/logs/<name>.log    what each process said

They are started in sessions of their own, so that Ctrl-C reaches only the demo, which then ends them
in order: whatever they hold is on the disk and the same folder goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from fedtrain import coordinator, peer
from fedtrain.cli.session import ask, load_identity, open_client
from fedtrain.errors import ConfigError, FedtrainError, StorageError, UnreachableError
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.values import InviteOrder

CONSORTIUM = "demo"
READY_S = 30.0
"""For a coordinator to answer on a machine that is busy."""

END_S = 5.0
"""For a process to end by itself when told to."""

INVITE_VALID_S = 3600


def examples() -> Path:
    """The folder with `configs/` and `peers/`: of the repository, or inside the installed package."""
    import fedtrain

    package = Path(fedtrain.__file__).parent
    for folder in (package / "examples", package.parent):
        if (folder / "peers").is_dir() and (folder / "configs").is_dir():
            return folder
    raise ConfigError("configs/ and peers/ were not installed with fedtrain: run the demo from a checkout")


def claim_folder(wanted: Path | None) -> tuple[Path, int]:
    """The demo's folder and the lock that holds it.

    Without a wish it is `demo`, or the first of `demo-2`, `demo-3`, ... that no other demo uses and
    that holds no finished one.
    """
    if wanted is not None:
        lock = _lock(wanted)
        if lock is None:
            raise ConfigError("another demo is running there: choose another --dir", file=str(wanted))
        return wanted, lock
    for number in range(1, 1000):
        folder = Path("demo" if number == 1 else f"demo-{number}")
        if (folder / "report.json").exists():
            continue
        lock = _lock(folder)
        if lock is not None:
            return folder, lock
    raise ConfigError("demo to demo-999 are all taken: give --dir")


def _lock(folder: Path) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror}; choose another --dir") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class Consortium:
    """A coordinator and its sites as processes under one folder."""

    def __init__(self, folder: Path, site_files: list[Path]) -> None:
        self.folder = folder.absolute()
        self.site_files = {path.parent.name: path for path in site_files}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def home(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def journal(self) -> Path:
        """The coordinator's journal."""
        return self.home / "state" / "journal.db"

    def site_folder(self, site: str) -> Path:
        """One site's folder."""
        return self.folder / "sites" / site

    def site_file(self, site: str) -> Path:
        """One site's peer.yaml, as its agent and trainer read it."""
        return self.site_folder(site) / "peer.yaml"

    def client(self) -> CoordinatorClient:
        """A client with the operator's certificate."""
        keys, proxy = load_identity(self.home)
        return open_client(keys, proxy)

    def start(self) -> None:
        """Coordinator first, then every site: invited, joined, attached."""
        if not (self.home / "state" / "identity.json").exists():
            coordinator.init(self.home, CONSORTIUM, f"127.0.0.1:{_free_port()}")
        self._launch("coordinator", "coordinator", "serve", str(self.home))
        asyncio.run(self._until_ready())
        for site in sorted(self.site_files):
            self._join(site)
            self._launch(site, "peer", "run", str(self.site_folder(site)))

    def _join(self, site: str) -> None:
        """The real path: an invite from the operator, a key made at the site, a certificate back."""
        folder = self.site_folder(site)
        if (folder / "state" / "identity.json").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        text = self.site_files[site].read_text(encoding="utf-8")
        pattern = re.compile(r"^coordinator:[^#\n]*", re.MULTILINE)
        address = f"coordinator: {load_identity(self.home)[0].membership.address} "
        self.site_file(site).write_text(pattern.sub(address, text, count=1), encoding="utf-8")
        line = ask(self.home, lambda client: client.invite(InviteOrder(site, "site", INVITE_VALID_S)))
        peer.join(line, folder)

    async def _until_ready(self) -> None:
        async with self.client() as client:
            try:
                await client.connect(READY_S)
            except UnreachableError:
                self.check()
                raise

    def check(self) -> None:
        """Raise if a process has ended that should not have, with the last words of its log."""
        for name, child in self._children.items():
            code = child.poll()
            if code is not None:
                words = _last_lines(self._log(name))
                raise FedtrainError(f"{name} ended with exit code {code}; its log ends with:\n{words}")

    def stop(self) -> None:
        """End all processes: agents first, then the coordinator; by force if they do not listen."""
        names = sorted(self._children, key=lambda name: name == "coordinator")
        for name in names:
            child = self._children[name]
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        end = time.monotonic() + END_S
        for name in names:
            child = self._children[name]
            try:
                child.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()

    def _launch(self, name: str, *arguments: str) -> None:
        log = self._log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", "fedtrain.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"


@contextlib.contextmanager
def running(consortium: Consortium) -> Iterator[Consortium]:
    """Ends the processes however the block ends, by SIGTERM too."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield consortium
    finally:
        consortium.stop()
        signal.signal(signal.SIGTERM, before)


def _free_port() -> int:
    """A port that was free a moment ago, below those that the system hands to clients.

    A client's port could be given to a site that reconnects while the coordinator is away.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise UnreachableError("no free port between 20000 and 32000 on 127.0.0.1: end other servers")


def _last_lines(path: Path, count: int = 5) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    return "(no log)"
