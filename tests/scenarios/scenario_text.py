"""A scenario's file: what it shows, commands, and below each, indented, what is answered.

    # Row 22. A second commit of the same bytes gets the same receipt and counts once.

    commit run-1.1.1.north
      acknowledge north run-1.1.1.north stored
    commit run-1.1.1.north
      the same receipt: stored, epoch 1

Lines that begin with `#` and empty lines are the reader's. `perform` makes the file as it would be
with the answers of today; a test compares, `--rewrite` writes it.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from scenario_script import ScenarioError, Script

PROMISE = re.compile(r"# (Rows? \d+(?:(?:-| and |, )\d+)*|I\d+|Promise)\. .+\.")
"""The first line: the row of the list of faults, the invariant, or a promise of the protocol, in words."""

FOLDER = Path(__file__).resolve().parent / "testdata"


def performed(text: str, name: str = "scenario") -> str:
    """The text with the answers of today; `AssertionError` names the line that makes no sense."""
    script = Script()
    lines: list[str] = []
    for number, written in enumerate(text.splitlines(), 1):
        if written.startswith("  "):
            continue
        lines.append(written.rstrip())
        if not written.strip() or written.startswith("#"):
            continue
        try:
            answers = script.obey(written)
        except ScenarioError as error:
            raise AssertionError(f"{name}, line {number}: {written}\n{error}") from error
        lines += [f"  {answer}" for answer in answers]
    return "\n".join(lines) + "\n"


def difference(written: str, found: str, name: str) -> str:
    """What differs, as a patch from the file to the answers of today; "" if nothing does."""
    lines = difflib.unified_diff(
        written.splitlines(),
        found.splitlines(),
        f"{name} as written",
        f"{name} as answered",
        lineterm="",
        n=6,
    )
    return "\n".join(lines)
