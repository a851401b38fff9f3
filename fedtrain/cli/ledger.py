"""`fedtrain ledger`: privacy spent and left at a site, per data set. Needs no network, and no agent."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fedtrain.cli import output
from fedtrain.cli.options import Json
from fedtrain.errors import ConfigError, IntegrityError, NotFoundError, RefusedError

if TYPE_CHECKING:
    from fedtrain.core.charges import Charge
    from fedtrain.storage.ledger import LedgerRow

app = typer.Typer(no_args_is_help=True)

PEER_FILE = "peer.yaml"
DELTA = 1e-5
"""At which the spending of a data set without a budget is told."""

MEANING = (
    "This closes the budget of {dataset} for good. Do it where nobody can know any more what was charged, "
    "because the ledger was damaged, lost, or put back to an older copy: one more row stands for all of the "
    "unknown, and every later order on {dataset} that costs privacy is refused, whatever epsilon_max says. "
    "No command takes it back. An owner who does know what was spent begins another ledger by hand, with "
    "another state folder for the agent, and answers for it."
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="As peer.yaml names it.")]


class Budget(NamedTuple):
    """What peer.yaml says of a data set; `epsilon_max` is None where it has no budget."""

    unit: str
    epsilon_max: float | None
    delta: float


class Place(NamedTuple):
    """Where a site's ledger is, and what it is held against."""

    ledger: Path
    state: Path
    budgets: dict[str, Budget]
    datasets: tuple[str, ...]


@app.command()
def show(
    folder: Folder,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the spending as well: .png or .svg.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="Only this data set.")
    ] = None,
    json: Json = False,
) -> None:
    """Privacy spent and left, per data set and per run, by two accountants.

    Spent is what was charged: work that never came to an end is charged all the same.
    """
    from fedtrain.cli import ledger_plot

    place = _place(folder)
    if plot is not None:
        ledger_plot.check(plot)
    rows, head = _read(place.ledger)
    names = sorted({row.charge.dataset for row in rows} | set(place.budgets))
    if dataset is not None:
        if dataset not in {*names, *place.datasets}:
            known = _list(sorted({*names, *place.datasets}))
            raise NotFoundError(f"no data set {dataset!r} is charged or in peer.yaml; there is {known}")
        names = [dataset]
    by_dataset = {name: [row for row in rows if row.charge.dataset == name] for name in names}
    budgets = {name: place.budgets.get(name) or _assumed(by_dataset[name]) for name in names}
    told = {name: _dataset(by_dataset[name], budgets[name]) for name in names}
    document: dict[str, Any] = {"ledger": str(place.ledger), **head, "datasets": told}
    if plot is not None:
        curves = [ledger_plot.curve(name, by_dataset[name], told[name]) for name in names]
        ledger_plot.draw([one for one in curves if one is not None], plot)
        document["plot"] = str(plot)
    if json:
        output.emit(document, as_json=True)
        return
    _say(document)


@app.command()
def verify(folder: Folder, json: Json = False) -> None:
    """Hold every row against the chain, and the ledger against what this site's agent last wrote to it.

    Exit code 5 if a row was changed, if the file is torn, or if it is an older copy.
    """
    from fedtrain.core.charges import CLOSED
    from fedtrain.storage.ledger import Ledger

    place = _place(folder)
    _present(place.ledger)
    with Ledger(place.ledger) as ledger:
        head = ledger.verify()
        written = _written(place.state)
        repaired = any(row.charge.mechanism.kind == CLOSED for row in ledger.rows())
        if written is not None and not repaired and not ledger.holds(*written):
            raise IntegrityError(
                f"privacy ledger {place.ledger}: it was put back to an older copy: the agent's journal knows "
                f"of row {written[0]} ({written[1][:12]}), which it does not hold; put its newest copy in "
                "its place, or close the budgets with `fedtrain ledger repair`"
            )
    agent = "no charge" if written is None else f"row {written[0]}"
    document = {"ledger": str(place.ledger), "sequence": head.sequence, "hash": head.hash}
    output.emit({**document, "agent_wrote": agent, "repaired": repaired, "sound": True}, json)


