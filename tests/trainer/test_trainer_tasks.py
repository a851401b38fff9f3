"""The tasks: one conformance suite over the table, then what each promises by itself."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedtrain.errors import ConfigError
from fedtrain.trainer.data import DataSource, read_datasets
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks import TASKS, build_task, installed_tasks
from fedtrain.trainer.tasks.task import Task, Work

ROOT = Path(__file__).parents[2]


CLASSIFIER_TASK = {
    "name": "classifier",
    "data": "flowers",
    "model": {"features": 4, "classes": 3, "hidden": [8], "norm": "group", "low": 0, "high": 8},
    "training": {"learning_rate": 0.01, "batch_size": 4},
}
CLASSIFIER_DATA = """  flowers:
    path: iris:1/2
    format: scikit-learn
    rights: {execute: [classifier]}
"""


class Memory:
    """Weights in memory, as a task reads them."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def num_elements(self) -> int:
        return self.values.size

    def read(self, start: int, out: np.ndarray) -> None:
        out[:] = self.values[start : start + out.size]


class Recorder:
    """A context that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.paused_s = 0.0

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        self.steps.append(steps)

    def pause(self, seconds: float) -> None:
        self.paused_s += seconds


def work(steps: int = 5, steps_before: int = 0, round_index: int = 0, site: str = "here") -> Work:
    """A work order of run `r`, seed 1."""
    return Work("r", 1, round_index, site, steps, steps_before)


def change(task: Task, outcome, piece: int = 1 << 20) -> np.ndarray:
    """The whole pseudo-gradient, asked for in pieces."""
    out = np.empty(task.layout().num_elements, np.float32)
    for start in range(0, out.size, piece):
        outcome.pseudo_gradient(start, out[start : start + piece])
    return out


def first_weights(task: Task, seed: int = 1) -> Memory:
    """The weights of a seed order."""
    return Memory(np.concatenate([piece.copy() for piece in task.initial_weights(seed)]))


@pytest.fixture
def build(site, language_task, synthetic_task):
    """Builds a small task of a name, with changes to its training section."""
    plain = {"causal_lm": language_task, "synthetic": synthetic_task, "classifier": CLASSIFIER_TASK}
    site.peer.write_text(site.peer.read_text() + CLASSIFIER_DATA)

    def make(name: str, **training) -> Task:
        section = {**plain[name], "training": {**plain[name]["training"], **training}}
        spec = TaskSpec.from_plain(section)
        return build_task(spec, DataSource(spec.data, spec.name, read_datasets(site.peer)))

    return make


@pytest.mark.parametrize("name", TASKS)
def test_first_weights_fit_the_layout_and_follow_from_the_seed(build, name):
    """Pieces add up to the layout's elements, are finite, equal for equal seeds and else not."""
    task = build(name)
    first = first_weights(task).values
    assert first.dtype == np.float32 and first.shape == (task.layout().num_elements,)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first_weights(build(name)).values, first)
    assert not np.array_equal(first_weights(task, seed=2).values, first)


@pytest.mark.parametrize("name", TASKS)
def test_equal_work_gives_equal_bits(build, name):
    """The same work on the same weights from a fresh state is the same twice, in any pieces."""
    changes = []
    for piece in (1 << 20, 777):
        task = build(name)
        changes.append(change(task, task.train(first_weights(task), work(), Recorder()), piece))
    np.testing.assert_array_equal(changes[0], changes[1])
    assert np.isfinite(changes[0]).all() and changes[0].any()


@pytest.mark.parametrize("name", TASKS)
def test_every_step_is_reported_and_weighed(build, name):
    """Progress names each step once, and weight and steps are those of the order."""
    recorder = Recorder()
    task = build(name)
    outcome = task.train(first_weights(task), work(steps=5), recorder)
    assert recorder.steps == [1, 2, 3, 4, 5] and outcome.steps == 5
    assert outcome.weight > 0 and (outcome.loss is None or math.isfinite(outcome.loss))


@pytest.mark.parametrize("name", TASKS)
def test_state_goes_on_where_it_was_taken(build, name):
    """A round from a restored state gives the bits of a round that simply went on."""
    kept = build(name)
    start = first_weights(kept)
    kept.train(start, work(), Recorder())
    state = {key: value.copy() for key, value in kept.state().items()}
    expected = change(kept, kept.train(start, work(steps_before=5, round_index=1), Recorder()))
    other = build(name)
    other.restore(state)
    found = change(other, other.train(start, work(steps_before=5, round_index=1), Recorder()))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_leaves_training_alone(build, name):
    """A measurement between two rounds changes no bit of the second, and measures the same twice."""
    task, other = build(name), build(name)
    start = first_weights(task)
    for each in (task, other):
        each.train(start, work(), Recorder())
    assert task.evaluate(start) == task.evaluate(start)
    later = work(steps_before=5, round_index=1)
    np.testing.assert_array_equal(
        change(task, task.train(start, later, Recorder())),
        change(other, other.train(start, later, Recorder())),
    )


