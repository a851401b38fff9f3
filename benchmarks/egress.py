"""The egress account against the socket: does what a site says has left agree with what went through?

    python benchmarks/egress.py [--quick]

A relay between one site's agent and the coordinator counts every byte that the agent sends, TLS and all. The
run is a real one. In its midst the relay breaks the connection half-way through an upload, which is resumed;
the certificate is renewed, the agent is killed once and started again, and at the end it is stopped. Then
the site's own account, `egress show --json`, is held against the relay.
"""

from __future__ import annotations

import argparse
import array
import fcntl
import functools
import json
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

from consortium import REPOSITORY, Consortium, Work, emit
from relay import Relay

GOAL = 0.01
SITE = "site-0"
ELEMENT_BYTES = 4
END_S = 30.0

CERTIFICATE_S = 40
"""So the certificate is renewed, over a new connection, at half of it."""

RENEWAL = "Enrolment.Renew"
ENROLMENT = "Enrolment.Enrol"
"""Not held against the relay: `join` dials the address in its invite."""

KEPT_S = 7.0
"""Longer than an agent takes to keep what is not in its journal yet, so that a kill loses nothing."""


class BreakingRelay(Relay):
    """Cuts a connection once, when so many bytes more have gone up.

    Attributes:
        breaks: connections cut so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.breaks = 0
        self._break_at: int | None = None

    def break_after(self, size_bytes: int) -> None:
        """From now on, so many bytes until the cut."""
        self._break_at = self.up_bytes + size_bytes

    def _carry(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        super()._carry(_Watched(source, self) if up else source, target, up)

    def cut(self, source: socket.socket) -> bool:
        """Whether this connection is to be cut now; what has come and was not read is counted."""
        if self._break_at is None or self.up_bytes < self._break_at:
            return False
        self._break_at = None
        self.breaks += 1
        unread = array.array("i", [0])
        fcntl.ioctl(source, termios.FIONREAD, unread)
        self.up_bytes += unread[0]
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        source.close()
        return True


class _Watched:
    """The agent's end of a connection, as the relay reads it."""

    def __init__(self, source: socket.socket, relay: BreakingRelay) -> None:
        self._source = source
        self._relay = relay

    def recv_into(self, buffer: bytearray) -> int:
        return 0 if self._relay.cut(self._source) else self._source.recv_into(buffer)


def measure(folder: Path, parameters: int, rounds: int) -> dict[str, Any]:
    """One run over the relay; bytes by the account and by the relay."""
    relay = BreakingRelay()
    through = functools.cache(relay.start)
    lifetime = ("--certificates", f"{CERTIFICATE_S}s")
    with Consortium(folder, 1, lambda port, _: through(port), lifetime) as consortium:
        consortium.measure(Work("calm", parameters, rounds))
        relay.break_after(parameters * ELEMENT_BYTES * 3 // 2)
        consortium.measure(Work("broken", parameters, rounds))
        time.sleep(KEPT_S)
        wait_for_renewal(consortium.site(SITE))
        consortium.kill(SITE)
        consortium.launch(SITE)
        consortium.measure(Work("again", parameters, 1))
        agent = consortium.children[SITE]
        agent.terminate()
        agent.wait(END_S)
        consortium.launch(SITE)
        account = shown(consortium.site(SITE))
        seen = relay.up_bytes
        consortium.check()
    relay.stop()
    sizes: dict[str, list[int]] = {}
    for upload in account["uploads"]:
        sizes.setdefault(upload["order"], []).append(upload["size_bytes"])
    kinds = {kind["kind"]: kind["size_bytes"] for kind in account["kinds"]}
    told = account["total_bytes"] - kinds.pop(ENROLMENT)
    apart = told / seen - 1
    return {
        "benchmark": "egress",
        "parameters": parameters,
        "account_bytes": told,
        "socket_bytes": seen,
        "apart": round(apart, 6),
        "broken_connections": relay.breaks,
        "resumed_uploads": {order: parts for order, parts in sizes.items() if len(parts) > 1},
        "uploads": len(account["uploads"]),
        "uploaded_bytes": account["uploaded_bytes"],
        "kinds": kinds,
        "counted": sorted({upload["counted"] for upload in account["uploads"]}),
        "problems": account["problems"],
        "goal_met": abs(apart) <= GOAL and not account["problems"],
    }


def wait_for_renewal(site: Path) -> None:
    """Until the site's account tells of a renewed certificate."""
    end = time.monotonic() + CERTIFICATE_S
    while not any(kind["kind"] == RENEWAL for kind in shown(site)["kinds"]):
        if time.monotonic() > end:
            raise RuntimeError("the certificate was not renewed within its life")
        time.sleep(1.0)


def shown(site: Path) -> dict[str, Any]:
    """The site's own account, held against the coordinator's receipts."""
    command = [sys.executable, "-m", "fedtrain.cli", "egress", "show", str(site), "--verify", "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if not done.stdout:
        raise RuntimeError(f"egress show failed: {done.stderr.strip()}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def table(line: dict[str, Any]) -> str:
    """What left, by kind, and the two sums."""
    rows = [("uploads", line["uploaded_bytes"]), *sorted(line["kinds"].items())]
    rows += [("account", line["account_bytes"]), ("socket", line["socket_bytes"])]
    return "\n".join(f"{name:<24}{size_bytes:>14,}" for name, size_bytes in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="egress-") as name:
        line = measure(Path(name), 1_000_000 if quick else 10_000_000, 2 if quick else 3)
    print(table(line), file=sys.stderr)
    emit(line)
    return 0 if line["goal_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
