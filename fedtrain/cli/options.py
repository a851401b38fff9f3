"""Options that several commands share, spelled the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Dir = Annotated[Path, typer.Option("--dir", help="A folder made by `join` or `coordinator init`.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.")]

HERE = Path()
"""Default of `--dir`."""
