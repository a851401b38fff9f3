"""`fedtrain audit`: read a journal, and prove that it is what it was. Needs no network."""

from __future__ import annotations

import functools
import json as json_format
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedtrain.cli import output
from fedtrain.cli.lineage import lineage
from fedtrain.cli.options import JournalFile, Json, KeyFile, check_journal
from fedtrain.cli.story import site_of, tell
from fedtrain.errors import ConfigError, IntegrityError, RemoteError

if TYPE_CHECKING:
    from fedtrain.storage.audit import AuditReport, CheckSignature, KeptHead
    from fedtrain.storage.chain import Row
    from fedtrain.storage.tampering import Problem

app = typer.Typer(no_args_is_help=True)
app.command()(lineage)

_HEAD_FILE = re.compile(r"\d+(\.[0-9a-f]{16})?\.json")
_FOLDERS = ("heads", "state")
"""Names of folders that every site has: the one above says whose they are."""


@app.command()
def verify(
    journal: JournalFile,
    heads: Annotated[
        list[Path] | None,
        typer.Option(
            "--heads",
            metavar="PATH",
            help="Heads that sites kept: a folder, or a site's journal. May be given several times.",
        ),
    ] = None,
    key: KeyFile = None,
    json: Json = False,
) -> None:
    """Check every row, the chain, and every signed head. Exit code 5 if anything does not hold."""
    report = examine(journal, heads or (), key)
    document = {
        "journal": str(journal),
        "verified": not report.problems,
        "rows": report.rows,
        "head": {"sequence": report.head[0], "hash": report.head[1]},
        "heads_checked": report.heads_checked,
        "witnesses": {
            name: {"heads": count, "newest": newest} for name, (count, newest) in report.witnesses.items()
        },
        "problems": [vars(problem) for problem in report.problems],
    }
    if json:
        output.emit(document, as_json=True)
    else:
        for problem in report.problems:
            output.say(output.printable(problem))
        output.say(
            f"{report.rows} rows, {report.heads_checked} signed heads checked, last row {report.head[1]}"
        )
        for name, (count, newest) in report.witnesses.items():
            output.say(output.printable(f"{name}: {count} heads, the newest of row {newest}"))
    if report.problems:
        raise IntegrityError(f"{journal} does not verify: {report.problems[0]}")
    if not report.heads_checked:
        output.note(
            "fedtrain: no signed head was there, so only the chain is proven: add the sites' with --heads"
        )


def examine(journal: Path, heads: Sequence[Path], key: Path | None) -> AuditReport:
    """Hold a journal, the coordinator's or a site's, against its chain, its own signed heads and kept ones.

    Args:
        heads: folders with kept heads at any depth, or journals of sites.
        key: file with the coordinator's public message key, None for the one beside the journal.
    """
    from fedtrain.storage import audit

    check_journal(journal)
    public = functools.cache(lambda: public_key(journal, key))
    check = _check_signature(public)
    problems: list[Problem] = []
    foreign = [head for path in heads for head in _kept(path, public, problems)]
    report = audit.verify(journal, check, foreign)
    within = list(_witnessed(journal, public))
    problems += audit.check_witnessed(within, check)
    found = sorted((*report.problems, *problems), key=lambda problem: problem.sequence)
    return replace(report, heads_checked=report.heads_checked + len(within), problems=tuple(found))


@app.command()
def show(
    journal: JournalFile,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only this run's rows.")] = None,
    site: Annotated[
        str | None, typer.Option("--site", metavar="NAME", help="Only rows about this site or member.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="Only this kind. May be given several times."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only from this time on (UTC), e.g. 2026-11-23T10:30."),
    ] = None,
    after: Annotated[int, typer.Option("--after", min=0, help="Only rows behind this one.")] = 0,
    json: Json = False,
) -> None:
    """Print what a journal tells, a sentence a row, oldest first."""
    from fedtrain.storage.journal import Journal

    since_ms = _moment(since)
    book = Journal.open(check_journal(journal), writer=False)
    try:
        rows = (
            (row, payload)
            for row, payload in map(_read, book.read(after))
            if row.at_ms >= since_ms
            and run in (None, row.run)
            and site in (None, site_of(payload))
            and (not kind or row.kind in kind)
        )
        if json:
            told = [
                {**row._asdict(), "payload": payload, "sentence": tell(row.kind, payload)}
                for row, payload in rows
            ]
            output.emit({"journal": str(journal), "rows": told}, as_json=True)
            return
        for row, payload in rows:
            where = f"{row.run}: " if row.run else ""
            sentence = output.printable(f"{where}{tell(row.kind, payload)}")
            output.say(f"{row.sequence:>7}  {output.utc(row.at_ms)}  {sentence}")
    finally:
        book.close()


