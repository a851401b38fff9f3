"""What a run's account demands of an order, a seat, a sum and a record: pure comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedtrain.core import effects as fx, events as ev
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.spec import RunSpec
from fedtrain.core.state import RoundRecord, SeatRecord
from fedtrain.sim.account import Account, Fate
from fedtrain.sim.violation import demand


def without(closed: fx.Aggregate, order: str) -> fx.Aggregate:
    """The same sum, less this order's update."""
    return replace(closed, contributions=tuple(c for c in closed.contributions if c.order != order))


def quorum(
    spec: RunSpec, index: int, fresh: list[Account], seats: Mapping[str, Account], weights: Mapping[str, int]
) -> None:
    """I7: a round closes with enough sites, and with enough of the seated sites' data."""
    demand(len(fresh) >= spec.quorum, "I7", f"round {index} closed below its quorum")
    known = [weights[site] for site in seats if site in weights]
    mean = sum(known) / len(known)
    total = sum(weights.get(site, mean) for site in seats)
    held = sum(weights[account.order.site] for account in fresh)
    enough = held / total >= spec.quorum_share - 1e-6
    demand(enough, "I7", f"round {index} closed with a share of {held / total:.2f}")


def model(order: Order, digests: Sequence[str]) -> None:
    """I3: an order asks for what follows the newest version, and starts from it."""
    expected = order.kind if order.round else OrderKind.SEED
    demand(order.kind is expected, "I3", f"{order.id} asks to {order.kind}")
    newest = len(digests) - 1
    demand(order.round == newest + 1, "I3", f"{order.id} comes after version {newest}")
    if order.model is not None:
        told = (order.model.version, order.model.digest)
        demand(told == (newest, digests[newest]), "I3", f"{order.id} starts from {told}")


def seat(where: str, site: str, told: SeatRecord, fate: Fate) -> None:
    """I7: a record tells what became of a seat, and why."""
    demand(told.standing.value == fate.value, "I7", f"{where} has {site} {told.standing}, not {fate}")
    silent = fate in (Fate.REFUSED, Fate.FAILED, Fate.LOST, Fate.LATE)
    demand(bool(told.reason) or not silent, "I7", f"{where} gives no reason for {site}")


def used(orders: Mapping[str, Account]) -> None:
    """I1: at the end every acknowledged update counts as often as it was said to."""
    for name, account in orders.items():
        if account.order.kind is not OrderKind.TRAIN or not account.outcome:
            continue
        counts = account.outcome in ("stored", "late_next_round") and not account.barred
        demand(
            len(account.versions) == (1 if counts else 0),
            "I1",
            f"{name} was acknowledged as {account.outcome} and counted in versions {account.versions}",
        )


def counted(effect: fx.Aggregate, due: Sequence[Account]) -> None:
    """I1, I2: a sum is of what was acknowledged for it, as it was sent, with the weight that it has."""
    named, expected = [item.order for item in effect.contributions], [a.order.id for a in due]
    demand(named == expected, "I1", f"round {effect.round} counts {named}, due are {expected}")
    for item, account in zip(effect.contributions, due, strict=True):
        assert account.order.model is not None, "training starts from a model"
        staleness = effect.round - 1 - account.order.model.version
        weight = account.weight / math.sqrt(1 + staleness)
        demand(item.blob == account.blob, "I2", f"{item.order} counts with other bytes")
        fits = math.isclose(item.weight, weight)
        demand(fits, "I2", f"{item.order} weighs {item.weight}, not {weight}")
    demand(effect.base_version == effect.round - 1, "I3", f"base version {effect.base_version}")


def published(record: RoundRecord, event: ev.Event, summed: fx.Aggregate | None) -> ev.RoundAggregated:
    """I2: a version is the sum that was asked for, and its record tells which."""
    demand(summed is not None, "I2", f"version {record.version} came without an aggregation")
    assert summed is not None, "demanded above"
    told = tuple(item.order for item in summed.contributions)
    demand(record.counted == told, "I2", f"the record counts {record.counted}, the sum {told}")
    demand(isinstance(event, ev.RoundAggregated), "I2", f"version {record.version} was not computed")
    assert isinstance(event, ev.RoundAggregated), "demanded above"
    demand(record.model_digest == event.model_digest, "I2", "the record names another model")
    return event


def continued(order: Order, parent: str, returned: tuple[str, ...]) -> None:
    """I1: a site goes on from its last update that counts, and takes back what does not."""
    where = f"{order.id} was handed out"
    demand(order.parent == parent, "I1", f"{where} from parent {order.parent}")
    demand(order.returned == returned, "I1", f"{where} with {order.returned} back, not {returned}")
