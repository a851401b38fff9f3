"""What the demo ends with: three ways of training in one table, and what they mean in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedtrain.errors import IntegrityError

if TYPE_CHECKING:
    from rich.console import Group

MARGIN = 0.10
"""Nats per byte by which the federated model should beat every site's own, on the mean over sites."""

Losses = Mapping[str, float]


@dataclass(frozen=True)
class Traffic:
    """Payload bytes of the whole run, and what float32 without compression would have taken."""

    up: int
    down: int
    float32: int


@dataclass(frozen=True)
class Outcome:
    """Everything the report is made from. Losses are held-out, nats per byte, site -> loss."""

    run: str
    seed: int
    rounds: int
    federated: Losses
    central: Losses
    local: Mapping[str, Losses]
    traffic: Traffic
    seconds: float
    model: str
    model_digest: str
    problems: tuple[str, ...]

    def check(self) -> None:
        """Exit code 5 if the journal does not verify."""
        if self.problems:
            raise IntegrityError(f"the journal does not verify: {self.problems[0]}")


def document(outcome: Outcome) -> dict[str, Any]:
    """The one document of `demo --json`."""
    return {
        "run": outcome.run,
        "seed": outcome.seed,
        "loss": {
            "federated": dict(outcome.federated),
            "central": dict(outcome.central),
            "local": {site: dict(losses) for site, losses in outcome.local.items()},
        },
        "bytes_up": outcome.traffic.up,
        "bytes_down": outcome.traffic.down,
        "bytes_float32": outcome.traffic.float32,
        "rounds": outcome.rounds,
        "seconds": outcome.seconds,
        "model": outcome.model,
        "model_digest": outcome.model_digest,
        "journal_verified": not outcome.problems,
        "beats_every_site_by": _lead(outcome),
    }


def tables(outcome: Outcome) -> Group:
    """Losses of every way of training on every site's held-out text, and the run's bill."""
    from rich.console import Group
    from rich.table import Table

    sites = sorted(outcome.federated)
    losses = Table(title="Held-out loss, nats per byte (lower is better)", title_justify="left")
    losses.add_column("trained")
    for site in sites:
        losses.add_column(f"on {site}", justify="right")
    losses.add_column("mean", justify="right", style="bold")
    rows = [("federated", outcome.federated)]
    rows += [(f"{site} alone", outcome.local[site]) for site in sorted(outcome.local)]
    rows += [("central", outcome.central)]
    for name, row in rows:
        losses.add_row(name, *(f"{row[site]:.3f}" for site in sites), f"{fmean(row.values()):.3f}")
    bill = Table.grid(padding=(0, 2))
    traffic = outcome.traffic
    sent = traffic.up + traffic.down
    bill.add_row("rounds", str(outcome.rounds))
    bill.add_row(
        "traffic",
        f"{_mb(traffic.up)} up, {_mb(traffic.down)} down; float32 would take {_mb(traffic.float32)}"
        f" ({traffic.float32 / max(1, sent):.1f} times as much)",
    )
    bill.add_row("time", f"{outcome.seconds:.0f} s")
    bill.add_row("model", outcome.model)
    bill.add_row("model digest", outcome.model_digest)
    bill.add_row("journal", "verified" if not outcome.problems else outcome.problems[0])
    return Group(losses, bill)


def words(outcome: Outcome) -> str:
    """What came out, in words, whatever it is."""
    lead = _lead(outcome)
    central = fmean(outcome.central.values()) - fmean(outcome.federated.values())
    best = min(outcome.local, key=lambda site: fmean(outcome.local[site].values()))
    if lead >= MARGIN:
        verdict = f"The federated model beats every site's own: by {lead:.2f} nats per byte against {best}'s."
    elif lead > 0:
        verdict = (
            f"The federated model beats every site's own, but by only {lead:.2f} nats per byte against"
            f" {best}'s (expected: {MARGIN:.2f} or more)."
        )
    else:
        verdict = f"The federated model LOST to {best}'s own by {-lead:.2f} nats per byte on the mean."
    gap = (
        f"Training on all text in one place is still {-central:.2f} better"
        if central < 0
        else f"It is {central:.2f} better than training on all text in one place"
    )
    worse = [site for site in outcome.federated if outcome.federated[site] > outcome.local[site][site]]
    own = (
        f"Better than the federated model on its own text: {', '.join(sorted(worse))} alone."
        if worse
        else "It is better than each site alone on that site's own text, too."
    )
    return f"{verdict} {gap}. {own}"


def _lead(outcome: Outcome) -> float:
    """By how much the mean federated loss is below the best site's own."""
    best = min(fmean(losses.values()) for losses in outcome.local.values())
    return best - fmean(outcome.federated.values())


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