def _read(row: Row) -> tuple[Row, Any]:
    """A row and its payload; one that is no JSON was not written by fedtrain, and is told as it is."""
    try:
        return row, json_format.loads(row.payload)
    except (ValueError, RecursionError):
        return row, row.payload


def _moment(text: str | None) -> int:
    """UTC milliseconds of a date or a time."""
    if text is None:
        return 0
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{text[:40]!r} is no time; valid is e.g. 2026-11-23 or 2026-11-23T10:30:00", key="--since"
        ) from error
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def _check_signature(public: Callable[[], str]) -> CheckSignature:
    """Holds signatures against the coordinator's public key, which is read once there is one to check."""
    from fedtrain.trust.statements import head_check

    check = functools.cache(lambda: head_check([public()]))
    return lambda message, signature, key_id: check()(message, signature, key_id)


def public_key(journal: Path, key: Path | None) -> str:
    """The coordinator's public message key: in the file that `--key` names, or beside the journal."""
    from fedtrain.trust.keys import check_public

    beside = (journal.with_name(name) for name in ("message.pub", "coordinator.pub"))
    path = next((file for file in beside if file.is_file()), journal.with_name("message.pub"))
    path = path if key is None else key
    try:
        return check_public(path.read_text(encoding="ascii").strip())
    except FileNotFoundError as error:
        advice = "name the coordinator's public key with --key, e.g. coordinator.pub in a site's state folder"
        raise ConfigError(f"no such file: {advice}", file=str(path)) from error
    except (OSError, UnicodeDecodeError, RemoteError) as error:
        raise ConfigError(f"is not a public message key ({error})", file=str(path)) from error


def _kept(path: Path, public: Callable[[], str], problems: list[Problem]) -> Iterator[KeptHead]:
    """Heads of this journal that sites kept: one file each, anywhere below a folder; or a site's journal."""
    from fedtrain.core import canonical
    from fedtrain.storage.audit import KeptHead
    from fedtrain.storage.chain import SignedHead
    from fedtrain.storage.tampering import Problem
    from fedtrain.trust.private_files import read_public

    if path.is_file():
        yield from _witnessed(path, public)
        return
    files = sorted(file for file in path.rglob("*.json") if _HEAD_FILE.fullmatch(file.name))
    if not files:
        raise ConfigError(
            "holds no heads (SEQUENCE.json): name a folder with what sites kept, e.g. their state/heads",
            file=str(path),
        )
    for file in files:
        try:
            signed = canonical.decode(SignedHead, read_public(file, "is gone"))
        except RemoteError as error:
            what = f"{file} is not a signed head, so it proves nothing ({error})"
            problems.append(Problem("unreadable", 0, what, str(file)))
        else:
            yield KeptHead(signed, _owner(file), str(file))


def _witnessed(journal: Path, public: Callable[[], str]) -> Iterator[KeptHead]:
    """The heads in a site's journal; none are in a coordinator's, and then no key is asked for."""
    from fedtrain.storage.audit import witnessed
    from fedtrain.trust.keys import key_id

    for head in witnessed(journal, "", _owner(journal)):
        yield replace(head, signed=replace(head.signed, key_id=key_id(public())))


def _owner(path: Path) -> str:
    """The site that keeps a file: the folder around its `state` and `heads`."""
    return next((folder.name for folder in path.resolve().parents if folder.name not in _FOLDERS), "a site")
