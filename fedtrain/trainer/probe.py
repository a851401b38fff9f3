"""Which walls really stand around this process, and what the data holds: measured from inside.

Nothing here relies on how the process was started. A wall stands if what it should prevent was tried
and failed. Only numbers and names leave: no record, and no part of one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import itertools
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import fedtrain
from fedtrain.errors import FedtrainError
from fedtrain.storage.mailbox import Count, Finding, Probe
from fedtrain.trainer.data import Dataset, DataSource
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks import build_task, example_count, installed_tasks

CONNECT_S = 1.0
"""For one address. Where there is a way out, a neighbour answers within it; where there is none, the
kernel says so at once."""

SOCKET_FOLDERS = ("/run", "/var/run", "/tmp", "/var/tmp")
SOCKETS_MAX = 256
ENTRIES_MAX = 20_000
DEPTH_MAX = 3
"""Daemons put their sockets at most this deep below those folders, e.g. /run/user/1000/bus."""

SECRETS_MAX = 32
SAMPLE_ADDRESSES = ("192.0.2.1:443", "[2001:db8::1]:443")
"""Set aside for documentation: nobody answers there, but a network would try."""

ALL_CAPABILITIES = 2**63 - 1

_KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
_PR_GET_NO_NEW_PRIVS = 39


def examine(probe: Probe, trainer_id: str, mailbox: Path, datasets: Mapping[str, Dataset]) -> Finding:
    """All that a probe asks for.

    Args:
        mailbox: sockets inside it are the site's own business.
        datasets: to be counted, if the probe gives any time for it.
    """
    asked = (*SAMPLE_ADDRESSES, *probe.addresses)
    units, units_failure = count_units(probe.task, probe.unit, datasets) if probe.task else (0, "")
    return Finding(
        probe=probe.id,
        trainer=trainer_id,
        version=fedtrain.__version__,
        uid=os.getuid(),
        capabilities=_capabilities(),
        no_new_privileges=_has_no_new_privileges(),
        interfaces=interfaces_up(),
        answered=tuple(f"{address} {said}" for address in asked if (said := try_address(address))),
        sockets=open_sockets(probe.sockets, mailbox),
        secrets=readable_entries(Path(probe.secrets)) if probe.secrets else (),
        tasks=tuple(sorted(installed_tasks())),
        counts={name: count(name, datasets, probe.count_s) for name in datasets} if probe.count_s else {},
        units=units,
        units_failure=units_failure,
    )


def interfaces_up() -> tuple[str, ...]:
    """Network interfaces that are up, other than the loopback. (`/sys` may show another namespace's.)"""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        for _, name in socket.if_nameindex():
            request = struct.pack("16sH14x", name.encode()[:15], 0)
            try:
                answer = fcntl.ioctl(device, _SIOCGIFFLAGS, request)
            except OSError:
                continue  # gone since it was listed
            if name != "lo" and struct.unpack("16sH14x", answer)[1] & _IFF_UP:
                found.append(name)
    return tuple(sorted(found))


def try_address(address: str) -> str:
    """What answered at a numeric `host:port`: "accepts", "refuses", or "" for nothing.

    A refusal comes from somebody, so there is a way to him, unless it is this machine's own loopback.
    """
    host, _, port = address.rpartition(":")
    try:
        number = ipaddress.ip_address(host.strip("[]"))
        family = socket.AF_INET if number.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as way:
            way.settimeout(CONNECT_S)
            way.connect((str(number), int(port)))
    except ConnectionRefusedError:
        return "" if number.is_loopback else "refuses"
    except (OSError, ValueError, OverflowError):
        return ""
    return "accepts"


def open_sockets(named: Sequence[str], mailbox: Path) -> tuple[str, ...]:
    """Unix sockets, of those named and those found in the usual folders, that accept a connection."""
    inside = mailbox.resolve()
    found = itertools.chain(named, itertools.islice(_sockets(), SOCKETS_MAX))
    places = dict.fromkeys(path if path.startswith("@") else os.path.realpath(path) for path in found)
    return tuple(
        path for path in places if not Path(path).is_relative_to(inside) and _accepts(os.fsencode(path))
    )[:SOCKETS_MAX]


def _sockets() -> Iterator[str]:
    """Paths of sockets below the folders where daemons put them; what cannot be listed is closed."""
    seen = 0
    for top in dict.fromkeys(map(os.path.realpath, SOCKET_FOLDERS)):
        for folder, below, names in os.walk(top):
            seen += len(below) + len(names)
            if seen > ENTRIES_MAX:
                return
            if folder.count("/") - top.count("/") >= DEPTH_MAX:
                below.clear()
            for name in names:
                path = f"{folder}/{name}"
                try:
                    if stat.S_ISSOCK(os.lstat(path).st_mode):
                        yield path
                except OSError:
                    continue


def _accepts(path: bytes) -> bool:
    """Whether somebody takes a connection to this socket. Nothing is sent."""
    address = b"\0" + path[1:] if path.startswith(b"@") else path
    for kind in _KINDS:
        try:
            with socket.socket(socket.AF_UNIX, kind) as way:
                way.setblocking(False)
                way.connect(address)
        except BlockingIOError:
            return True  # its queue is full: somebody listens
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                continue  # it is of another kind
            return False
        return True
    return False


def readable_entries(folder: Path) -> tuple[str, ...]:
    """Names in the folder that this process can open. An empty folder in its place shows none."""
    found = []
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, ENTRIES_MAX)]
    except OSError:
        names = ["tls.key", "message.key"]  # a folder that cannot be listed may still be entered
    for name in sorted(names):
        try:
            os.close(os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            continue
        found.append(name)
    return tuple(found[:SECRETS_MAX])


def count(name: str, datasets: Mapping[str, Dataset], limit_s: float) -> Count:
    """What one data set holds, read as a task that may execute on it would read it.

    Its examples are those of the task that sees most in it: updates of any of them are held against the
    number.
    """
    allowed = datasets[name].execute
    if not allowed:
        return Count(failure="rights.execute lists no task, so none may read it")
    records = size_bytes = 0
    examples: dict[str, int] = {}
    whole, failure = True, ""
    end = time.monotonic() + limit_s
    try:
        installed = installed_tasks()
        counters = {task: example_count(task) for task in allowed if task in installed}
        reader = next(iter(counters), allowed[0])
        for document in DataSource(name, reader, datasets).documents():
            records += 1
            size_bytes += len(document)
            for task, examples_in in counters.items():
                examples[task] = examples.get(task, 0) + examples_in(document)
            if time.monotonic() > end:
                whole = False
                break
        if not counters:
            failure = f"none of the tasks in its rights.execute is installed: {', '.join(allowed)}"
    except FedtrainError as error:
        failure = str(error)[:1000]
    except Exception as error:
        # A task may be anybody's code. What it says may quote a record, so only the kind goes out.
        failure = f"the task failed: {type(error).__name__}"
    most = max(examples, key=lambda task: examples[task], default=allowed[0])
    return Count(most, records, size_bytes, examples.get(most, 0), whole, failure)


def count_units(task: str, unit: str, datasets: Mapping[str, Dataset]) -> tuple[int, str]:
    """(units that this task sees in its data set, why they cannot be counted or "")."""
    try:
        spec = TaskSpec.from_json(task)
        return build_task(spec, DataSource(spec.data, spec.name, datasets)).units(unit), ""
    except FedtrainError as error:
        return 0, str(error)[:1000]
    except Exception as error:
        # As in `count`: what it says may quote a record.
        return 0, f"the task failed: {type(error).__name__}"


def _capabilities() -> int:
    """Effective capabilities, a bit each; all of them where the kernel does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
    except OSError:
        return ALL_CAPABILITIES
    found = [line.split()[1] for line in lines if line.startswith("CapEff:")]
    return int(found[0], 16) if found else ALL_CAPABILITIES


def _has_no_new_privileges() -> bool:
    """Whether the kernel gives this process no privilege that it does not have, set-uid programs included."""
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)
    except (OSError, AttributeError):
        return False
