"""What the demo ends with: three ways of training in one table, and what they mean in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedtrain.errors import IntegrityError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

MARGIN = 0.10
"""Nats by which the federated model should beat every site's own, on the mean over sites; of text."""

Losses = Mapping[str, float]


@dataclass(frozen=True)
class Traffic:
    """Payload bytes of the whole run, and what float32 without compression would have taken."""

    up: int
    down: int
    float32: int


@dataclass(frozen=True)
class Outcome:
    """Everything the report is made from. Losses are held-out, in nats, site -> loss.

    Attributes:
        accuracy: way of training -> site -> share of held-out records that are classified rightly; empty
            for what does not classify.
        learnt_from: what the data are, and in what a loss is counted.
        privacy: the run's promise, and what each site has signed for.
        stopped: site -> why it was not in the last round.
    """

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
    accuracy: Mapping[str, Losses] = field(default_factory=dict)
    learnt_from: tuple[str, str] = ("text", "byte")
    privacy: Mapping[str, Any] = field(default_factory=dict)
    stopped: Mapping[str, str] = field(default_factory=dict)

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
        "accuracy": {way: dict(found) for way, found in outcome.accuracy.items()},
        "privacy": dict(outcome.privacy),
        "stopped": dict(outcome.stopped),
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

    ways = {"federated": outcome.federated, **outcome.local, "central": outcome.central}
    held_out = [_table(f"Held-out loss, nats per {outcome.learnt_from[1]} (lower is better)", ways, ".3f")]
    if outcome.accuracy:
        ways = {way: outcome.accuracy[way] for way in ways}
        held_out.append(_table("Held-out records that are classified rightly", ways, ".1%"))
    bill = Table.grid(padding=(0, 2))
    traffic = outcome.traffic
    sent = max(1, traffic.up + traffic.down)
    saved = f" ({traffic.float32 / sent:.1f} times as much)" if traffic.float32 > sent else ""
    bill.add_row("rounds", str(outcome.rounds))
    bill.add_row(
        "traffic",
        f"{_mb(traffic.up)} up, {_mb(traffic.down)} down; float32 would take {_mb(traffic.float32)}{saved}",
    )
    bill.add_row("time", f"{outcome.seconds:.0f} s")
    bill.add_row("model", outcome.model)
    bill.add_row("model digest", outcome.model_digest)
    bill.add_row("journal", "verified" if not outcome.problems else outcome.problems[0])
    for spent in outcome.privacy.get("spent", ()):
        bill.add_row(f"privacy at {spent['site']}", _spent(spent))
    for site, reason in sorted(outcome.stopped.items()):
        bill.add_row(f"{site} stopped", reason)
    return Group(*held_out, bill)


def _table(title: str, ways: Mapping[str, Losses], form: str) -> Table:
    """One row a way of training, one column a site's held-out data."""
    from rich.table import Table

    sites = sorted(ways["federated"])
    table = Table(title=title, title_justify="left")
    table.add_column("trained")
    for site in sites:
        table.add_column(f"on {site}", justify="right")
    table.add_column("mean", justify="right", style="bold")
    for way, row in ways.items():
        name = way if way in ("federated", "central") else f"{way} alone"
        table.add_row(name, *(f"{row[site]:{form}}" for site in sites), f"{fmean(row.values()):{form}}")
    return table


def _spent(spent: Mapping[str, Any]) -> str:
    """An epsilon with all that it means nothing without."""
    return (
        f"epsilon {spent['epsilon_pld']:.3f} (RDP: {spent['epsilon_rdp']:.3f}) per {spent['unit']} at delta"
        f" {spent['delta']:g}, up to {spent['order']}; {spent['mechanism']}"
    )


def words(outcome: Outcome) -> str:
    """What came out, in words, whatever it is."""
    data, nats = outcome.learnt_from[0], f"nats per {outcome.learnt_from[1]}"
    lead = _lead(outcome)
    central = fmean(outcome.central.values()) - fmean(outcome.federated.values())
    best = min(outcome.local, key=lambda site: fmean(outcome.local[site].values()))
    if lead >= MARGIN:
        verdict = f"The federated model beats every site's own: by {lead:.2f} {nats} against {best}'s."
    elif lead > 0:
        verdict = (
            f"The federated model beats every site's own, but by only {lead:.2f} {nats} against {best}'s"
            f"{f' (expected: {MARGIN:.2f} or more)' if data == 'text' else ''}."
        )
    else:
        verdict = f"The federated model LOST to {best}'s own by {-lead:.2f} {nats} on the mean."
    gap = (
        f"Training on all {data} in one place is still {-central:.2f} better"
        if central < 0
        else f"It is {central:.2f} better than training on all {data} in one place"
    )
    worse = [site for site in outcome.federated if outcome.federated[site] > outcome.local[site][site]]
    own = (
        f"Better than the federated model on its own {data}: {', '.join(sorted(worse))} alone."
        if worse
        else f"It is better than each site alone on that site's own {data}, too."
    )
    noise = " All of them were trained with the same noise in every step." if promised(outcome) else ""
    return f"{verdict} {gap}. {own}{noise}"


def promised(outcome: Outcome) -> bool:
    """Whether the run's steps, and those that it is compared with, had noise."""
    return "record" in outcome.privacy.get("promised", {})


def _lead(outcome: Outcome) -> float:
    """By how much the mean federated loss is below the best site's own."""
    best = min(fmean(losses.values()) for losses in outcome.local.values())
    return best - fmean(outcome.federated.values())


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
