"""`fedtrain coordinator`: a consortium's centre, set up once and then served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedtrain.cli import output, vault

app = typer.Typer(no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]


@app.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The consortium's name: small letters, digits, hyphens.")],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where sites reach the coordinator.")],
) -> None:
    """Make a consortium: its certificate authority, the coordinator's keys, and an operator's."""
    from fedtrain import coordinator

    coordinator.init(folder, name, address)
    output.say(f"Consortium {output.printable(name)} is set up in {output.printable(folder)}.")
    output.say(f"Next: fedtrain coordinator serve {output.printable(folder)}")
    output.say(f"Then, for each site: fedtrain site invite NAME --dir {output.printable(folder)}")


@app.command()
def serve(
    folder: Folder,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Take the place of the coordinator that this folder was copied from; that one ends.",
        ),
    ] = False,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Listen there from now on, and say so in invites.")
    ] = "",
) -> None:
    """Serve until stopped. A restart goes on where the last one ended, however that was."""
    from fedtrain import coordinator

    output.log_to_stderr()
    coordinator.serve(folder, take_over, address)


app.command()(vault.backup)
app.command()(vault.restore)
