"""`fedtrain audit`: read a journal, and prove that it is what it was. Needs no network."""

from __future__ import annotations

import functools
import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedtrain.cli import output
from fedtrain.cli.options import Json
from fedtrain.errors import ConfigError, IntegrityError, RemoteError

if TYPE_CHECKING:
    from fedtrain.storage.audit import AuditReport, CheckSignature
    from fedtrain.storage.chain import Row, SignedHead

app = typer.Typer(no_args_is_help=True)

JournalFile = Annotated[Path, typer.Argument(metavar="JOURNAL", help="The journal's file.")]


@app.command()
def verify(
    journal: JournalFile,
    heads: Annotated[
        Path | None,
        typer.Option("--heads", metavar="DIR", help="Heads that sites kept, checked too."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The owner's public key; by default found beside JOURNAL."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check every row, the chain, and every signed head. Exit code 5 if anything does not hold."""
    report = examine(journal, heads, key)
    document = {
        "journal": str(journal),
        "verified": not report.problems,
        "rows": report.rows,
        "head": {"sequence": report.head[0], "hash": report.head[1]},
        "heads_checked": report.heads_checked,
        "problems": list(report.problems),
    }
    if json:
        output.emit(document, as_json=True)
    else:
        for problem in report.problems:
            output.say(output.printable(problem))
        output.say(
            f"{report.rows} rows, {report.heads_checked} signed heads checked, last row {report.head[1]}"
        )
    if report.problems:
        raise IntegrityError(f"{journal} does not verify: {report.problems[0]}")
    if not report.heads_checked:
        output.note(
            "fedtrain: no signed head was there, so only the chain is proven: add the sites' with --heads"
        )


def examine(journal: Path, heads: Path | None, key: Path | None) -> AuditReport:
    """Hold a journal against its chain, its own signed heads and those that sites kept.

    Args:
        heads: a folder with kept heads at any depth, None for none.
        key: file with the owner's public message key, None for the one beside the journal.
    """
    from fedtrain.storage import audit

    check = _check_signature(_existing(journal), key)
    return audit.verify(journal, check, _foreign_heads(heads) if heads else ())


@app.command()
def show(
    journal: JournalFile,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only this run's rows.")] = None,
    json: Json = False,
) -> None:
    """Print a journal's rows, oldest first."""
    from fedtrain.storage.journal import Journal

    book = Journal.open(_existing(journal), writer=False)
    try:
        rows = (row for row in book.read() if run is None or row.run == run)
        if json:
            output.emit({"journal": str(journal), "rows": [_row_document(row) for row in rows]}, as_json=True)
            return
        for row in rows:
            output.say(
                f"{row.sequence:>7}  {output.utc(row.at_ms)}  {output.printable(f'{row.kind} {row.payload}')}"
            )
    finally:
        book.close()


def _row_document(row: Row) -> dict[str, Any]:
    try:
        payload = json_format.loads(row.payload)
    except (ValueError, RecursionError):
        payload = row.payload  # the chain holds, but the row was not written by fedtrain
    return {**row._asdict(), "payload": payload}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError("no such file: name a journal, e.g. DIR/state/journal.db", file=str(path))
    return path


def _check_signature(journal: Path, key: Path | None) -> CheckSignature:
    """Holds signatures against the owner's public key, which is read once a signature is there to check."""
    from fedtrain.trust.statements import verify_head

    @functools.cache
    def public() -> str:
        return _public_key(journal, key)

    def check(message: bytes, signature: bytes, _: str) -> bool:
        try:
            verify_head(message, public(), signature)
        except RemoteError:
            return False
        return True

    return check


def _public_key(journal: Path, key: Path | None) -> str:
    """The key that `--key` names, or the one that lies beside the journal."""
    from fedtrain.trust.keys import check_public

    path = journal.with_name("message.pub") if key is None else key
    try:
        return check_public(path.read_text(encoding="ascii").strip())
    except FileNotFoundError as error:
        advice = (
            "name the journal owner's public key with --key, e.g. coordinator.pub in a site's state folder"
        )
        raise ConfigError(f"no such file: {advice}", file=str(path)) from error
    except (OSError, UnicodeDecodeError, RemoteError) as error:
        raise ConfigError(f"is not a public message key ({error})", file=str(path)) from error


def _foreign_heads(folder: Path) -> list[SignedHead]:
    """Heads of this journal that sites kept, one file each, anywhere below `folder`."""
    from fedtrain.core import canonical
    from fedtrain.storage.chain import SignedHead
    from fedtrain.trust.private_files import read_public

    files = sorted(path for path in folder.rglob("*.json") if path.stem.isdigit())
    if not files:
        raise ConfigError(
            "holds no heads (SEQUENCE.json): name a folder with what sites kept, e.g. their state/heads",
            file=str(folder),
        )
    heads = []
    for path in files:
        try:
            heads.append(canonical.decode(SignedHead, read_public(path, "is gone")))
        except RemoteError as error:
            raise IntegrityError(f"{path} is not a signed head ({error})") from error
    return heads
