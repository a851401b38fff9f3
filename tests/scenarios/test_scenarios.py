"""Every scenario in `testdata` is answered as it is written; `--rewrite` writes it as it is answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_text import FOLDER, PROMISE, difference, performed

SCENARIOS = sorted(FOLDER.glob("*.txt"))

START = """# Row 22. A start.

boot
enrol north south
attach north south
submit run-1
"""


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    """The machines answer every command of the file as the file says."""
    written = path.read_text(encoding="utf-8")
    found = performed(written, path.name)
    if request.config.getoption("--rewrite", default=False):  # known where this folder was named
        path.write_text(found, encoding="utf-8")
        return
    wrong = difference(written, found, path.name)
    assert not wrong, f"\n{wrong}\n\nif the new answers are right: pytest tests/scenarios --rewrite"


def test_scenarios_say_what_they_show() -> None:
    """The first line of each file names its row, invariant or promise, and no file shows nothing."""
    assert len(SCENARIOS) >= 25
    for path in SCENARIOS:
        text = path.read_text(encoding="utf-8")
        assert PROMISE.fullmatch(text.splitlines()[0]), f"{path.name}: {text.splitlines()[0]}"
        assert sum(line.startswith("  ") for line in text.splitlines()) >= 5, path.name


def test_a_wrong_answer_is_found() -> None:
    """Any answer that is changed, missing or too many shows up as a difference."""
    right = performed(START)
    assert difference(right, performed(right), "x") == ""
    lines = right.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("  invite"))
    for wrong in (
        [*lines[:place], *lines[place + 1 :]],
        [*lines[:place], lines[place] + "x", *lines[place + 1 :]],
        [*lines[:place], "  invite nobody", *lines[place:]],
    ):
        text = "\n".join(wrong)
        assert "invite" in difference(text, performed(text), "x")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fly north", "'fly' is none of aggregate, attach"),
        ("submit run-2 colour=red", "a run has no colour"),
        ("aggregate run-9", "no round of run-9 is open"),
        ("wait long", "'long' is no duration"),
        ("crash\nattach north", "the coordinator is down"),
        ("agent north receives run-1.0.1.north", "the agent of north is down"),
        ("agent north boot\nagent north receives run-1.7.1.north", "nobody handed out"),
        ("consent run-1.0.1.north crash=later", "crash=later is none of before-journal"),
    ],
)
def test_lines_that_make_no_sense(command: str, words: str) -> None:
    """A misspelt scenario fails with its line and a sentence, so that it cannot be rewritten silently."""
    with pytest.raises(AssertionError, match=words):
        performed(START + command)
