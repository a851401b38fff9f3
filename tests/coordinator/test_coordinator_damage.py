"""A disk that changes or loses an acknowledged update: it is asked for again, and counts once."""

from __future__ import annotations

from pathlib import Path

import pytest
from coordinator_world import Consortium, two_sites, whole_mean

from fedtrain.errors import IntegrityError


def flip(path: Path) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [flip, Path.unlink], ids=["flipped bit", "lost file"])
async def test_a_damaged_update_is_asked_for_again(consortium: Consortium, harm) -> None:
    """The site sends the same bytes once more, and the version is the one of an undisturbed round."""
    first, second = await two_sites(consortium)
    hub = consortium.serving.hub
    order = await first.order()
    first.consent(order)
    receipt = await first.answer(order, 1.0, 10)
    harm(hub.blobs.path(receipt.digest))
    other = await second.order()
    second.consent(other)
    await second.answer(other, 4.0, 20)
    again = await first.order()
    assert again == order
    first.consent(again)
    repeated = await first.answer(again, 1.0, 10)
    assert repeated.digest == receipt.digest
    await consortium.until(lambda: hub.state.runs["tiny"].rounds_done == 1)
    abandoned, closed = hub.state.runs["tiny"].records[-2:]
    assert abandoned.version is None and "the stored update of alpha is" in abandoned.reason
    assert closed.counted == (order.id, other.id)
    whole_mean(hub.versions.public("tiny", 1), 3.0)


async def test_a_damaged_model_is_never_served(consortium: Consortium) -> None:
    """A site that asks for it hears why it comes no more; the log names the file for whoever repairs it."""
    first, _ = await two_sites(consortium)
    order = await first.order()
    assert order.model is not None
    _, blob, size_bytes = order.model.chain[0]
    flip(consortium.serving.hub.blobs.path(blob))
    # A start later than the last proof: what was written in this life is not read again at once.
    await consortium.restart()
    await first.client.connect()
    with pytest.raises(IntegrityError, match="its operator has to restore it"):
        async for _ in first.client.fetch(blob):
            continue
    assert not consortium.serving.hub.blobs.has(blob) and size_bytes > 0
