"""`fedtrain model`: what a run has published, and a copy of it as a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtrain.cli import output
from fedtrain.cli.options import HERE, Dir, Json, RunName, Version
from fedtrain.errors import ConfigError, IntegrityError, StorageError

if TYPE_CHECKING:
    from fedtrain.core.lineage import SignedLineage
    from fedtrain.wire.client import CoordinatorClient
    from fedtrain.wire.values import Export, ExportHead

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_models(run: RunName, folder: Dir = HERE, json: Json = False) -> None:
    """The published versions of a run."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.models(run)), json)


@app.command()
def export(
    run: RunName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    version: Version = None,
    format_name: Annotated[str, typer.Option("--format", help="safetensors.")] = "safetensors",
    folder: Dir = HERE,
    json: Json = False,
) -> None:
    """Write a published model to a file, checked against its digest."""
    from fedtrain.cli.session import ask

    if format_name == "hf":
        raise ConfigError("hf is not available for this model yet; valid here: safetensors", key="--format")
    if format_name != "safetensors":
        raise ConfigError(f"found {format_name!r}; valid here: safetensors", key="--format")
    if out.is_dir():
        raise ConfigError("OUT is a folder: name the file to write, e.g. model.safetensors", file=str(out))
    head = ask(folder, lambda client: _export(client, run, version, out))
    if json:
        document = {
            "run": run,
            "version": head.version,
            "path": str(out),
            "size_bytes": head.size_bytes,
            "sha256": head.digest,
            "model_digest": head.model_digest,
        }
        output.emit(document, as_json=True)
    else:
        output.say(f"{output.printable(out)}  version {head.version}  model digest {head.model_digest}")


@app.command()
def lineage(run: RunName, version: Version = None, folder: Dir = HERE, json: Json = False) -> None:
    """Where a version comes from, signed by the coordinator. With --json, the document to keep."""
    from fedtrain.cli.lineage import show
    from fedtrain.core import canonical

    signed = _signed_lineage(folder, run, version)
    if json:
        output.emit(canonical.to_plain(signed), as_json=True)
        return
    show(signed.lineage)
    output.say(output.printable(f"signed by the coordinator of {signed.consortium}, key {signed.key_id}"))


@app.command()
def card(
    run: RunName,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The file to write; else it is printed.")
    ] = None,
    version: Version = None,
    folder: Dir = HERE,
) -> None:
    """A model card (markdown), made from the signed lineage and from nothing else."""
    from fedtrain.cli.lineage import card as card_of, write_card

    write_card(card_of(_signed_lineage(folder, run, version)), out)


def _signed_lineage(folder: Path, run: str, version: int | None) -> SignedLineage:
    """The coordinator's answer, whose signatures hold."""
    from fedtrain.cli.lineage import from_answer
    from fedtrain.cli.session import ask, load_identity

    document = ask(folder, lambda client: client.lineage(run, version))
    return from_answer(document, load_identity(folder)[0].coordinator_public)


async def _export(client: CoordinatorClient, run: str, version: int | None, out: Path) -> ExportHead:
    export = await client.export(run, version)
    await save(export, out)
    return export.head


async def save(export: Export, out: Path) -> None:
    """Write the export to `out`: whole, durable and as its head promised, or not at all.

    Raises `IntegrityError` if the bytes are not those of the digest, `StorageError` if the disk refuses.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        with open(partial, "xb") as file:
            async for piece in export.pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != export.head.digest:
            raise IntegrityError(
                f"the model that arrived has SHA-256 {digest.hexdigest()}, and the coordinator promised "
                f"{export.head.digest}: nothing was written; try again, and tell its operator if it recurs"
            )
        partial.replace(out)
    except OSError as error:
        raise StorageError(
            f"cannot write {out} ({error.strerror or error}): check the folder and its free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
