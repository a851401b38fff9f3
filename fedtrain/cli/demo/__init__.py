"""`fedtrain demo`: a whole consortium on this machine, from certificates to a verified journal.

Nothing in it is special to the demo: the coordinator, the agents and the trainers are the processes
that a real consortium runs, the certificates come from the real invite and join, and the files are
those in `configs/` and `peers/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedtrain.cli import output
from fedtrain.cli.options import Json


def demo(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A run's file; configs/library-lm.yaml.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where it lives; an interrupted one goes on.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the run file's seed.")] = None,
    json: Json = False,
) -> None:
    """Train one model at several sites on this machine, and compare it with training alone."""
    from fedtrain.cli.demo import report
    from fedtrain.cli.demo.show import run_show

    outcome = run_show(config, folder, seed, quiet=json)
    if json:
        output.emit(report.document(outcome), as_json=True)
    else:
        output.say_rich(report.tables(outcome))
        output.say(report.words(outcome))
    outcome.check()
