"""Virtual environments for rivals: made once under a cache folder, outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class RivalFailed(Exception):
    """The rival cannot be measured here; the sentence goes into the table in place of a figure."""


def cache_folder() -> Path:
    """Where environments live unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedtrain-rivals"


def prepare(folder: Path, name: str, package: str, wishes: Sequence[str]) -> tuple[Path, str]:
    """(the environment's `bin` folder, the installed version); installs on the first call.

    Args:
        folder: of all environments.
        name: of this one.
        package: whose version is told.
        wishes: requirements, the first that can be installed is taken.

    Raises `RivalFailed` with pip's last line.
    """
    programs = folder / name / "bin"
    if not (programs / "python").exists():
        _run([sys.executable, "-m", "venv", str(folder / name)])
    version = _version(programs, package)
    reason = ""
    for wish in wishes if not version else ():
        try:
            _run([str(programs / "python"), "-m", "pip", "install", "--quiet", wish, "numpy>=2"])
            version = _version(programs, package)
            break
        except RivalFailed as error:
            reason = str(error)
    if not version:
        raise RivalFailed(f"{package} cannot be installed here: {reason}")
    return programs, version


def _version(programs: Path, package: str) -> str:
    """Of an installed package, "" if it is not there."""
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    found = subprocess.run([str(programs / "python"), "-c", code, package], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else ""


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise RivalFailed(lines[-1])


def tail(folder: Path, pattern: str, count: int = 3) -> str:
    """The last lines of the logs in a folder, 600 characters at most, for a reason."""
    lines = []
    for path in sorted(folder.glob(pattern)):
        lines += [f"{path.name}: {line}" for line in path.read_text(errors="replace").splitlines()[-count:]]
    return " | ".join(lines)[-600:]
