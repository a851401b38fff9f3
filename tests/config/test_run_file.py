"""What a run file may hold, and what a person is told about each mistake in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedtrain.config import load_run
from fedtrain.core import canonical
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.core.terms import read_asked
from fedtrain.errors import ConfigError
from fedtrain.methods.outer import OUTER

RUN = """\
run: library-lm
seed: 1
task:
  name: causal_lm
  model: {layers: 2, heads: 4, width: 96, context: 64, vocabulary: bytes}
  data: corpus
  training: {optimizer: adamw, learning_rate: 3.0e-3, batch_size: 16, warmup_steps: 60, precision: auto}
sites: {include: all, minimum: 2}
rounds: {count: 20, steps: 20, quorum: 2, quorum_share: 0.5,
  deadline_s: 300, patience_s: 60, heartbeat_s: 5, late: next_round}
outer: {name: average}
codec: {up: int8, down: int8}
aggregate: {name: mean, norm_max: 10.0}
privacy: {}
topology: star
evaluate: {every: 1}
"""

MINIMAL = "run: tiny\ntask: {name: synthetic}\nrounds: {count: 3, steps: 1}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_run(written(folder, text)).spec()
    return caught.value


def test_documented_run_loads_as_documented(tmp_path: Path) -> None:
    """The documented run file loads, and every key of it reaches the coordinator's specification."""
    spec = load_run(written(tmp_path, RUN)).spec()
    assert spec == RunSpec(
        run="library-lm",
        seed=1,
        task=spec.task,
        sites=(),
        minimum=2,
        rounds=20,
        steps=20,
        quorum=2,
        quorum_share=0.5,
        deadline_ms=300_000,
        patience_ms=60_000,
        heartbeat_ms=5_000,
        late=LatePolicy.NEXT_ROUND,
        outer="average",
        outer_params=spec.outer_params,
        outer_warmup_rounds=0,
        codec_up="int8",
        codec_down="int8",
        aggregator="mean",
        norm_max=10.0,
        evaluate_every=1,
    )
    task = json.loads(spec.task)
    assert task["model"]["width"] == 96 and task["training"]["learning_rate"] == 0.003
    assert set(task) == {"name", "model", "data", "training"}


def test_specification_survives_its_canonical_form(tmp_path: Path) -> None:
    """A specification read back from its canonical JSON, as the coordinator reads it, is the same."""
    spec = load_run(written(tmp_path, RUN)).spec()
    assert canonical.decode(RunSpec, canonical.encode(spec)) == spec


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    """A run that names only what has no default gets the documented defaults."""
    spec = load_run(written(tmp_path, MINIMAL)).spec()
    assert (spec.minimum, spec.quorum, spec.quorum_share) == (2, 2, 0.5)
    assert (spec.deadline_ms, spec.patience_ms, spec.heartbeat_ms) == (300_000, 60_000, 5_000)
    assert (spec.codec_up, spec.codec_down, spec.aggregator, spec.outer) == (
        "int8",
        "int8",
        "mean",
        "average",
    )
    assert spec.norm_max is None and spec.late is LatePolicy.NEXT_ROUND


def test_named_sites_are_sorted(tmp_path: Path) -> None:
    """Named sites reach the coordinator in canonical order."""
    spec = load_run(written(tmp_path, MINIMAL + "sites: {include: [c, a, b]}\n")).spec()
    assert spec.sites == ("a", "b", "c")


def test_nesterov_takes_its_settings_and_warmup(tmp_path: Path) -> None:
    """The outer optimiser's settings and its plain rounds reach the specification apart."""
    text = MINIMAL + "outer: {name: nesterov, learning_rate: 0.9, momentum: 0.3, warmup_rounds: 2}\n"
    spec = load_run(written(tmp_path, text)).spec()
    assert spec.outer == "nesterov" and spec.outer_warmup_rounds == 2
    assert spec.outer_params == OUTER["nesterov"].settings({"eta": 0.9, "mu": 0.3})


def test_durations_take_units(tmp_path: Path) -> None:
    """A key that ends in `_s` takes a bare number of seconds or a duration with its unit."""
    text = MINIMAL.replace("steps: 1", "steps: 1, deadline_s: 5m, patience_s: 1.5, heartbeat_s: 250ms")
    spec = load_run(written(tmp_path, text)).spec()
    assert (spec.deadline_ms, spec.patience_ms, spec.heartbeat_ms) == (300_000, 1_500, 250)


