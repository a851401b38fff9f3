"""Checkpoints appear whole, the first of an order stays, and nothing else may be a path."""

from __future__ import annotations

import numpy as np
import pytest

from fedtrain.errors import BadOrder
from fedtrain.storage.mailbox import Result
from fedtrain.trainer.checkpoints import Checkpoints, Facts

ORDER = "run.1.1.here"


def commit(checkpoints: Checkpoints, order: str = ORDER, update: bytes = b"first") -> bool:
    """Make a checkpoint with this update."""
    facts = Facts(order, "f" * 64, "d" * 64, 20, Result(order, notes=("a note",), train_loss=2.5))
    with checkpoints.draft("run", order) as draft:
        (draft / "update.bin").write_bytes(update)
        return checkpoints.commit(draft, facts, {"moments": np.arange(3, dtype=np.float32)})


def test_a_checkpoint_is_read_back_as_it_was_made(tmp_path):
    """Facts, result, state and update survive the way to the disk and back."""
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.find("run", ORDER) is None
    assert commit(checkpoints)
    found = Checkpoints(tmp_path).find("run", ORDER)
    assert found.facts.steps == 20 and found.facts.result == Result(ORDER, notes=("a note",), train_loss=2.5)
    np.testing.assert_array_equal(found.state()["moments"], [0, 1, 2])
    assert found.update.read_bytes() == b"first" and found.residual is None


def test_the_first_checkpoint_of_an_order_stays(tmp_path):
    """A second trainer's work on the same order is dropped, and no draft is left."""
    checkpoints = Checkpoints(tmp_path)
    assert commit(checkpoints) and not commit(checkpoints, update=b"second")
    assert checkpoints.find("run", ORDER).update.read_bytes() == b"first"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [ORDER]


def test_what_is_handed_out_is_a_file_of_its_own(tmp_path):
    """The copy for the mailbox shares no inode with the checkpoint's update."""
    checkpoints = Checkpoints(tmp_path)
    commit(checkpoints)
    kept = checkpoints.find("run", ORDER)
    outgoing = checkpoints.outgoing(kept)
    assert outgoing.read_bytes() == b"first" and outgoing.stat().st_nlink == 1
    assert outgoing.stat().st_ino != kept.update.stat().st_ino


def test_only_kept_orders_and_their_drafts_survive_a_clean_up(tmp_path):
    """Checkpoints of other orders go, and so does what a killed process left of them."""
    checkpoints = Checkpoints(tmp_path)
    for order in (ORDER, "run.2.1.here", "run.3.1.here"):
        commit(checkpoints, order)
    (tmp_path / "run" / ".run.2.1.here~12345678").mkdir()
    (tmp_path / "run" / ".run.2.1.here~12345679").write_bytes(b"copy")
    (tmp_path / "run" / ".run.3.1.here~12345678").mkdir()
    checkpoints.keep("run", {ORDER, "run.3.1.here"})
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [".run.3.1.here~12345678", ORDER, "run.3.1.here"]
    checkpoints.keep("no-such-run", set())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "result": {"notes": 3}}'])
def test_a_damaged_document_counts_as_missing(tmp_path, text):
    """A checkpoint whose document is not of our shape is not there."""
    checkpoints = Checkpoints(tmp_path)
    commit(checkpoints)
    (tmp_path / "run" / ORDER / "checkpoint.json").write_text(text)
    assert checkpoints.find("run", ORDER) is None


def test_a_folder_without_its_document_is_replaced(tmp_path):
    """What remains of a half-removed checkpoint does not stand in the way of a new one."""
    checkpoints = Checkpoints(tmp_path)
    commit(checkpoints)
    (tmp_path / "run" / ORDER / "checkpoint.json").unlink()
    assert commit(checkpoints, update=b"second")
    assert checkpoints.find("run", ORDER).update.read_bytes() == b"second"


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "/abs", "UPPER", "a\0b", "a" * 300])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    """A run's or order's name that is no name never becomes a path."""
    with pytest.raises(BadOrder):
        Checkpoints(tmp_path).find("run", name)
    with pytest.raises(BadOrder):
        Checkpoints(tmp_path).find(name, ORDER)
