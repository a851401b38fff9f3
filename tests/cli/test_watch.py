"""`run watch`: what a person sees of a run, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedtrain.cli.watch import display, lines_of, table_of


def seat(standing: str, **more: Any) -> dict[str, Any]:
    empty = {"reason": "", "steps": 0, "steps_total": 20, "loss": None, "tokens_per_s": 0.0, "bytes_up": 0}
    return {**empty, "standing": standing, **more}


def view(phase: str, **more: Any) -> dict[str, Any]:
    seats = {
        "north": seat("stored", steps=20, loss=2.34567, bytes_up=250_000),
        "south": seat("refused", reason="contract.runs"),
    }
    return {
        "kind": "run",
        "run": "library-lm",
        "phase": phase,
        "reason": "",
        "version": 1,
        "rounds": 20,
        "round": {"index": 2, "attempt": 1, "seats": seats},
        "last": {
            "index": 1,
            "attempt": 1,
            "version": 1,
            "reason": "all sites are settled",
            "seats": {
                "north": {"standing": "stored", "reason": ""},
                "south": {"standing": "stored", "reason": ""},
            },
            "bytes_up": 500_000,
            "bytes_down": 1_500,
        },
        "evaluations": {"north": {"version": 1, "loss": 3.25, "count": 100}},
        "model_digest": "ab" * 32,
        **more,
    }


@pytest.mark.parametrize(("phase", "code"), [("done", 0), ("stopped", 3), ("paused", 3)])
def test_watch_ends_with_its_run(
    fedtrain: Any, consortium: Path, answers: Any, phase: str, code: int
) -> None:
    """The command ends when the run does, its exit code says how, and its reason is told."""
    answers.views = [view("training"), view(phase, round=None, reason="because")]
    outcome = fedtrain("run", "watch", "library-lm", "--dir", consortium)
    assert outcome.code == code
    assert f"run library-lm is {phase} at version 1: because" in outcome.err


def test_lines_tell_each_change_once(fedtrain: Any, consortium: Path, answers: Any) -> None:
    """Away from a terminal a view that changed nothing worth a line adds none."""
    answers.views = [view("training"), view("training"), {"kind": "later"}, view("done", round=None)]
    lines = fedtrain("run", "watch", "library-lm", "--dir", consortium).out.splitlines()
    assert len(lines) == len(set(lines))
    assert "library-lm round 2.1 south: refused (contract.runs)" in lines
    assert "library-lm: training" not in lines and lines[-1] == "library-lm: done"


def test_watch_that_breaks_off_is_opened_again(fedtrain: Any, consortium: Path, answers: Any) -> None:
    """A stream that ends before its run does is opened again, and the command goes on."""
    served = [[view("training")], [view("done", round=None)]]

    async def watch(caller: object, run: str) -> Any:
        for document in served.pop(0):
            yield document

    answers.watch = watch
    outcome = fedtrain("run", "watch", "library-lm", "--dir", consortium)
    assert outcome.code == 0 and not served


def test_lines_beside_a_document_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Where standard output holds a document, progress goes to standard error."""
    with display(to_stderr=True) as screen:
        screen.show(view("training"))
    captured = capsys.readouterr()
    assert captured.out == "" and "library-lm round 1 of 20: version 1" in captured.err


def test_lines_account_for_every_site_of_a_closed_round() -> None:
    """The line of a closed round names its version, losses, each site by standing, and the traffic."""
    record = view("training")["last"]
    record["seats"]["north"] |= {"train_loss": 2.5, "eval_loss": 2.75}
    said = dict(lines_of(view("training", last=record)))
    assert said["library-lm round 1 of 20"] == (
        "version 1; training loss north 2.500; held-out loss of the version before north 2.750; "
        "stored: north, south; 500 kB up, 1.5 kB down"
    )


def test_abandoned_round_says_so() -> None:
    """A round that led to no version is called abandoned."""
    record = {**view("training")["last"], "version": None, "reason": "no quorum"}
    said = dict(lines_of(view("training", last=record)))
    assert said["library-lm round 1 of 20"].startswith("abandoned (no quorum)")


def test_table_shows_every_site_and_no_control_characters() -> None:
    """The live table holds each site's standing, steps, loss and bytes, and escapes foreign text."""
    run = view("training")
    run["round"]["seats"]["south"]["reason"] = "\x1b[31mred [bold]markup[/bold]"
    console = Console(width=160, force_terminal=False)
    with console.capture() as captured:
        console.print(table_of(run))
    text = captured.get()
    for part in (
        "library-lm",
        "round 2 of 20",
        "north",
        "20/20",
        "2.3457",
        "250 kB",
        "refused",
        "[bold]markup",
    ):
        assert part in text
    assert "\x1b" not in text and "\\x1b[31mred" in text
