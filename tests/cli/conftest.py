"""A command line that tests can call, and a real coordinator's end with made-up answers behind it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from fedtrain import coordinator
from fedtrain.cli import main
from fedtrain.core.spec import RunSpec
from fedtrain.errors import NotFoundError
from fedtrain.trust.folders import load_coordinator
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.options import server_credentials
from fedtrain.wire.server import open_server
from fedtrain.wire.values import Caller, Document, Export, ExportHead, InviteOrder


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that `--json` promises."""
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def fedtrain(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs one command line in this process."""

    def run(*words: object) -> Outcome:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@dataclass
class Answers:
    """An operations handler that answers from its fields and remembers what it was asked."""

    views: list[Document] = field(default_factory=list)
    model: bytes = b"model bytes"
    model_digest: str = "ab" * 32
    model_sha256: str = ""
    accepted: bool = True
    asked: list[Any] = field(default_factory=list)

    async def invite(self, caller: Caller, order: InviteOrder) -> str:
        self.asked.append((caller.name, order))
        return "fedtrain1-line"

    async def start(self, caller: Caller, spec: RunSpec) -> Document:
        self.asked.append(spec)
        return {"run": spec.run, "phase": "waiting"}

    async def check(self, caller: Caller, spec: RunSpec) -> Document:
        self.asked.append(spec)
        answer = {"answer": "accepts", "reasons": []}
        if not self.accepted:
            answer = {"answer": "refuses", "reasons": ["contract.runs does not allow it"]}
        return {"run": spec.run, "can_start": self.accepted, "sites": {"north": answer}}

    async def pause(self, caller: Caller, run: str) -> Document:
        return {"run": run, "phase": "paused"}

    async def resume(self, caller: Caller, run: str) -> Document:
        return {"run": run, "phase": "training"}

    async def stop(self, caller: Caller, run: str) -> Document:
        return {"run": run, "phase": "stopped"}

    async def runs(self, caller: Caller) -> Document:
        return {"runs": [{"run": "library-lm", "phase": "training", "version": 3}]}

    async def run(self, caller: Caller, run: str) -> Document:
        if run != "library-lm":
            raise NotFoundError(f"there is no run {run}")
        return {"run": run, "phase": "training", "reason": "evil \x1b[2J\r\nname"}

    async def rounds(self, caller: Caller, run: str) -> Document:
        return {"run": run, "rounds": [{"index": 1, "attempt": 1, "version": 1}]}

    async def members(self, caller: Caller) -> Document:
        return {"members": [{"name": "north", "role": "site", "attached": True}]}

    async def member(self, caller: Caller, name: str) -> Document:
        return {"name": name, "role": "site"}

    async def models(self, caller: Caller, run: str) -> Document:
        return {"run": run, "models": [{"version": 0, "model_digest": self.model_digest}]}

    async def watch(self, caller: Caller, run: str) -> AsyncIterator[Document]:
        for view in self.views:
            yield view

    async def export(self, caller: Caller, run: str, version: int | None) -> Export:
        async def pieces() -> AsyncIterator[bytes]:
            yield self.model[:4]
            yield self.model[4:]

        digest = self.model_sha256 or hashlib.sha256(self.model).hexdigest()
        return Export(ExportHead(version or 7, len(self.model), digest, self.model_digest), pieces())

    async def journal(self, caller: Caller, after: int) -> AsyncIterator[Document]:
        yield {"sequence": after + 1}


def _judge(context: object, service: str, method: str) -> Caller:
    return Caller(name="operator", role="operator", fingerprint="", key_digest="", not_after_ms=0)


def _serve(folder: Path, address: str, answers: Answers, port: Future[int], stop: threading.Event) -> None:
    async def serve() -> None:
        keys = load_coordinator(folder / "state")
        credentials = server_credentials(
            keys.server_key_pem, keys.server_certificate_pem, keys.authority.certificate_pem
        )
        # The command line asks operations, and for invites, only.
        handlers = Handlers(Mock(), Mock(), Mock(), answers, Mock(invite=answers.invite))
        server, bound = await open_server(address, credentials, handlers, _judge)
        port.set_result(bound)
        await asyncio.to_thread(stop.wait)
        await server.stop(None)

    asyncio.run(serve())


@pytest.fixture
def answers() -> Answers:
    """What the coordinator behind `consortium` will say."""
    return Answers()


@pytest.fixture
def consortium(tmp_path: Path, answers: Answers) -> Iterator[Path]:
    """A coordinator's folder, with its operator, and a server on a free port that answers from `answers`."""
    folder, stop, port = tmp_path / "hub", threading.Event(), Future[int]()
    coordinator.init(folder, "test", "127.0.0.1:1")
    thread = threading.Thread(target=_serve, args=(folder, "127.0.0.1:0", answers, port, stop))
    thread.start()
    try:
        point_at(folder, port.result(timeout=30))
        yield folder
    finally:
        stop.set()
        thread.join()


def point_at(folder: Path, port: int) -> None:
    """Have the operator of `folder` dial a port that was not known when the folder was made."""
    file = folder / "operator" / "identity.json"
    identity = json.loads(file.read_text())
    file.write_text(json.dumps({**identity, "address": f"127.0.0.1:{port}"}))
