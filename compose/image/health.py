"""Is this container at work? `health.py agent` or `health.py trainer`; exit code 0 if it is.

The agent is at work while a process holds its folder and a connection to the coordinator (or the
proxy) stands; the trainer while its heartbeat moves. The coordinator needs no check of its own: it
is asked over mutual TLS, as an operator asks (see services.yaml).
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from pathlib import Path

from fedtrain.config import load_peer
from fedtrain.errors import FedtrainError

SITE = Path("/site")
TRAINERS = Path("/mailbox/trainers")
ESTABLISHED = "01"
SILENCE_S = 30.0
"""A trainer beats once a second."""


def agent(site: Path = SITE, tables: Path = Path("/proc/net")) -> str:
    """What is wrong with the agent, "" if nothing is."""
    if not is_held(site / "state" / "lock"):
        return "no agent holds the state folder"
    try:
        config = load_peer(site / "peer.yaml")
    except FedtrainError as error:
        return str(error)
    address = config.proxy or config.coordinator
    port = int(address.rpartition(":")[2])
    if port not in connected_ports(tables):
        return f"no connection to {address} stands; see this container's log"
    return ""


def trainer(folder: Path = TRAINERS) -> str:
    """What is wrong with the trainer, "" if nothing is."""
    name = socket.gethostname().split(".")[0][:40]
    try:
        beats = [entry.stat().st_mtime for entry in folder.iterdir() if entry.name.startswith(f"{name}-")]
    except OSError as error:
        return f"the mailbox cannot be read: {error.strerror}"
    if not beats:
        return "the trainer has not begun"
    silence = time.time() - max(beats)
    return "" if silence < SILENCE_S else f"the trainer is silent for {silence:.0f} s"


def is_held(lock: Path) -> bool:
    """Whether another process has locked this file."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def connected_ports(tables: Path) -> set[int]:
    """Remote ports of the established connections of this network namespace, from the kernel's own tables."""
    ports = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (tables / table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for fields in map(str.split, lines):
            if len(fields) > 3 and fields[3] == ESTABLISHED:
                ports.add(int(fields[2].rpartition(":")[2], 16))
    return ports


if __name__ == "__main__":
    trouble = {"agent": agent, "trainer": trainer}[sys.argv[1]]()
    print(trouble or "at work")
    sys.exit(1 if trouble else 0)
