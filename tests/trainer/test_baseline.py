"""Baselines: the same task alone or on everything, measured on every site's held-out text."""

from __future__ import annotations

import json

import pytest
import yaml

from fedtrain.trainer.baseline import main


@pytest.fixture
def run_file(tmp_path, language_task):
    """A run's YAML with the tiny task, and sections that a baseline does not read."""
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump({"run": "tiny-run", "seed": 1, "task": language_task, "rounds": {"count": 9}})
    )
    return path


def baseline(capsys, run_file, *more: object) -> dict:
    """The document of a baseline that worked."""
    assert main(["--run", str(run_file), "--name", "x", *map(str, more)]) == 0
    return json.loads(capsys.readouterr().out)


def test_training_lowers_the_loss_and_is_repeatable(site, run_file, capsys):
    """More steps, a lower loss on the site's held-out text; the same command, the same figures."""
    sites = ("--train", site.peer, "--evaluate", site.peer)
    before, after, again = (baseline(capsys, run_file, *sites, "--steps", n) for n in (0, 40, 40))
    assert after["loss"]["here"] < before["loss"]["here"] - 0.3
    assert after["loss"] == again["loss"] and after["tokens"] == 40 * 4 * 16
    assert after["mean"] == pytest.approx(after["loss"]["here"])


def test_the_first_weights_are_those_of_the_run(site, run_file, capsys):
    """Zero steps measure the model that a seed order of the run makes, given as a file or not."""
    model, _ = site.first_model()
    own = baseline(capsys, run_file, "--evaluate", site.peer, "--steps", 0)
    given = baseline(capsys, run_file, "--evaluate", site.peer, "--steps", 0, "--model", model)
    assert own["loss"] == given["loss"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [(("--steps", "5"), "steps need data"), (("--steps", "0", "--model", "none.bin"), "none.bin")],
)
def test_what_is_missing_is_said(site, run_file, capsys, more, sentence):
    """Steps without data, or a model file that is not there, end in a sentence and not with 0."""
    assert main(["--run", str(run_file), "--name", "x", "--evaluate", str(site.peer), *more]) > 0
    assert sentence in capsys.readouterr().err


def test_a_file_that_is_no_run_is_said(site, tmp_path, capsys):
    """A site's file in place of a run's is refused with its name and exit code 2."""
    assert main(["--run", str(site.peer), "--name", "x", "--evaluate", str(site.peer), "--steps", "0"]) == 2
    assert "is not a run's file" in capsys.readouterr().err
