"""`fedtrain run`: start runs, follow them, and steer them."""

from __future__ import annotations

from typing import Annotated

import typer

from fedtrain.cli import output
from fedtrain.cli.options import HERE, Config, Dir, Json, RunName
from fedtrain.errors import EXIT_REFUSED

app = typer.Typer(no_args_is_help=True)


@app.command()
def check(config: Config, folder: Dir = HERE, json: Json = False) -> None:
    """Validate a run, and ask the sites who would refuse it and why; exit code 3 if too few agree."""
    from fedtrain.cli.session import ask
    from fedtrain.config import load_run

    spec = load_run(config).spec()
    answer = ask(folder, lambda client: client.check(spec))
    output.emit(answer, json)
    if not answer["can_start"]:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def start(config: Config, folder: Dir = HERE, json: Json = False) -> None:
    """Start a run."""
    from fedtrain.cli.session import ask
    from fedtrain.config import load_run

    spec = load_run(config).spec()
    output.emit(ask(folder, lambda client: client.start(spec)), json)


@app.command("list")
def list_runs(folder: Dir = HERE, json: Json = False) -> None:
    """All runs."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.runs()), json)


@app.command()
def show(run: RunName, folder: Dir = HERE, json: Json = False) -> None:
    """One run: phase, open round, sites, newest version."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.run(run)), json)


@app.command()
def rounds(run: RunName, folder: Dir = HERE, json: Json = False) -> None:
    """Closed rounds: who contributed, was late, refused or failed, and why."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.rounds(run)), json)


@app.command()
def watch(run: RunName, folder: Dir = HERE) -> None:
    """Follow a run until it ends: exit code 0 when it is done, 3 when it was stopped or paused."""
    from fedtrain.cli.session import ask
    from fedtrain.cli.watch import follow

    raise typer.Exit(ask(folder, lambda client: follow(client, run)))


@app.command()
def pause(run: RunName, folder: Dir = HERE, json: Json = False) -> None:
    """Start no further round. Work that is out may still arrive, and counts."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.pause(run)), json)


@app.command()
def resume(run: RunName, folder: Dir = HERE, json: Json = False) -> None:
    """Go on with a paused run."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.resume(run)), json)


@app.command()
def stop(run: RunName, folder: Dir = HERE, json: Json = False) -> None:
    """End a run for good. Published versions stay."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.stop(run)), json)


@app.command()
def rollback(
    run: RunName,
    to: Annotated[int, typer.Option(metavar="V", help="The version to go on from.")],
    folder: Dir = HERE,
    json: Json = False,
) -> None:
    """Go on from an earlier version: it becomes the newest one, and its rounds are made again."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.roll_back(run, to)), json)