WRONG = [
    # (text to replace, replacement, line, key, words of the message)
    ("seed: 1", "sead: 1", 2, "sead", ["unknown key", "'seed'"]),
    ("seed: 1", "seed: one", 2, "seed", ["text 'one'", "integer"]),
    ("seed: 1", "seed: -1", 2, "seed", ["-1", "greater than or equal to 0"]),
    ("seed: 1", "seed: true", 2, "seed", ["true or false", "integer"]),
    ("seed: 1", f"seed: {10**30}", 2, "seed", ["less than or equal"]),
    ("run: library-lm", "run: Library_LM", 1, "run", ["'Library_LM'", "small letters"]),
    ("run: library-lm", "run: ../../etc", 1, "run", ["'../../etc'"]),
    ("run: library-lm\n", "", 1, "run", ["missing"]),
    ("  name: causal_lm\n", "", 3, "task.name", ["missing"]),
    ("  data: corpus", "  dataset: corpus", 6, "task.dataset", ["unknown key", "'data'"]),
    ("minimum: 2", "minimum: 0", 8, "sites.minimum", ["0", "greater than or equal to 1"]),
    ("minimum: 2", "minumum: 2", 8, "sites.minumum", ["'minimum'"]),
    ("include: all", "include: some", 8, "sites.include", ["'some'", "all"]),
    ("include: all", "include: []", 8, "sites.include", ["all"]),
    ("include: all", "include: [a, B]", 8, "sites.include[1]", ["'B'"]),
    ("include: all", "include: [a, a]", 8, "sites.include[1]", ["twice"]),
    ("include: all", "include: [a]", 8, "sites.minimum", ["2", "1 sites"]),
    ("count: 20", "count: 0", 9, "rounds.count", ["0", "1"]),
    ("count: 20", "count: 2.5", 9, "rounds.count", ["2.5", "integer"]),
    ("count: 20", 'count: "20"', 9, "rounds.count", ["text '20'", "integer"]),
    ("steps: 20,", "", 9, "rounds.steps", ["missing"]),
    ("quorum: 2", "quorum: 0", 9, "rounds.quorum", ["0", "1"]),
    ("quorum_share: 0.5", "quorum_share: 0", 9, "rounds.quorum_share", ["greater than 0"]),
    ("quorum_share: 0.5", "quorum_share: 1.5", 9, "rounds.quorum_share", ["less than or equal to 1"]),
    ("deadline_s: 300", "deadline_s: soon", 10, "rounds.deadline_s", ["'soon'", "5m"]),
    ("deadline_s: 300", "deadline_s: 0", 10, "rounds.deadline_s", ["greater than 0"]),
    ("deadline_s: 300", "deadline: 300", 10, "rounds.deadline", ["'deadline_s'"]),
    ("patience_s: 60", "patience_s: 300", 10, "rounds.patience_s", ["300", "deadline_s"]),
    ("heartbeat_s: 5", "heartbeat_s: 2m", 10, "rounds.heartbeat_s", ["120", "patience_s"]),
    ("late: next_round", "late: next-round", 10, "rounds.late", ["'next_round'", "residual", "drop"]),
    ("outer: {name: average}", "outer: {name: nesterof}", 11, "outer.name", ["'nesterov'", "average"]),
    ("outer: {name: average}", "outer: {learning_rate: 1}", 11, "outer.name", ["missing"]),
    (
        "outer: {name: average}",
        "outer: {name: nesterov, momentun: 0.3}",
        11,
        "outer.momentun",
        ["'momentum'"],
    ),
    ("outer: {name: average}", "outer: {name: nesterov, momentum: 1.5}", 11, "outer.momentum", ["1.5"]),
    ("outer: {name: average}", "outer: {name: nesterov, momentum: x}", 11, "outer.momentum", ["'x'"]),
    (
        "outer: {name: average}",
        "outer: {name: average, warmup_rounds: -1}",
        11,
        "outer.warmup_rounds",
        ["-1"],
    ),
    ("up: int8", "up: int9", 12, "codec.up", ["'int9'", "'int8'", "float32"]),
    ("down: int8", "down: auto", 12, "codec.down", ["not available in this version", "int8"]),
    ("up: int8", "up: topk2", 12, "codec.up", ["not available in this version", "float16"]),
    ("name: mean", "name: median", 13, "aggregate.name", ["not available in this version", "mean"]),
    ("norm_max: 10.0", "norm_max: -1.0", 13, "aggregate.norm_max", ["-1.0", "greater than 0"]),
    ("norm_max: 10.0", "norm_max: 1e999", 13, "", ["too large"]),
    ("privacy: {}", "privacy: {masked: true}", 12, "codec.up", ["'int8'", "fixed<bits>", "randk8"]),
    ("privacy: {}", "privacy: {mask: true}", 14, "privacy.mask", ["did you mean 'masked'"]),
    ("privacy: {}", "privacy: {record: {epsilon: 0}}", 14, "privacy.record.epsilon", ["greater than 0"]),
    ("privacy: {}", "privacy: {site: {clip: 1.0}}", 14, "privacy.site", ["epsilon", "noise_multiplier"]),
    ("topology: star", "topology: swarm", 15, "topology", ["not available in this version", "star"]),
    ("evaluate: {every: 1}", "evaluate: {every: -1}", 16, "evaluate.every", ["-1", "0"]),
    ("evaluate: {every: 1}", "evaluate: often", 16, "evaluate", ["'often'", "section"]),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "words"), WRONG, ids=[f"{w[1]!r}" for w in WRONG])
