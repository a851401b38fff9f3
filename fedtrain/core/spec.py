"""What a run is: the part of its YAML file that decisions are made from.

The task section stays opaque here (canonical JSON): the core decides who works, when and from
which version, never on what.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class LatePolicy(enum.StrEnum):
    """What becomes of an update that arrives after its round was closed."""

    NEXT_ROUND = "next_round"  # counts in the next aggregation with weight (1 + staleness)^-1/2
    RESIDUAL = "residual"  # goes back into the site's residual, so its next update carries it
    DROP = "drop"  # is not used


@dataclass(frozen=True)
class RunSpec:
    """One run, as submitted. Durations in milliseconds; names as in INTERFACE of the project.

    Attributes:
        sites: names that may take part; empty means every enrolled site.
        minimum: fewest sites that a round may start with.
        steps: inner steps per site and round.
        quorum: fewest contributions that close a round.
        quorum_share: least share of the invited sites' data (by their weights) that closes one.
        outer, outer_params: outer optimiser and its settings; `outer_warmup_rounds` plain rounds first.
        norm_max: an update with a larger L2 norm is scaled down to it; None for no bound.
        evaluate_every: evaluate the public model every so many rounds; 0 for only at the end.
        snapshot_every: versions between whole-model snapshots on the downlink.
        attempts_max: abandoned attempts at one round before the run pauses and asks for a person.
    """

    run: str
    seed: int
    task: str
    sites: tuple[str, ...]
    minimum: int
    rounds: int
    steps: int
    quorum: int
    quorum_share: float
    deadline_ms: int
    patience_ms: int
    heartbeat_ms: int
    late: LatePolicy
    outer: str
    outer_params: dict[str, float]
    outer_warmup_rounds: int
    codec_up: str
    codec_down: str
    aggregator: str
    norm_max: float | None
    evaluate_every: int
    snapshot_every: int = 10
    block_elements: int = 1 << 20
    attempts_max: int = 5
