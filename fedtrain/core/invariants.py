"""What must hold of every state, whatever happened. Checked in simulations and tests.

The auditor of `sim` keeps its own account beside this one; numbers are those of the project's
list of faults.
"""

from __future__ import annotations

from collections import Counter

from fedtrain.core.orders import OrderKind
from fedtrain.core.rounds import kind_of_round
from fedtrain.core.state import ENDED, Phase, RoundRecord, RunState, Standing, State


def violations(state: State) -> tuple[str, ...]:
    """Every broken invariant, in words; empty if all hold."""
    found: list[str] = []
    for name, run in state.runs.items():
        found += [f"{name}: {problem}" for problem in _of_run(run)]
    return tuple(found)


def _of_run(run: RunState) -> list[str]:
    return [*_counted_once(run), *_one_chain(run), *_all_accounted(run), *_open_round(run)]


def _counted_once(run: RunState) -> list[str]:
    """I1: no acknowledged update counts twice."""
    counted = Counter(order for record in run.records for order in record.counted)
    return [f"I1: {order} was counted {times} times" for order, times in counted.items() if times > 1]


def _one_chain(run: RunState) -> list[str]:
    """I3: versions form one chain, and the way to the newest one is whole."""
    versions = [record.version for record in run.records if record.version is not None]
    if versions != list(range(len(versions))):
        return [f"I3: versions are {versions}"]
    if run.model is None:
        return []
    ref = run.model.ref
    links = [version for version, _, _ in ref.chain[1:]]
    problems = []
    if ref.chain[0][0] != ref.snapshot_version:
        problems.append("I3: the chain does not start with its snapshot")
    if links != sorted(set(links)) or (links and links != list(range(links[0], links[-1] + 1))):
        problems.append(f"I3: deltas are not consecutive: {links}")
    if ref.version > ref.snapshot_version and (not links or links[-1] != ref.version):
        problems.append(f"I3: no way from snapshot {ref.snapshot_version} to version {ref.version}")
    return problems


def _all_accounted(run: RunState) -> list[str]:
    """I7: a record accounts for every invited site, with a reason where it did not contribute."""
    problems = []
    for record in run.records:
        for site, seat in record.seats.items():
            silent = seat.standing in (Standing.REFUSED, Standing.FAILED, Standing.LOST, Standing.LATE)
            if silent and not seat.reason:
                problems.append(f"I7: round {record.index}: {site} is {seat.standing} without a reason")
            if record.version is not None and seat.standing in (Standing.INVITED, Standing.WORKING):
                problems.append(f"I7: round {record.index} closed while {site} is {seat.standing}")
        trains = _was_aggregated(record) and kind_of_round(run.spec, record.index) is OrderKind.TRAIN
        if trains and len(record.counted) < run.spec.quorum:
            problems.append(f"I7: round {record.index} counted {len(record.counted)}, below its quorum")
    return problems


def _was_aggregated(record: RoundRecord) -> bool:
    return record.version is not None and record.restored is None


def _open_round(run: RunState) -> list[str]:
    """The phase and the open round agree."""
    needs_round = run.phase not in ENDED | {Phase.WAITING, Phase.RESTORING}
    if needs_round and run.round is None:
        return [f"phase {run.phase} without a round"]
    if run.phase in ENDED and run.round is not None:
        return [f"phase {run.phase} with an open round"]
    if run.phase is Phase.AGGREGATING and run.round is not None and not run.round.counted:
        return ["aggregating nothing"]
    return []