@app.command()
def repair(
    folder: Folder,
    dataset: Dataset,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Stands in the ledger.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Close a data set's budget for good, because what it has spent cannot be known any more."""
    from fedtrain.storage.ledger import Ledger

    place = _place(folder)
    if not reason.strip():
        raise ConfigError("say why the budget is closed", key="--reason")
    if dataset not in place.datasets:
        known = _list(place.datasets)
        raise ConfigError(f"peer.yaml has no data set {dataset!r}; it has {known}", key="DATASET")
    output.note(MEANING.format(dataset=dataset))
    if not yes and not _confirmed():
        raise RefusedError("nothing was written: say yes, or --yes on the command line")
    with Ledger(place.ledger) as ledger:
        head = ledger.repair(dataset, reason.strip())
    output.emit(
        {"dataset": dataset, "closed": reason.strip(), "sequence": head.sequence, "hash": head.hash}, json
    )


def _place(folder: Path) -> Place:
    from fedtrain.config import load_peer

    config = load_peer(folder / PEER_FILE)
    assert config.ledger is not None, "load_peer says where it is"
    budgets = {
        name: Budget(one.privacy.unit, one.privacy.epsilon_max, one.privacy.delta)
        for name, one in config.datasets.items()
        if one.privacy is not None
    }
    return Place(Path(config.ledger), Path(config.state), budgets, tuple(config.datasets))


def _present(path: Path) -> None:
    if not path.is_file():
        raise NotFoundError(f"{path} is not there: nothing was charged yet, or the ledger was moved away")


def _read(path: Path) -> tuple[tuple[LedgerRow, ...], dict[str, Any]]:
    """(rows, sequence and hash of the last); none where nothing was ever charged."""
    from fedtrain.storage.ledger import Ledger

    if not path.is_file():
        output.note(f"fedtrain: {path} is not there: nothing was charged yet, or the ledger was moved away")
        return (), {"sequence": 0, "hash": ""}
    with Ledger(path, writer=False) as ledger:
        rows = ledger.rows()
    sequence, row_hash = (rows[-1].sequence, rows[-1].hash) if rows else (0, "")
    return rows, {"sequence": sequence, "hash": row_hash}


def _written(state: Path) -> tuple[int, str] | None:
    """The last row that the agent of this folder wrote, by its own journal."""
    from fedtrain.peer import held

    try:
        head = held.read_state(state).ledger
    except NotFoundError:
        return None
    return (head.sequence, head.hash) if head.sequence else None


def _assumed(rows: Sequence[LedgerRow]) -> Budget:
    """In what to tell the spending of a data set without a budget: the finest unit that was charged."""
    units = {row.charge.mechanism.unit for row in rows}
    unit = next((one for one in ("record", "group") if one in units), "site")
    return Budget(unit, None, DELTA)


def _dataset(rows: Sequence[LedgerRow], budget: Budget) -> dict[str, Any]:
    from fedtrain.methods.accounting import epsilon_pld, epsilon_rdp

    charges = [row.charge for row in rows]
    composition, unfit = served(budget.unit, charges)
    tight = epsilon_pld(composition, budget.delta)
    closed = next((row.reason for row in rows if row.reason), "")
    notes = [tight.note] if tight.note and not closed else []
    if closed:
        notes = ["closed for good: what was spent cannot be known"]
    if unfit:
        notes.append(f"{unfit} charges are for units that say nothing about a {budget.unit}")
    unknown = bool(unfit) or math.isinf(tight.epsilon)
    runs = sorted({(charge.consortium, charge.run) for charge in charges if charge.order})
    return {
        "unit": budget.unit,
        "delta": budget.delta,
        "epsilon_max": budget.epsilon_max,
        "spent_rdp": None if unknown else epsilon_rdp(composition, budget.delta),
        "spent_pld": None if unknown else tight.epsilon,
        "pld_by": tight.by,
        "left": _left(budget.epsilon_max, math.inf if unknown else tight.epsilon),
        "charges": len(charges),
        "executions": len({(charge.consortium, charge.order, charge.execution) for charge in charges}),
        "last_charge_ms": rows[-1].at_ms if rows else None,
        "closed": closed,
        "notes": notes,
        "runs": [_run(rows, budget, consortium, run) for consortium, run in runs],
    }


def _run(rows: Sequence[LedgerRow], budget: Budget, consortium: str, run: str) -> dict[str, Any]:
    from fedtrain.methods.accounting import epsilon_rdp

    mine = [row for row in rows if (row.charge.consortium, row.charge.run) == (consortium, run)]
    composition, unfit = served(budget.unit, [row.charge for row in mine])
    epsilon = epsilon_rdp(composition, budget.delta)
    return {
        "run": run,
        "consortium": consortium,
        "charges": len(mine),
        "orders": len({row.charge.order for row in mine}),
        "steps": sum(mechanism.steps * count for mechanism, count in composition),
        "spent_rdp": None if unfit or math.isinf(epsilon) else epsilon,
        "last_charge_ms": mine[-1].at_ms,
    }


def served(unit: str, charges: Sequence[Charge]) -> tuple[Any, int]:
    """(what these charges cost one unit, how many of them say nothing about it)."""
    from fedtrain.core.charges import serving
    from fedtrain.methods.accounting import grouped

    counted, unfit = serving(unit, charges)
    return grouped(counted), len(unfit)


def _left(most: float | None, spent: float) -> float | None:
    return None if most is None else max(0.0, most - spent)


def _say(document: dict[str, Any]) -> None:
    """Tables: the data sets, then each one's runs."""
    datasets = document["datasets"]
    table = [
        {
            "name": name,
            "unit": told["unit"],
            "epsilon_max": told["epsilon_max"],
            "delta": f"{told['delta']:g}",
            "spent (RDP)": _epsilon(told["spent_rdp"]),
            "spent (PLD)": _epsilon(told["spent_pld"]) if told["pld_by"] == "pld" else "-",
            "left": told["left"],
            "charges": told["charges"],
            "last charge": "-" if told["last_charge_ms"] is None else output.utc(told["last_charge_ms"]),
        }
        for name, told in datasets.items()
    ]
    output.emit(
        {key: value for key, value in document.items() if key != "datasets"} | {"datasets": table}, False
    )
    for name, told in datasets.items():
        for note in told["notes"]:
            output.say(output.printable(f"{name}: {note}"))
        if told["closed"]:
            output.say(output.printable(f"{name}: the owner's reason: {told['closed']}"))
        if told["runs"]:
            output.say("")
            runs = [
                {**run, "spent_rdp": _epsilon(run["spent_rdp"])}
                | {"last_charge_ms": output.utc(run["last_charge_ms"])}
                for run in told["runs"]
            ]
            unit = f"per {told['unit']} at delta {told['delta']:g}, by RDP"
            output.emit({f"runs on {name} ({unit})": runs}, False)


def _epsilon(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _confirmed() -> bool:
    return sys.stdin.isatty() and typer.confirm("Close it?", err=True)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
