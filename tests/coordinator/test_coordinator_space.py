"""A disk that others fill under a running coordinator: new work waits, the journal goes on, it recovers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from coordinator_world import Consortium, two_sites, whole_mean

from fedtrain.errors import FedtrainError
from fedtrain.storage.blobs import FREE_BYTES_MIN

pytestmark = pytest.mark.timeout(60)


class Disk:
    """What `statvfs` tells of every folder."""

    f_frsize = 1
    f_files = f_favail = 1 << 20

    def __init__(self) -> None:
        self.f_bavail = 1 << 40


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    told = Disk()

    def statvfs(folder: Path) -> Disk:
        return told

    monkeypatch.setattr(os, "statvfs", statvfs)
    return told


async def test_uploads_are_refused_and_the_journal_goes_on(consortium: Consortium, disk: Disk) -> None:
    """At the mark an offer is refused; events are still journaled; with room the same order counts."""
    first, _ = await two_sites(consortium)
    order = await first.order()
    disk.f_bavail = FREE_BYTES_MIN
    rows = consortium.serving.hub.journal.head[0]
    with pytest.raises(FedtrainError, match="must stay free; free some space"):
        await first.answer(order, 1.0)
    first.consent(order)
    await consortium.until(lambda: consortium.serving.hub.journal.head[0] > rows)
    assert not list((consortium.folder / "coordinator/state/blobs/partial").iterdir())
    disk.f_bavail = 1 << 40
    assert (await first.answer(order, 1.0)).outcome == "stored"


async def test_a_version_that_has_no_room_waits_for_a_person(consortium: Consortium, disk: Disk) -> None:
    """The run pauses and says why, before a byte is written; with room again, resuming makes the version."""
    first, second = await two_sites(consortium)
    hub = consortium.serving.hub
    for site, value, weight in ((first, 1.0, 10), (second, 4.0, 20)):
        order = await site.order()
        site.consent(order)
        if site is second:
            size_bytes = site.make_file(order, value).stat().st_size
            disk.f_bavail = FREE_BYTES_MIN + size_bytes  # enough for the update, not for a version
        await site.answer(order, value, weight)
    await consortium.until(lambda: bool(hub.state.runs["tiny"].paused))
    assert "must stay free" in hub.state.runs["tiny"].paused
    models = consortium.folder / "coordinator/state/models/tiny"
    assert [path.name for path in models.iterdir()] == ["0"]
    disk.f_bavail = 1 << 40
    await consortium.operator.resume("tiny")
    await consortium.until(lambda: hub.state.runs["tiny"].rounds_done == 1)
    whole_mean(hub.versions.public("tiny", 1), 3.0)
