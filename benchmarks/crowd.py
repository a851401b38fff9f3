"""A crowd of light sites for measurements: real certificates, real sessions, no agent behind them.

Each light site is the product's own `peer.session.Session` over its own `CoordinatorClient` (a
connection, mutual TLS 1.3, back-off and all), with a desk that only beats at the pace it is told.
A thousand whole agents would not fit on this machine; for the coordinator the difference is none.

    python benchmarks/crowd.py sites FILE FIRST LAST    # the sites FIRST..LAST-1 of FILE, in one process
    python benchmarks/crowd.py bare HOME PORT           # a bare grpc.aio server, to compare with

are what the other scripts start. A process of sites answers each line on its standard input with
one JSON line: how many are attached, and how many sessions they have opened so far.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc
import psutil
import uvloop

import fedtrain
from fedtrain.core import events as ev, messages as msg
from fedtrain.core.driver import entry_of
from fedtrain.core.pacing import beat_ms
from fedtrain.errors import StaleRound, UnreachableError
from fedtrain.methods.codecs import CODECS
from fedtrain.peer.backoff import early_s
from fedtrain.peer.session import Session
from fedtrain.storage.journal import Journal
from fedtrain.trust.enrolment import enrol
from fedtrain.trust.folders import load_coordinator
from fedtrain.trust.identity import Role
from fedtrain.trust.invites import make_invite
from fedtrain.trust.keys import MessageKey, make_tls_key_and_csr
from fedtrain.wire import convert
from fedtrain.wire.calls import call
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials, server_credentials, server_options

CHANCE = random.SystemRandom()

PROCESSES = 2
"""Of light sites: as many as there are cores here."""

SPARE_DESCRIPTORS = 200
"""Beside the sockets: files, the loop's own, libraries."""

CROWD_S = 180.0
"""For a whole crowd to attach, on a machine that others use too."""