@pytest.mark.parametrize("name", TASKS)
def test_a_key_that_the_task_does_not_know_is_refused(build, name):
    """A slip of the pen in the training section is named, with the nearest valid key."""
    with pytest.raises(
        ConfigError, match=r"task\.training\.seconds_per_stp|task\.training\.batch_sizes"
    ) as caught:
        build(name, **({"batch_sizes": 1} if name in ("causal_lm", "classifier") else {"seconds_per_stp": 1}))
    assert "did you mean" in str(caught.value)


def test_third_parties_add_tasks_by_an_entry_point_and_cannot_take_ours(monkeypatch, tmp_path):
    """A distribution's entry point is installed beside ours; one with the name of ours is not used."""
    module = tmp_path / "elsewhere.py"
    module.write_text("class Other:\n    def __init__(self, spec, data):\n        self.spec = spec\n")
    info = tmp_path / "elsewhere-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[fedtrain.tasks]\nother = elsewhere:Other\nsynthetic = elsewhere:Other\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert set(installed_tasks()) == {"causal_lm", "classifier", "synthetic", "other"}
    data = DataSource("", "", {})
    assert type(build_task(TaskSpec("other", "", {}, {}), data)).__name__ == "Other"
    own = build_task(TaskSpec("synthetic", "", {"parameters": 1}, {}), data)
    assert type(own).__module__ == "fedtrain.trainer.tasks.synthetic"


def test_synthetic_work_needs_no_torch():
    """Process, session and synthetic task are imported and built without importing torch."""
    script = (
        "import sys, fedtrain.trainer.process\n"
        "from fedtrain.trainer.settings import TaskSpec; from fedtrain.trainer.data import DataSource\n"
        "from fedtrain.trainer.tasks import build_task\n"
        "build_task(TaskSpec('synthetic', '', {'parameters': 5}, {}), DataSource('', '', {}))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_synthetic_updates_change_with_round_and_site(build):
    """What travels differs from round to round and site to site, with a norm of about 1."""
    task = build("synthetic")
    start = first_weights(task)
    found = [
        change(task, task.train(start, work(round_index=round_index, site=site), Recorder()))
        for round_index, site in ((0, "here"), (1, "here"), (0, "there"))
    ]
    assert all(0.4 < np.linalg.norm(each) < 1.6 for each in found)
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[0], found[2])


def test_synthetic_steps_take_the_time_they_are_told(build):
    """`seconds_per_step` is slept once per step, by the context, which can be interrupted."""
    recorder = Recorder()
    task = build("synthetic", seconds_per_step=2.5)
    task.train(first_weights(task), work(steps=4), recorder)
    assert recorder.paused_s == 10.0


def test_a_language_model_learns(build):
    """Some steps on repetitive text take the held-out loss far below its start."""
    task = build("causal_lm")
    start = first_weights(task)
    end = Memory(start.values - change(task, task.train(start, work(steps=150), Recorder())))
    before, count = task.evaluate(start)
    after, _ = task.evaluate(end)
    assert before == pytest.approx(math.log(256), abs=0.3) and after < before - 2.0
    assert count % 16 == 0 and 4_000 < count <= 8192


def test_the_default_model_has_a_quarter_of_a_million_parameters():
    """The example run's model has the size that the figures are given for."""
    from fedtrain.trainer.baseline import read_run

    run = read_run(ROOT / "configs" / "library-lm.yaml", None)
    task = build_task(run.spec, DataSource("corpus", "causal_lm", {}))
    assert task.layout().num_elements == 246_240


def test_a_model_sees_only_what_came_before(build):
    """Changing a byte changes no prediction of an earlier position."""
    import torch

    model = build("causal_lm")._model
    tokens = torch.arange(16)[None, :]
    changed = tokens.clone()
    changed[0, 9] = 200
    with torch.inference_mode():
        first, second = model(tokens), model(changed)
    assert torch.equal(first[:, :9], second[:, :9])
    assert not torch.allclose(first[:, 9:], second[:, 9:])


def test_warm_up_counts_the_steps_of_the_sites_life(build):
    """The rate at a step follows from the steps before it, not from where the order began."""
    cold, warm = build("causal_lm", warmup_steps=1000), build("causal_lm", warmup_steps=1000)
    start = first_weights(cold)
    small = change(cold, cold.train(start, work(steps=1), Recorder()))
    large = change(warm, warm.train(start, work(steps=1, steps_before=99), Recorder()))
    assert np.abs(large).max() == pytest.approx(100 * np.abs(small).max(), rel=0.1)


def test_a_checkpoint_of_another_model_is_refused(build):
    """Moments of other shapes cannot be taken for this model's."""
    task = build("causal_lm")
    task.train(first_weights(task), work(steps=1), Recorder())
    state = {name: value[:-1] if value.ndim else value for name, value in task.state().items()}
    with pytest.raises(ConfigError, match="another model"):
        build("causal_lm").restore(state)


def test_a_model_that_diverges_is_told_apart_from_one_that_learns(build):
    """A loss that is not finite ends the training with the step, the round and the remedy."""
    task = build("causal_lm", learning_rate=1e8, warmup_steps=0)
    with pytest.raises(
        ConfigError, match=r"the loss became .* at step \d+ of 200 in round 3.*lower the learning rate"
    ):
        task.train(first_weights(task), work(steps=200, round_index=3), Recorder())
