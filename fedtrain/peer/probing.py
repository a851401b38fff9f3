"""Asking a trainer what it sees, and judging by its answer which walls stand between data and network.

The trainer measures its own side, the agent its own: whether the agent can read the data is tried here.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedtrain.errors import ConfigError, FedtrainError, LocalError, RefusedError, UnreachableError
from fedtrain.peer.launching import trainer_account, trainer_command, trainer_environment
from fedtrain.peer.settings import AgentSettings
from fedtrain.storage.mailbox import Finding, Mailbox, Probe
from fedtrain.storage.watching import Watcher
from fedtrain.wire.status import printable

START_S = 60.0
"""For a trainer to start and answer, beside the time for counting: Python and torch from a slow disk."""

EXTERNAL_S = 15.0
"""For a trainer that runs already; one at work answers between two orders."""

LOOK_S = 0.05
TAIL_BYTES = 4096
SOCKETS_MAX = 200
FILES_MAX = 200
"""Files of one data set that the agent tries to open: a wall has no gaps that only the last one shows."""

WELL_KNOWN_SOCKETS = ("/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock")
_LISTENS = "00010000"
_TYPE_DATAGRAM = "0002"

ENFORCED = ("network", "sockets", "keys", "privileges")
"""Walls that `isolation: required` asks for. The others take two accounts."""


@dataclass(frozen=True)
class Wall:
    """One wall: whether it stands, what was measured, and how it could be raised."""

    name: str
    stands: bool
    found: str
    remedy: str = ""


def prepare_mailbox(settings: AgentSettings) -> Mailbox:
    """The site's mailbox, open to the trainer's account where that is another one."""
    mailbox = Mailbox(settings.mailbox)
    mailbox.create()
    account = trainer_account(settings) if settings.launch == "process" else None
    if account is not None:
        mailbox.share(account.gid)
    return mailbox


def ask_trainer(
    settings: AgentSettings,
    count_s: int,
    patience_s: float,
    stop: threading.Event | None = None,
    units_of: tuple[str, str] = ("", ""),
) -> Finding:
    """What a trainer of this site finds: one started for the purpose, or one that is there already.

    Blocks for at most `patience_s`. It takes no order, and disturbs no agent or trainer at work.

    Args:
        count_s: for counting each data set, 0 for none.
        stop: ends the wait early.
        units_of: (task section, unit) whose units are to be counted.

    Raises `UnreachableError` if none answers; `ConfigError`, `RefusedError` or `LocalError` with the last
    words of one that was started and ended without an answer; `BadMailbox` for an answer that is unfit.
    """
    mailbox = prepare_mailbox(settings)
    probe = Probe(
        id=secrets.token_hex(8),
        addresses=_addresses(settings.coordinator, *((settings.proxy,) if settings.proxy else ())),
        sockets=tuple(itertools.islice(_listening_sockets(), SOCKETS_MAX)),
        secrets=str(settings.state),
        count_s=count_s,
        task=units_of[0],
        unit=units_of[1],
    )
    end = time.monotonic() + patience_s
    try:
        mailbox.ask(probe)
        if settings.launch == "process":
            return _ask_own(settings, mailbox, probe.id, end, stop or threading.Event())
        return _ask_external(settings, mailbox, probe.id, end, stop or threading.Event())
    finally:
        mailbox.forget_probe(probe.id)


def require_walls(settings: AgentSettings) -> None:
    """Where the site's file asks for walls, measure them before any trainer sees the data.

    Raises `ConfigError` that names those that do not stand.
    """
    if settings.launch != "process" or settings.isolation != "required":
        return
    where = {"file": str(settings.data_file), "key": "trainer.isolation"}
    try:
        finding = ask_trainer(settings, 0, START_S)
    except RefusedError as error:
        raise ConfigError(str(error), **where) from error
    open_walls = [
        wall for wall in judge_walls(settings, finding) if wall.name in ENFORCED and not wall.stands
    ]
    if open_walls:
        said = "; ".join(f"{wall.name}: {wall.found} ({wall.remedy})" for wall in open_walls)
        raise ConfigError(f"`required`, but not all walls around the trainer stand: {said}", **where)


def judge_walls(settings: AgentSettings, finding: Finding) -> tuple[Wall, ...]:
    """Which walls stand, by the trainer's measurements and our own."""
    launched = settings.launch == "process"
    raise_it = (
        "let this account make user namespaces (sysctl user.max_user_namespaces, AppArmor), run the agent as"
        " root, or start the trainer in a container"
        if launched
        else "start the trainer in a container without network (network_mode: none)"
    )
    # A program without capabilities cannot gain any; as anything but root it could only by others' files.
    powers = [f"capabilities {finding.capabilities:x}"] if finding.capabilities else []
    powers += [] if finding.no_new_privileges else ["set-uid programs give it more"]
    ways = [*finding.answered, *(f"{name} is up" for name in finding.interfaces)]
    return (
        _wall(
            "network",
            ways,
            "no interface is up and no address answers",
            raise_it
            if launched
            else f"{raise_it}; a trainer over several nodes keeps the site's inner network: shut its way out",
        ),
        _wall("sockets", finding.sockets, "no Unix socket outside the mailbox accepts", raise_it),
        _wall("keys", finding.secrets, f"nothing in {settings.state} can be read", raise_it),
        _wall(
            "privileges",
            powers,
            "no capabilities, none to be had",
            raise_it if launched else "start it with cap_drop: ALL and no-new-privileges, not as root",
        ),
        _wall(
            "account",
            [f"agent and trainer are both account {os.getuid()}"] if finding.uid == os.getuid() else [],
            f"the trainer is account {finding.uid}, the agent {os.getuid()}",
            "start the trainer under an account of its own (trainer.user, or trainer.launch: external)",
        ),
        _data_wall(settings),
    )


