"""One order from start to result: what repeats, what continues, and what fails in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedtrain.methods.modelfile import ModelReader
from fedtrain.methods.updatefile import UpdateFacts, inspect
from fedtrain.trainer.tasks.task import Abandoned

SYNTHETIC = {"name": "synthetic", "model": {"parameters": 9_000}}


class StopsAfter:
    """A context in which the process is told to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def phase(self, name: str) -> None:
        """Nobody is told."""

    def alive(self) -> None:
        """Nobody is told."""

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        """Stop when it is time."""
        if steps >= self._steps:
            raise Abandoned("told to stop")


def test_training_returns_an_update_that_fits_its_result(site):
    """Digest, size, norm, weight, steps and losses of a result are those of its update."""
    model, ref = site.first_model()
    order = site.order("train", 1, model=ref, evaluate=True)
    result = site.do(order, model)
    assert result.failure == "" and result.notes == ()
    assert len(site.update_bytes(order)) == result.size_bytes
    facts = UpdateFacts(order.run, 1, order.site, 0, ref.layout_digest, "int8", site.update(order).size)
    # What the coordinator finds when it inspects the file.
    assert result.norm == inspect(site.mailbox.take_result(order.id)[1], facts)
    assert result.norm == pytest.approx(float(np.linalg.norm(site.update(order))), rel=1e-5)
    assert (result.steps, result.weight) == (6, 6 * 4 * 16)
    assert 4 < result.train_loss < 7 and 4 < result.eval_loss < 7 and result.eval_count > 0


def test_seed_orders_make_equal_models_for_equal_seeds(site):
    """The first weights follow from the run's seed alone."""
    model, first = site.first_model()
    weights = model.read_bytes()
    site.restart()
    model, again = site.first_model()
    assert again == first and model.read_bytes() == weights


def test_evaluation_measures_and_hands_in_no_file(site):
    """An order to evaluate gives a loss and its count, and leaves no checkpoint."""
    model, ref = site.first_model()
    result = site.do(site.order("evaluate", 1, model=ref, steps=0), model)
    assert result.file == "" and result.eval_loss > 0 and result.eval_count > 0
    assert not list(site.mailbox.checkpoints.glob("tiny-run/tiny-run.1*"))


def test_another_attempt_from_the_same_parent_has_the_same_bytes(site):
    """A round that is repeated gives the same update, from memory or after a restart."""
    model, ref = site.first_model()
    first = site.order("train", 1, model=ref)
    site.do(first, model)
    outcomes = []
    for attempt, restart in ((1, False), (2, False), (3, True)):
        if restart:
            site.restart()
        order = site.order("train", 2, model=ref, parent=first.id, attempt=attempt)
        assert site.do(order, model).notes == ()
        outcomes.append(site.update_bytes(order))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_going_on_from_memory_equals_going_on_from_the_checkpoint(site):
    """Three rounds in one process give the bytes of three rounds in three processes."""
    model, ref = site.first_model()
    chains = []
    for restarts in (False, True):
        parent, updates = "", []
        for round_index in (1, 2, 3):
            if restarts:
                site.restart()
            order = site.order("train", round_index, model=ref, parent=parent)
            site.do(order, model)
            updates.append(site.update_bytes(order))
            site.mailbox.discard(order.id)
            parent = order.id
        site.session._checkpoints.keep("tiny-run", ())
        site.restart()
        chains.append(updates)
    assert chains[0] == chains[1]
    assert len(set(chains[0])) == 3


def test_the_same_order_again_hands_in_the_stored_bytes(site):
    """An order that was done is not done again: its update is handed in from the checkpoint."""
    model, ref = site.first_model()
    order = site.order("train", 1, model=ref)
    first = site.do(order, model)
    data = site.update_bytes(order)
    site.mailbox.discard(order.id)
    site.restart()
    again = site.do(order, model)
    assert again.digest == first.digest and site.update_bytes(order) == data
    assert site.session._state_of == ""  # no training took place


def test_an_equal_id_of_an_earlier_run_is_not_answered_from_its_checkpoint(site):
    """A new run of an old name gets work of its own, although the order's id is the same."""
    model, ref = site.first_model()
    order = site.order("train", 1, model=ref)
    site.do(order, model)
    data = site.update_bytes(order)
    site.mailbox.discard(order.id)
    site.do(replace(order, seed=2), model)
    assert site.update_bytes(order) != data


def test_a_returned_update_goes_out_with_the_next(site):
    """With a lossless codec the next update is its own pseudo-gradient plus the one that came back."""
    model, ref = site.first_model()
    late = site.order("train", 1, model=ref, codec="float32")
    site.do(late, model)
    plain = site.order("train", 2, model=ref, codec="float32", parent=late.id)
    site.do(plain, model)
    carrying = site.order(
        "train", 2, model=ref, codec="float32", parent=late.id, returned=(late.id,), attempt=2
    )
    assert site.do(carrying, model).notes == ()
    np.testing.assert_array_equal(site.update(carrying), site.update(plain) + site.update(late))


def test_a_missing_parent_is_said_and_training_starts_afresh(site):
    """Without the parent's checkpoint the update equals one without parent, and a note says why."""
    model, ref = site.first_model()
    fresh = site.order("train", 5, model=ref)
    site.do(fresh, model)
    orphan = site.order(
        "train", 5, model=ref, attempt=2, parent="tiny-run.4.1.here", returned=("tiny-run.3.1.here",)
    )
    result = site.do(orphan, model)
    assert any("tiny-run.4.1.here is missing" in note for note in result.notes)
    assert any("tiny-run.3.1.here is no longer here" in note for note in result.notes)
    assert site.update_bytes(orphan) == site.update_bytes(fresh)


