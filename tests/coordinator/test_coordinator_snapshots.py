"""A coordinator's snapshots: made on the way and at its end, and what a start makes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from coordinator_world import Consortium, two_sites

from fedtrain.coordinator.process import open_coordinator
from fedtrain.core import transitions
from fedtrain.core.driver import replay
from fedtrain.core.events import EVENTS
from fedtrain.core.state import State
from fedtrain.storage import snapshots
from fedtrain.storage.journal import Journal

pytestmark = pytest.mark.timeout(60)


def folded_and_kept(folder: Path) -> tuple[State, int, int]:
    """(state from the first row on, last row, last row of the newest snapshot)."""
    journal = Journal.open(folder / "state" / "journal.db", writer=False)
    try:
        newest = journal.snapshots()[0].sequence if journal.snapshots() else 0
        return replay(journal, transitions.step, State(), EVENTS), journal.head[0], newest
    finally:
        journal.close()


async def test_a_good_end_leaves_nothing_to_fold(consortium: Consortium) -> None:
    """The last row is in the snapshot, and the next start goes on with the same state."""
    await two_sites(consortium)
    await consortium.serving.close()
    home = consortium.folder / "coordinator"
    state, last, kept = folded_and_kept(home)
    assert kept == last > 0 and state.runs["tiny"].model is not None
    consortium.serving = await open_coordinator(home)
    again = consortium.serving.hub.state
    assert again.runs["tiny"].receipts == state.runs["tiny"].receipts and again.epoch == state.epoch + 1


async def test_a_snapshot_is_made_on_the_way(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    """After enough rows it is there without an end, and it is of the very row that it names."""
    monkeypatch.setattr(snapshots, "SPACING_ROWS", 5)
    hub = consortium.serving.hub
    await two_sites(consortium)
    async with asyncio.timeout(30):
        while not hub.journal.snapshots() or hub._keeping:
            await asyncio.sleep(0.01)
    newest = hub.journal.snapshots()[0]
    assert 0 < newest.sequence <= hub.journal.head[0] and newest.hash == hub.journal.hash_at(newest.sequence)
    journal = Journal.open(consortium.folder / "coordinator" / "state" / "journal.db", writer=False)
    state = snapshots.Snapshots(journal, State).recover(transitions.step, State(), EVENTS)
    journal.close()
    assert state == replay(hub.journal, transitions.step, State(), EVENTS) == hub.state
