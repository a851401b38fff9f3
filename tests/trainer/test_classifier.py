"""The classifier, and the formats of records that it learns from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_trainer_tasks import Memory, Recorder, change, first_weights, work

from fedtrain.errors import ConfigError
from fedtrain.trainer.baseline import UnionSource
from fedtrain.trainer.data import DataSource, read_datasets
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tables import Record, read_record, share, write_record
from fedtrain.trainer.tasks import build_task
from fedtrain.trainer.tasks.task import Work

DIGITS = {"features": 64, "classes": 10, "hidden": [32], "low": 0, "high": 16}
TRAINING = {"learning_rate": 0.01, "batch_size": 16}


def source(folder, path: str, form: str = "scikit-learn", name: str = "records") -> DataSource:
    """One data set of a peer.yaml."""
    file = folder / "peer.yaml"
    file.write_text(
        f"site: x\ndatasets:\n  {name}: {{path: '{path}', format: {form},"
        " rights: {execute: [classifier]}}\n"
    )
    return DataSource(name, "classifier", read_datasets(file))


def classifier(data: DataSource, model: dict, training: dict = TRAINING, terms: dict | None = None):
    """The task of these settings."""
    plain = {"name": "classifier", "data": data.name, "model": model, "training": training}
    return build_task(TaskSpec.from_plain(plain | ({"terms": terms} if terms else {})), data)


def trained(task, order: Work) -> Memory:
    """The weights after this work from the seed's."""
    start = first_weights(task)
    return Memory(start.values - change(task, task.train(start, order, Recorder())))


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns(tmp_path, norm, optimizer):
    """A few hundred steps take the loss on held-out digits far below a guess, and accuracy far above."""
    rate = {"adamw": 0.01, "sgd": 0.1}[optimizer]
    training = {"learning_rate": rate, "batch_size": 16, "optimizer": optimizer}
    task = classifier(source(tmp_path, "digits:1/3"), {**DIGITS, "norm": norm}, training)
    before, count = task.evaluate(first_weights(task))
    end = trained(task, work(steps=150))
    after, again = task.evaluate(end)
    accuracy, number = task.accuracy(end)
    assert before == pytest.approx(math.log(10), abs=0.6) and count == again == number > 100
    assert after < 1.2 and accuracy > 0.65


def test_private_training_learns_and_hides_what_it_drew(tmp_path):
    """With weak noise the held-out loss falls; the weight is the expected one, and there is no loss."""
    task = classifier(source(tmp_path, "digits:1/3"), DIGITS)
    start = first_weights(task)
    recorder = Recorder()
    plan = RecordPlan(1.0, 0.3, 0.1)
    outcome = task.train(start, Work("r", 1, 0, "here", 60, 0, plan), recorder)
    assert outcome.loss is None and recorder.steps == list(range(1, 61))
    assert outcome.weight == 60 * round(0.1 * task.units("record"))
    end = Memory(start.values - change(task, outcome))
    assert task.evaluate(end)[0] < task.evaluate(start)[0] - 0.4


def test_batch_normalisation_gives_way_in_private_runs(tmp_path):
    """The layout is the same with batch and group norms, and a private run trains with the latter."""
    data = source(tmp_path, "digits:1/3")
    plain = classifier(data, {**DIGITS, "norm": "batch"})
    promised = {"privacy": {"record": {"epsilon": 1.0}}}
    private = classifier(data, {**DIGITS, "norm": "batch"}, terms=promised)
    assert plain.layout().digest == private.layout().digest
    trained(private, Work("r", 1, 0, "here", 2, 0, RecordPlan(1.0, 1.0, 0.1)))
    with pytest.raises(ConfigError, match="mixes the records of a batch"):
        trained(plain, Work("r", 1, 0, "here", 2, 0, RecordPlan(1.0, 1.0, 0.1)))


def test_features_are_scaled_by_the_configuration_alone(tmp_path):
    """Low and high become -1 and 1, what is beyond is cut off, whatever the other records are."""
    (tmp_path / "a.csv").write_text("x,y,label\n" + "0,5,0\n10,7,1\n" * 5)
    task = classifier(
        source(tmp_path, "a.csv", "csv"), {"features": 2, "classes": 2, "low": [0, 6], "high": [20, 8]}
    )
    scaled = task._scaled(np.array([[0, 5], [10, 7], [20, 9]], np.float32)).numpy()
    np.testing.assert_allclose(scaled, [[-1, -1], [0, 0], [1, 1]])


def test_held_out_records_and_groups_are_never_trained_on(tmp_path):
    """Every fifth record is held out; with groups every fifth group, with all of its records."""
    rows = [f"{index},{index % 7},{index % 2}\n" for index in range(70)]
    (tmp_path / "a.csv").write_text("x,person,label\n" + "".join(rows))
    form = {"features": 2, "classes": 2, "low": 0, "high": 100}
    by_record = classifier(source(tmp_path, "a.csv", "csv"), form)
    assert (by_record.units("record"), by_record.evaluate(first_weights(by_record))[1]) == (56, 14)
    form["features"] = 1
    by_group = classifier(source(tmp_path, "a.csv:group=person", "csv"), form)
    assert (by_group.units("record"), by_group.units("group")) == (60, 6)
    assert set(by_group.table.held_out[0][:, 0] % 7) == {4}
    trained(by_group, Work("r", 1, 0, "here", 2, 0, RecordPlan(1.0, 1.0, 0.5, "group")))


