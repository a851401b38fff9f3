"""Options that several commands share, spelled the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedtrain.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Dir = Annotated[Path, typer.Option("--dir", help="A folder made by `join` or `coordinator init`.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.")]

Version = Annotated[int | None, typer.Option(min=0, help="Which version; the newest by default.")]
JournalFile = Annotated[Path, typer.Argument(metavar="JOURNAL", help="The journal's file.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key", metavar="FILE", help="The coordinator's public key; by default found beside JOURNAL."
    ),
]

HERE = Path()
"""Default of `--dir`."""


def check_journal(path: Path) -> Path:
    """The path itself, if there is a file."""
    if not path.is_file():
        raise ConfigError("no such file: name a journal, e.g. DIR/state/journal.db", file=str(path))
    return path