def allow_descriptors(sockets: int) -> None:
    """Raise the soft limit on open descriptors for this process and its children, if need be."""
    wanted = sockets + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(
            f"{sockets} peers need {wanted} open descriptors and this machine allows {hard}: raise the hard "
            "limit (`ulimit -Hn`), or measure fewer peers"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def enrol_crowd(home: Path, count: int) -> Path:
    """Enrol `count` sites with the stopped coordinator of `home`; returns the file of their identities.

    The same steps as an enrolment over the wire, keys, requests, certificates and events, without it.
    """
    keys = load_coordinator(home / "state")
    now_ms = time.time_ns() // 1_000_000
    address, authority = keys.membership.address, keys.authority
    sites, entries = [], []
    for index in range(count):
        name = f"light-{index:05d}"
        invite = make_invite(authority, name, Role.SITE, address, now_ms, 600_000)
        key_pem, csr_pem = make_tls_key_and_csr(name)
        public = MessageKey.generate().public
        made = enrol(authority, invite.facts, Role.SITE, csr_pem, public, now_ms)
        certificate = made.certificate_pem.decode()
        fingerprint, role = invite.facts.fingerprint, Role.SITE.value
        entries += [
            entry_of(ev.MemberInvited(now_ms, name, role, fingerprint, invite.expires_ms)),
            entry_of(
                ev.MemberEnrolled(now_ms, name, role, fingerprint, made.key_digest, certificate, public)
            ),
        ]
        sites.append({"name": name, "key": key_pem.decode(), "certificate": certificate})
    journal = Journal.open(home / "state" / "journal.db", lock=home / "state" / "lock")
    try:
        journal.append(entries)
    finally:
        journal.close()
    ca = authority.certificate_pem.decode()
    crowd = {"address": address, "server_name": keys.membership.server_name, "ca": ca, "sites": sites}
    path = home.parent / "crowd.json"
    path.touch(0o600)
    path.write_text(json.dumps(crowd))
    return path


class Crowd:
    """The light sites of a file, in a few processes; a context manager.

    Args:
        file: from `enrol_crowd`.
        count: how many of them.
        log: where the processes' complaints go.
    """

    def __init__(self, file: Path, count: int, log: Path) -> None:
        self._count = count
        bounds = [count * part // PROCESSES for part in range(PROCESSES + 1)]
        with open(log, "ab") as errors:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, __file__, "sites", str(file), str(first), str(last)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
                for first, last in itertools.pairwise(bounds)
            ]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()

    def tell(self) -> dict[str, int]:
        """Sums over all sites: `attached` now, `sessions` opened and `refusals` heard since the start."""
        totals: dict[str, int] = {}
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("?\n")
            process.stdin.flush()
            for key, value in json.loads(process.stdout.readline()).items():
                totals[key] = totals.get(key, 0) + value
        return totals

    def wait(self, holds: Callable[[dict[str, int]], bool] | None = None) -> float:
        """Seconds until all are attached (or until what was asked for holds)."""
        began = time.monotonic()
        while True:
            told = self.tell()
            if holds(told) if holds else told["attached"] == self._count:
                return time.monotonic() - began
            if time.monotonic() - began > CROWD_S:
                raise RuntimeError(f"after {CROWD_S:.0f} s only {told} of {self._count} sites")
            time.sleep(0.1)


class LightSite:
    """A session's desk that says nothing but that it lives."""

    def __init__(self, site: dict[str, str], crowd: dict[str, Any]) -> None:
        credentials = channel_credentials(
            site["key"].encode(), site["certificate"].encode(), crowd["ca"].encode()
        )
        self.client = CoordinatorClient(crowd["address"], credentials, crowd["server_name"])
        self.session = Session(self.client, self)
        self._pace_s = 5.0
        self._epoch = 0

    async def live(self) -> None:
        """Attend and beat for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.session.keep())
            group.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(early_s(self._pace_s, CHANCE))
            self.session.say(msg.Heartbeat())

    def greet(self) -> msg.Hello:
        """A hello of a site that holds nothing."""
        return msg.Hello(
            protocol=msg.PROTOCOL_VERSION,
            version=fedtrain.__version__,
            session=secrets.token_hex(8),
            tasks=("synthetic",),
            codecs=tuple(CODECS),
        )

    def welcome(self, welcome: msg.Welcome) -> None:
        """Take the pace up."""
        self._pace_s = beat_ms(welcome.heartbeat_ms, (), welcome.protocol) / 1000

    def receive(self, message: msg.ToPeer) -> None:
        """A light site has no part in any run."""

    def admit_epoch(self, epoch: int) -> None:
        """As an agent does."""
        if epoch < self._epoch:
            raise StaleRound(f"epoch {epoch} after {self._epoch}")
        self._epoch = epoch

    def explain(self, error: UnreachableError) -> str:
        """As it is."""
        return str(error)


async def run_sites(path: Path, first: int, last: int) -> None:
    """Live until the standard input ends; answer its lines."""
    crowd = json.loads(path.read_text())
    sites = [LightSite(site, crowd) for site in crowd["sites"][first:last]]
    tasks = [asyncio.create_task(site.live()) for site in sites]
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        for task in tasks:
            if task.done():
                task.result()
        attached = sum(site.session.attached.is_set() for site in sites)
        sessions = sum(site.session.number for site in sites)
        print(json.dumps({"attached": attached, "sessions": sessions}), flush=True)
    os._exit(0)  # nobody waits for a thousand goodbyes


async def run_bare(home: Path, port: int, pace_ms: int) -> None:
    """A grpc.aio server with the same credentials and options that welcomes, and reads for ever."""
    keys = load_coordinator(home / "state")
    version = fedtrain.__version__
    welcome = msg.Welcome(keys.membership.consortium, msg.PROTOCOL_VERSION, version, 0, pace_ms)
    raw_welcome = convert.encode_to_peer(1, welcome)

    async def attend(raws: Any, context: Any) -> None:
        await context.read()
        await context.write(raw_welcome)
        async for _ in raws:
            pass

    handler = grpc.stream_stream_rpc_method_handler(attend)
    server = grpc.aio.server(options=server_options())
    path = call("Session", "Attend").path
    service, _, method = path[1:].partition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    credentials = server_credentials(
        keys.server_key_pem, keys.server_certificate_pem, keys.authority.certificate_pem
    )
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    await server.wait_for_termination()


@contextlib.contextmanager
def bare_server(home: Path, port: int, pace_ms: int, log: Path) -> Iterator[psutil.Process]:
    """The bare server as a process."""
    with open(log, "ab") as errors:
        child = subprocess.Popen(
            [sys.executable, __file__, "bare", str(home), str(port), str(pace_ms)], stderr=errors
        )
    try:
        yield psutil.Process(child.pid)
    finally:
        child.kill()
        child.wait()


def main() -> None:
    """Command line of the processes that the scripts start."""
    parser = argparse.ArgumentParser(description="Processes of a crowd; started by other scripts.")
    kinds = parser.add_subparsers(required=True, dest="kind")
    sites = kinds.add_parser("sites")
    sites.add_argument("file", type=Path)
    sites.add_argument("first", type=int)
    sites.add_argument("last", type=int)
    bare = kinds.add_parser("bare")
    bare.add_argument("home", type=Path)
    bare.add_argument("port", type=int)
    bare.add_argument("pace_ms", type=int)
    options = parser.parse_args()
    if options.kind == "sites":
        work = run_sites(options.file, options.first, options.last)
    else:
        work = run_bare(options.home, options.port, options.pace_ms)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