def test_a_union_of_sites_keeps_each_ones_split(tmp_path):
    """Central training takes the training records of all sites, and their groups apart."""
    parts = []
    for index in (1, 2):
        folder = tmp_path / str(index)
        folder.mkdir()
        parts.append(source(folder, f"digits:{index}/2"))
    both = classifier(UnionSource(parts), DIGITS)
    alone = [classifier(part, DIGITS) for part in parts]
    assert both.units("record") == sum(task.units("record") for task in alone)


@pytest.mark.parametrize("skew", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("sites", [1, 2, 3, 5])
def test_each_bundled_record_is_at_exactly_one_site(tmp_path, sites, skew):
    """The parts of a data set are disjoint and complete, and no part is empty."""
    found = []
    for index in range(1, sites + 1):
        found.append(list(source(tmp_path, f"breast_cancer:{index}/{sites}:skew={skew:g}").documents()))
    assert min(map(len, found)) >= 30
    together = [document for part in found for document in part]
    assert len(together) == len(set(together)) == 569


def test_skew_takes_classes_to_their_homes():
    """Without skew classes are spread evenly; with all of it each site has classes of its own."""
    labels = [index % 10 for index in range(2000)]
    even, own = share(labels, 5, 0.0, "x"), share(labels, 5, 1.0, "x")
    for site in range(5):
        assert len({label for label, home in zip(labels, even, strict=True) if home == site}) == 10
    classes = [{label for label, home in zip(labels, own, strict=True) if home == site} for site in range(5)]
    assert sorted(label for part in classes for label in part) == list(range(10))


def test_a_record_survives_its_document():
    """Numbers keep every bit, and a group its name."""
    record = Record(3, "Ann 7", (0.1, -1e-300, 1e300, 2.0))
    assert read_record(write_record(record)) == record
    with pytest.raises(ConfigError, match="is no record of numbers"):
        read_record(b"some text, with a comma")


@pytest.mark.parametrize(
    ("text", "path", "sentence"),
    [
        ("x,label\n1,0\noops,1\n", "a.csv", "line 3: the value of 'x' is not a finite number"),
        ("x,label\n1,0\nnan,1\n", "a.csv", "line 3: the value of 'x' is not a finite number"),
        ("x,label\n1,0\n1\n", "a.csv", "line 3: has 1 values, and the header names 2"),
        ("x,label\n1,-1\n", "a.csv", "line 2: the label 'label' is not a whole number"),
        ("x,label\n1,yes\n", "a.csv", "line 2: the label 'label' is not a whole number"),
        ("x,label\n1,0\n", "a.csv:label=kind", "has 0 columns 'kind'"),
        ("x,p,label\n1,,0\n", "a.csv:group=p", "line 2: the group 'p' is empty"),
        ('x,label\n"1,0\n', "a.csv", "is no CSV"),
        ("", "a.csv", "is empty: the first row names the columns"),
        ("x,label\n1,0\n", "b.csv", "no file matches"),
    ],
)
def test_faults_of_csv_files_are_named_by_file_and_line(tmp_path, text, path, sentence):
    """Each fault is told with its place and its column, and never with the cell's own content."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        list(source(tmp_path, path, "csv").documents())
    assert sentence in str(caught.value) and "oops" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["digits", "digits:0/5", "digits:6/5", "faces:1/5", "digits:1/5:skew=2", "digits:1/5 "]
)
def test_parts_that_do_not_exist_are_refused(tmp_path, path):
    """A part is written as NAME:SITE/SITES, with one of the names that come with the package."""
    with pytest.raises(ConfigError, match="is no part of a data set"):
        list(source(tmp_path, path).documents())


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ({"features": 63}, "task.model.features"),
        ({"classes": 9}, "task.model.classes"),
        ({"hidden": [1.5]}, "task.model.hidden"),
        ({"hidden": ["wide"]}, "task.model.hidden"),
        ({"low": [0, 1]}, "task.model.low"),
        ({"low": 16}, "task.model.high"),
        ({"norm": "layer"}, "task.model.norm"),
        ({"depth": 2}, "task.model.depth"),
    ],
)
def test_settings_that_do_not_fit_the_records_are_named(tmp_path, model, key):
    """A wrong shape or word is refused with the key that is wrong."""
    with pytest.raises(ConfigError) as caught:
        classifier(source(tmp_path, "digits:1/3"), DIGITS | model).units("record")
    assert caught.value.key == key


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    """From weights beyond all bounds neither a step nor an evaluation is taken for a result."""
    task = classifier(source(tmp_path, "digits:1/3"), DIGITS)
    start = Memory(np.full(task.layout().num_elements, np.inf, np.float32))
    with pytest.raises(ConfigError, match="in step 1 of 5 of round 0: the model diverges"):
        task.train(start, work(steps=5), Recorder())
    with pytest.raises(ConfigError, match="held-out records: the model diverges"):
        task.evaluate(start)
