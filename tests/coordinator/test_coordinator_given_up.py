"""A site that was given up hears of it, for it may be back: it was stopped, or the coordinator was."""

from __future__ import annotations

import asyncio

import pytest
from coordinator_world import Consortium, spec_of

from fedtrain.errors import UnreachableError

NEVER_S = 60.0
"""Longer than anything here takes on the slowest machine."""


async def test_silent_site_is_sent_back_to_the_door(consortium: Consortium) -> None:
    """A session whose site was given up is ended, so that the site attaches again and gets its order."""
    site = await consortium.join("east")
    await site.attend()
    await consortium.operator.start(spec_of(minimum=1, quorum=1, patience_ms=1_500, heartbeat_ms=500))
    first = await site.order()
    with pytest.raises(UnreachableError, match="attach again"):
        await asyncio.wait_for(site.tasks.pop(), NEVER_S)
    await site.attend("second")
    assert (await site.order()).round == first.round