def test_mistake_is_named(tmp_path: Path, old: str, new: str, line: int, key: str, words: list[str]) -> None:
    """A mistake is answered with the file's line, the key, what was found and what is valid."""
    assert old in RUN
    error = complaint(tmp_path, RUN.replace(old, new, 1))
    assert error.file == f"{tmp_path / 'run.yaml'}:{line}"
    assert error.key == key
    assert str(error).startswith(error.file)
    for word in words:
        assert word in str(error), f"{word!r} is not in {error}"
    assert "pydantic" not in str(error) and "http" not in str(error)
    assert error.exit_code == 2


def test_quorum_above_named_sites_is_refused(tmp_path: Path) -> None:
    """A quorum that the named sites can never reach is refused before the run starts."""
    text = MINIMAL.replace("steps: 1", "steps: 1, quorum: 4") + "sites: {include: [a, b, c]}\n"
    error = complaint(tmp_path, text)
    assert error.key == "rounds.quorum" and "4" in str(error) and "3 sites" in str(error)


def test_first_of_several_mistakes_is_told_with_their_number(tmp_path: Path) -> None:
    """Of several mistakes the first line's is told, and how many more there are."""
    error = complaint(tmp_path, RUN.replace("seed: 1", "seed: x").replace("every: 1", "every: x"))
    assert error.key == "seed" and "1 more" in str(error)


def test_terms_travel_only_where_they_are_stated(tmp_path: Path) -> None:
    """A run without use, licence and access has the task that sites of protocol 1.0 know; stated ones lie
    inside it, where every site's contract finds them."""
    plain = tmp_path / "plain.yaml"
    plain.write_text("run: a\ntask: {name: tiny}\nrounds: {count: 1, steps: 1}\n")
    task = load_run(plain).spec().task
    assert task == '{"data":"","model":{},"name":"tiny","training":{}}'
    stated = tmp_path / "stated.yaml"
    stated.write_text(
        "run: a\nuse: economic\nlicence: CC-BY-4.0\ntask: {name: tiny, data: c, access: [read]}\n"
        "rounds: {count: 1, steps: 1}\n"
    )
    asked = read_asked(load_run(stated).spec().task)
    assert (asked.use, asked.licence, asked.access, asked.fault) == ("economic", "CC-BY-4.0", ("read",), "")
    for wrong, key in (("use: any", "use"), ("task: {name: t, access: [own]}", "task.access[0]")):
        path = tmp_path / "wrong.yaml"
        task = "" if "task" in wrong else "task: {name: t}\n"
        path.write_text(f"run: a\nrounds: {{count: 1, steps: 1}}\n{task}{wrong}\n")
        with pytest.raises(ConfigError) as caught:
            load_run(path)
        assert caught.value.key == key
