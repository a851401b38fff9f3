"""Escape codes, markup and other people's words, wherever they are shown (row 71)."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from coordinator_world import spec_of
from hostile_world import Arena, Refusal, case, raw
from test_hostile_memory import join, served

from fedtrain.cli import main, output
from fedtrain.core import messages as msg
from fedtrain.core.ports import Entry
from fedtrain.errors import FedtrainError, RemoteError
from fedtrain.storage.journal import Journal
from fedtrain.trust.folders import MemberKeys, load_member
from fedtrain.wire.calls import call
from fedtrain.wire.records import IDENTIFIER
from fedtrain.wire.v1 import operations_pb2, session_pb2, transfer_pb2
from fedtrain.wire.values import InviteOrder

NASTY = "\x1b]0;owned\x07\x1b[2J\r\nfedtrain: all is well\u202e<script>alert(1)</script>\x00\u2028end"
TRICKS = {
    "parent": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "zero byte": "alpha\x00",
    "long": "a" * 10_000,
    "escape code": "\x1b[31malpha",
    "markup": "<b>alpha</b>",
    "blank": "",
    "dot": ".",
    "upper case": "Alpha",
    "another alphabet": "аlpha",
    "line": "alpha\n",
    "drive": "C:\\x",
}


async def test_names_with_tricks_cross_nowhere(arena: Arena) -> None:
    """A site, run, order, session or digest that is a path, an escape code, markup or far too long is refused
    by every call that takes one, with a printable sentence of bounded length; no file appears for it."""
    before = sorted(str(path) for path in arena.consortium.folder.rglob("*") if "journal" not in path.name)
    operator = arena.consortium.operator
    keys = arena.liar.keys
    for name, text in TRICKS.items():
        requests: list[tuple[str, bytes, bool]] = [
            ("Offer", transfer_pb2.Offer(order=text, digest="ab" * 32).SerializeToString(), False),
            ("Offer", transfer_pb2.Offer(order=arena.order.id, digest=text).SerializeToString(), False),
            ("Offer", transfer_pb2.Offer(order=f"{text}.1.1.x", digest="ab" * 32).SerializeToString(), False),
            ("Fetch", transfer_pb2.FetchRequest(digest=text).SerializeToString(), True),
            ("Send", transfer_pb2.Chunk(digest=text, data=b"x").SerializeToString(), False),
        ]
        for method, message, streaming_answer in requests:
            one = call("Transfer", method)
            answer = await raw(
                keys,
                one.path,
                [message] if one.client_streaming else message,
                streaming_answer=streaming_answer,
            )
            _check(name, answer)
        bodies: list[dict[str, Any]] = [{"failure": session_pb2.Failure(order=text, reason="no")}]
        if not IDENTIFIER.pattern.fullmatch(text):  # a session's name is no path, so it may be a dot
            bodies.append({"hello": session_pb2.Hello(session=text, version="1", protocol={"major": 1})})
        for body in bodies:
            message = session_pb2.FromPeer(**body).SerializeToString()
            _check(name, await raw(keys, call("Session", "Attend").path, [message], streaming_answer=True))
        for method, request in (
            ("Run", operations_pb2.RunName(run=text)),
            ("Export", operations_pb2.ExportRequest(run=text)),
            ("Member", operations_pb2.MemberName(name=text)),
        ):
            path = call("Operations", method).path
            found = await raw(operator_keys(arena), path, request.SerializeToString(), streaming_answer=True)
            _check(name, found)
        with case(name), pytest.raises(FedtrainError) as refused:
            await operator.invite(InviteOrder(text, "site", 600))
        assert str(refused.value).isprintable() and len(str(refused.value)) < 2_500
    after = sorted(str(path) for path in arena.consortium.folder.rglob("*") if "journal" not in path.name)
    assert after == before
    await arena.finish()


def operator_keys(arena: Arena) -> MemberKeys:
    return load_member(arena.consortium.folder / "coordinator" / "operator")


def _check(name: str, answer: object) -> None:
    assert isinstance(answer, Refusal), (name, answer)
    assert answer.code, (name, answer)
    assert answer.sentence.isprintable() and 0 < len(answer.sentence) < 2_100, (name, answer)


@pytest.mark.slow
async def test_a_sites_words_reach_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Version, phase, reasons and goodbye of a site, full of escape codes and markup, leave the coordinator's
    log, `run show`, `site show`, `run rounds` and `audit show` with printable lines only, and are journaled
    as they came."""
    async with served(tmp_path) as (_, operator):
        liar = await join(tmp_path, operator, "mallory")
        try:
            await operator.start(spec_of(run="one", sites=("mallory",), minimum=1, quorum=1))
            order = await liar.order()
            liar.outbox.put_nowait(msg.Heartbeat((msg.Progress(order.id, 1, phase=NASTY[:200]),)))
            liar.consent(order, NASTY, NASTY)
            liar.outbox.put_nowait(msg.Failure(order.id, NASTY))
            liar.outbox.put_nowait(msg.Goodbye(NASTY))
            await asyncio.wait_for(asyncio.gather(*liar.tasks, return_exceptions=True), 60)
        finally:
            await liar.close()
        home = tmp_path / "coordinator"
        for words in (
            ("run", "show", "one"),
            ("run", "rounds", "one"),
            ("run", "list"),
            ("site", "show", "mallory"),
            ("site", "list"),
        ):
            for extra in ((), ("--json",)):
                done = await asyncio.to_thread(main, [*words, *extra, "--dir", str(home)])
                shown = capsys.readouterr()
                assert done == 0, (words, shown.err)
                _check_printable(shown.out + shown.err)
                if extra:
                    json.loads(shown.out)
    journal = str(home / "state" / "journal.db")
    for extra in ((), ("--json",)):
        assert main(["audit", "show", journal, *extra]) == 0
        _check_printable(capsys.readouterr().out)
    assert "alert(1)" in (tmp_path / "log").read_text()
    _check_printable((tmp_path / "log").read_text())


def _check_printable(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.startswith("fedtrain: all is well"), "a line of their own making"


def test_the_log_keeps_an_event_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile argument, and a hostile exception's text in a traceback, are escaped in the log."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.root, "handlers", [])
    output.log_to_stderr()
    log = logging.getLogger("fedtrain.test")
    log.warning("refuses: %s", NASTY)
    try:
        raise RemoteError(NASTY)
    except RemoteError:
        log.exception("a bug: %s", NASTY)
    _check_printable(stream.getvalue())
    assert stream.getvalue().count("alert(1)") == 3


def test_a_hostile_journal_is_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`audit show` and `audit verify` of a journal that somebody wrote escape codes into show them spelled
    out."""
    path = tmp_path / "journal.db"
    journal = Journal.open(path)
    journal.append([Entry(int(time.time()), "one", "Booted", '{"epoch":1}')])
    journal.close()
    with sqlite3.connect(path) as connection:
        connection.execute("update rows set payload = ?, kind = ?, run = ?", (NASTY, NASTY, NASTY))
    for words in (("audit", "show"), ("audit", "verify")):
        for extra in ((), ("--json",)):
            main([*words, str(path), *extra])
            shown = capsys.readouterr()
            _check_printable(shown.out + shown.err)