def _wall(name: str, gaps: list[str] | tuple[str, ...], closed: str, remedy: str) -> Wall:
    if not gaps:
        return Wall(name, True, closed)
    shown = ", ".join(printable(gap) for gap in gaps[:8])
    more = f" and {len(gaps) - 8} more" if len(gaps) > 8 else ""
    return Wall(name, False, f"open: {shown}{more}", remedy)


def _data_wall(settings: AgentSettings) -> Wall:
    """Whether this process, which has the network, can open the data."""
    readable = []
    for name, patterns in settings.data_files.items():
        if not patterns:
            readable.append(f"{name} (its format reads what every process can)")
        readable += [f"{name} ({path})" for path in _readable_files(patterns)][:1]
    return _wall(
        "data",
        readable,
        "the agent can open no file of the data sets",
        "let the data belong to another account than the agent's, which is not root, and start the trainer"
        " under that one (trainer.launch: external), or use two containers",
    )


def _readable_files(patterns: tuple[str, ...]) -> Iterator[str]:
    """Of each pattern's first files, those that this process can open."""
    for pattern in patterns:
        for path in itertools.islice(glob.iglob(pattern, recursive=True), FILES_MAX):  # noqa: PTH207
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError:
                continue
            if os.path.isfile(path):  # noqa: PTH113
                yield path


def _ask_own(
    settings: AgentSettings, mailbox: Mailbox, probe_id: str, end: float, stop: threading.Event
) -> Finding:
    """Start a trainer as the agent does, for this one question."""
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                trainer_command(settings, "--probe", probe_id),
                env=trainer_environment(os.environ),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=settings.folder,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(
                f"the trainer cannot be started: {error}", file=str(settings.data_file), key="trainer"
            ) from error
        try:
            while process.poll() is None and time.monotonic() < end and not stop.wait(LOOK_S):
                continue
            ended = process.poll()
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        finding = mailbox.finding(probe_id)
        if finding is not None:
            return finding
        log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
        words = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if ended is None:
        raise UnreachableError("the trainer started and did not answer in time: look for a disk that hangs")
    said = re.sub("^fedtrain trainer: ", "", printable(words[-1].strip())) if words else "it said nothing"
    raise _how_it_ended(ended, said)


def _how_it_ended(code: int, said: str) -> FedtrainError:
    if code == ConfigError.exit_code:
        return ConfigError(said)
    if code == RefusedError.exit_code:
        return RefusedError(said)
    return LocalError(f"the trainer ended with exit code {code} and no answer; its last words: {said}")


def _ask_external(
    settings: AgentSettings, mailbox: Mailbox, probe_id: str, end: float, stop: threading.Event
) -> Finding:
    """Wait for one that the site has started."""
    began = time.monotonic()
    with Watcher([mailbox.findings_folder]) as watch:
        while (finding := mailbox.finding(probe_id)) is None:
            left_s = end - time.monotonic()
            if left_s <= 0 or stop.is_set():
                break
            watch.wait(left_s, stop)
    if finding is not None:
        return finding
    working = [f"{name} is at work on {order}" for name, (_, order) in mailbox.trainers().items() if order]
    raise UnreachableError(
        f"no trainer answered in the mailbox within {time.monotonic() - began:.0f} s"
        f"{' (' + '; '.join(working) + ', and answers behind it)' if working else ''}: start one with"
        f" `fedtrain trainer run {settings.mailbox} --data {settings.data_file}`"
    )


def _addresses(*names: str) -> tuple[str, ...]:
    """Numeric addresses of `host:port`; none for a name that this machine cannot resolve."""
    found: list[str] = []
    for name in names:
        host, _, port = name.rpartition(":")
        try:
            entries = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except (OSError, ValueError):
            continue
        for family, _, _, _, place in entries[:4]:
            text = str(place[0]).partition("%")[0]
            found.append(f"[{text}]:{port}" if family == socket.AF_INET6 else f"{text}:{port}")
    return tuple(dict.fromkeys(found))


def _listening_sockets() -> Iterator[str]:
    """Unix sockets of this machine that take connections or datagrams, as the agent sees them."""
    yield from WELL_KNOWN_SOCKETS
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        fields = line.split(None, 7)
        if len(fields) == 8 and (fields[3] == _LISTENS or fields[4] == _TYPE_DATAGRAM):
            yield fields[7]