def test_a_damaged_parent_counts_as_missing(site):
    """A checkpoint whose state or residual is cut short leads to a fresh start and a note."""
    model, ref = site.first_model()
    for name in ("state.safetensors", "residual.safetensors"):
        parent = site.order("train", 1, model=ref)
        site.do(parent, model)
        path = site.mailbox.checkpoints / "tiny-run" / parent.id / name
        path.write_bytes(path.read_bytes()[:20])
        site.restart()
        order = site.order("train", 2, model=ref, parent=parent.id)
        result = site.do(order, model)
        assert result.failure == "" and "fresh" in result.notes[0]
        for done in (parent, order):
            site.mailbox.discard(done.id)


def test_only_the_named_checkpoints_stay(site):
    """After an order the parent's, its own and the returned ones' checkpoints are there, no others."""
    model, ref = site.first_model()
    parent = ""
    for round_index in (1, 2, 3):
        order = site.order("train", round_index, model=ref, parent=parent)
        site.do(order, model)
        parent = order.id
    found = sorted(path.name for path in (site.mailbox.checkpoints / "tiny-run").iterdir())
    assert found == ["tiny-run.2.1.here", "tiny-run.3.1.here"]


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "float16", "int8"])
def test_what_was_sent_and_what_is_kept_add_up(site, codec):
    """Over three rounds, updates sent plus the last residual equal the pseudo-gradients."""
    model, ref = site.first_model(SYNTHETIC)
    totals = {}
    for name in ("float32", codec):
        parent, total = "", np.zeros(9_000, np.float64)
        for round_index in (1, 2, 3):
            order = site.order("train", round_index, model=ref, parent=parent, codec=name, task=SYNTHETIC)
            site.do(order, model)
            total += site.update(order)
            site.mailbox.discard(order.id)
            parent = order.id
        residual = site.mailbox.checkpoints / "tiny-run" / parent / "residual.safetensors"
        assert residual.exists() == (name != "float32")
        if residual.exists():
            total += load_file(residual)["residual"]
        totals[name] = total
        site.session._checkpoints.keep("tiny-run", ())
    np.testing.assert_allclose(totals[codec], totals["float32"], atol=1e-6)


def test_the_trained_weights_are_the_start_less_the_update(site):
    """A pseudo-gradient is start minus end: a second round from the stepped model has a lower loss."""
    model, ref = site.first_model()
    order = site.order("train", 1, model=ref, codec="float32", steps=40, evaluate=True)
    before = site.do(order, model)
    with ModelReader(model) as reader:
        start = np.empty(reader.num_elements, np.float32)
        reader.read(0, start)
        offset = reader.data_offset
    data = bytearray(model.read_bytes())
    data[offset:] = (start - site.update(order)).tobytes()
    model.write_bytes(data)
    after = site.do(site.order("evaluate", 2, model=ref, steps=0), model)
    assert after.eval_loss < before.eval_loss - 0.5


FAILURES = {
    "unknown task": (
        {"name": "clustering"},
        "'clustering' is not installed at this site; installed: causal_lm, classifier, synthetic",
    ),
    "unknown key": ({"training": {"learning_rat": 1.0}}, "learning_rat"),
    "nearest key": ({"training": {"learning_rate": 0.1, "batchsize": 4, "batch_size": 4}}, "'batch_size'"),
    "no such data": ({"data": "corpse"}, "did you mean 'corpus'?"),
    "no data named": ({"data": ""}, "name a data set"),
    "uneven heads": (
        {"model": {"layers": 1, "heads": 3, "width": 16, "context": 8}},
        "multiple of twice the heads",
    ),
    "foreign layout": (
        {"model": {"layers": 2, "heads": 2, "width": 16, "context": 16}},
        "another version of the task",
    ),
    "diverging": ({"training": {"learning_rate": 1e8, "batch_size": 4}}, "lower the learning rate"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_are_sentences(site, language_task, case):
    """What cannot be done comes back as a failure that says what was found and what to do."""
    model, ref = site.first_model()
    changes, sentence = FAILURES[case]
    order = site.order("train", 1, model=ref, task={**language_task, **changes}, steps=40)
    result = site.do(order, model)
    assert sentence in result.failure
    assert result.file == "" and not list(site.mailbox.checkpoints.glob("tiny-run/tiny-run.1*"))


def test_orders_that_make_no_sense_fail_in_words(site):
    """No steps, no model, another site's path as parent, an unknown codec: each is refused in words."""
    model, ref = site.first_model()
    for changes, sentence in (
        ({"steps": 0}, "0 steps"),
        ({"model": None}, "names no model"),
        ({"parent": "../../elsewhere"}, "not the name of a run or an order"),
        ({"codec": "int9"}, "int8"),
    ):
        order = site.order("train", 1, **{"model": ref, **changes})
        assert sentence in site.do(order, model).failure
        site.mailbox.discard(order.id)


def test_after_being_stopped_the_order_is_done_as_if_it_had_not_been(site):
    """A task that was stopped half-way leaves nothing in memory that the next order could see."""
    model, ref = site.first_model()
    expected = site.order("train", 1, model=ref)
    site.do(expected, model)
    data = site.update_bytes(expected)
    site.restart()
    (site.mailbox.checkpoints / "tiny-run" / expected.id / "checkpoint.json").unlink()
    order = site.order("train", 1, model=ref, attempt=2)
    site.mailbox.post(order, model)
    claim = site.mailbox.claim("test-trainer")
    with pytest.raises(Abandoned):
        site.session.work(claim, StopsAfter(3))
    result, file = site.session.work(claim, StopsAfter(10_000))
    assert file.read_bytes() == data
    assert result.failure == ""
