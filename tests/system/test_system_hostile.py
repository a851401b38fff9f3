"""A site that lies in its update's header, and disks that are full: refused in words, and the run goes on.

Sites here are scripts over the real client, as in the coordinator's own tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from system_scripts import scripts, served
from system_world import World, fedtrain

from fedtrain.core.orders import Order
from fedtrain.errors import BadUpdate, StorageError
from fedtrain.methods.codecs import codec
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter
from fedtrain.storage.blobs import FREE_BYTES_MIN

pytestmark = pytest.mark.slow


async def seeded(consortium: Any) -> list[Order]:
    """Start a run and make its initial weights; the orders of the first round, in the sites' order."""
    await consortium.operator.start(scripts.spec_of(rounds=1))
    maker = consortium.sites[0]
    order = await maker.order()
    maker.consent(order)
    await maker.answer(order, 0.0)
    return [await site.order() for site in consortium.sites]


def update_with(liar: Any, order: Order, **lies: Any) -> Path:
    """An update of zeros whose header says what `lies` says."""
    honest = UpdateHeader(
        run=order.run,
        round=order.round,
        site=order.site,
        direction="up",
        base_version=order.model.version,
        layout_digest=order.model.layout_digest,
        codec=order.codec,
        block_elements=order.block_elements,
        num_elements=scripts.LAYOUT.num_elements,
        clip_norm=None,
    )
    header = dataclasses.replace(honest, **lies)
    path: Path = liar.folder / "lie"
    writer = UpdateWriter(path, header)
    writer.write_block(codec(header.codec).encode(np.zeros(header.num_elements, np.float32), bytes(32)))
    writer.close()
    return path


@pytest.mark.parametrize(
    ("lies", "words"),
    [
        ({"layout_digest": "ab" * 32}, "layout"),
        ({"run": "another"}, "run"),
        ({"round": 7}, "round"),
        ({"base_version": 7}, "version"),
        ({"site": "north"}, "site"),
        ({"num_elements": 17}, "num_elements"),
        ({"num_elements": 1 << 16}, "bytes"),
        ({"codec": "int8"}, "codec"),
        ({"direction": "down", "site": ""}, "delta: its site"),
    ],
)
async def test_lying_header_costs_only_the_liar(tmp_path: Path, lies: dict[str, Any], words: str) -> None:
    """An update whose header does not fit its order is refused in words, journaled, and counts nowhere."""
    async with served(tmp_path, "east", "north", "west") as consortium:
        orders = await seeded(consortium)
        liar, order = consortium.sites[-1], orders[-1]
        for site, own in zip(consortium.sites, orders, strict=True):
            site.consent(own)
        commit = liar.commit(order, update_with(liar, order, **lies))
        with pytest.raises(BadUpdate, match=words):
            offer = scripts.msg.Offer(order.id, commit.digest, commit.size_bytes)
            missing = await liar.client.offer(offer)
            await liar.client.send_file(liar.folder / "lie", commit.digest, commit.size_bytes, missing.offset)
            await liar.client.commit(commit)
        for site, own in list(zip(consortium.sites, orders, strict=True))[:2]:
            await site.answer(own, 1.0)
        if "bytes" in words:  # refused before a byte came: the order is still the liar's to answer
            await liar.answer(order, 1.0)
        state = consortium.serving.hub
        await consortium.until(lambda: state.state.runs["tiny"].rounds_done == 1)
        record = state.state.runs["tiny"].records[-1]
        assert (order.id in record.counted) == ("bytes" in words)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, a little larger than what the coordinator always leaves free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = FREE_BYTES_MIN + (12 << 20)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_full_disk_refuses_an_upload_and_takes_it_when_freed(disk: Path) -> None:
    """An upload that would fill the disk is refused before a byte, nothing is lost, and later it counts."""
    async with served(disk, "east", "north") as consortium:
        orders = await seeded(consortium)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(13 << 20))
        east, north = consortium.sites
        with pytest.raises(StorageError, match="free some space"):
            await east.answer(orders[0], 1.0)
        ballast.unlink()
        for site, order in zip((east, north), orders, strict=True):
            site.consent(order)
            assert (await site.answer(order, 1.0)).outcome == "stored"
        await consortium.until(lambda: consortium.serving.hub.state.runs["tiny"].rounds_done == 1)


def test_full_disk_is_named(quiet: World, disk: Path) -> None:
    """Commands that meet a full disk say which file could not be written, and leave no half of one."""
    quiet.begin("no-space", rounds={"count": 1})
    quiet.until_done("no-space")
    invite = quiet.invite("spacious")
    with open(disk / "ballast", "wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    model = disk / "model.safetensors"
    for words in (
        ("coordinator", "init", disk / "home", "--name", "test", "--address", "127.0.0.1:7443"),
        ("join", invite, disk / "site"),
        ("model", "export", "no-space", model, "--dir", quiet.home),
    ):
        done = fedtrain(*words)
        assert done.code == 1 and str(disk) in done.err and "bug" not in done.err, (words, done)
        assert "No space left" in done.err, done.err
    assert not model.exists() and not list(disk.glob(".model*"))
