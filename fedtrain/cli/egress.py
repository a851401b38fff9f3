"""`fedtrain egress`: what left this site, and what waits for a word before it leaves. Needs no network."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedtrain.cli import consent, output
from fedtrain.cli.options import Json
from fedtrain.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from fedtrain.peer.held import Inspection, Tensor

app = typer.Typer(no_args_is_help=True)

PEER_FILE = "peer.yaml"
BAR_CHARACTERS = 30

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]
OrderId = Annotated[str, typer.Argument(metavar="ORDER", help="As `egress list` names it.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="The coordinator is told this.")]


@app.command()
def show(
    folder: Folder,
    since: Annotated[
        str | None, typer.Option(metavar="24h|DATE", help="Only what left since then; a date is in UTC.")
    ] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only this run's uploads.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hold every upload against the coordinator's receipts.")
    ] = False,
    json: Json = False,
) -> None:
    """Every byte that left this site: when, what, for which run, and which clause of the contract allows it.

    With --verify exit code 5 if the coordinator signed for other files than those that left.
    """
    from fedtrain.peer import outgoing

    state = _state(folder)
    account = outgoing.read(state)
    document = account.document(_since_ms(since), run)
    if verify:
        document["problems"] = account.problems(_coordinator_key(state))
    if json:
        output.emit(document, as_json=True)
    else:
        notes = document.pop("notes")
        output.emit({**document, "uploads": [_readable(entry) for entry in document["uploads"]]}, False)
        for line in notes:
            output.note(f"fedtrain: {line}")
    if verify and document["problems"]:
        raise IntegrityError(f"what left is not what was signed for: {document['problems'][0]}")


@app.command("list")
def list_held(folder: Folder, json: Json = False) -> None:
    """Updates that are held until a person of this site lets them go."""
    from fedtrain.peer import held

    found = held.waiting(held.read_state(_state(folder)))
    updates = [
        {
            "order": name,
            "run": one.order.run,
            "round": one.order.round,
            "kind": str(one.order.kind),
            "size_bytes": one.result.size_bytes,
            "norm": one.result.norm,
            "steps": one.result.steps,
            "digest": one.result.digest,
        }
        for name, one in found.items()
        if one.result is not None
    ]
    if not updates and not json:
        output.say("Nothing is held.")
        return
    output.emit({"held": updates}, json)


@app.command()
def inspect(folder: Folder, order: OrderId, json: Json = False) -> None:
    """What a held update holds, tensor by tensor: size, spread, histogram, and how it differs from noise."""
    from fedtrain.peer import held

    state = _state(folder)
    found = held.inspect(state, held.read_state(state), order)
    if json:
        output.emit(found.document(), as_json=True)
        return
    output.emit(_head(found), False)
    for tensor in found.tensors:
        output.say("")
        output.say_rich(output.render(_tensor(tensor)))
        _histogram(tensor)
    output.say("")
    output.emit({"what the numbers say": held.MEANING}, False)


@app.command()
def release(folder: Folder, order: OrderId, json: Json = False) -> None:
    """Let a held update go to the coordinator."""
    _say(folder, "release", order, "", json)


@app.command()
def withhold(folder: Folder, order: OrderId, reason: Reason = "", json: Json = False) -> None:
    """Keep a held update here for good; the coordinator hears that there will be none."""
    _say(folder, "withhold", order, reason, json)


def _say(folder: Path, kind: str, order: str, reason: str, json: bool) -> None:
    from fedtrain.peer import decisions, held

    state = _state(folder)
    held.find(held.read_state(state), order)
    taken = consent.speak(state, decisions.Decision(kind, order, reason, decisions.person()))
    what = "the agent has taken it" if taken else "no agent runs here: it is taken at the next start"
    output.emit({"order": order, "decision": kind, "taken": taken, "reason": what}, json)


def _state(folder: Path) -> Path:
    from fedtrain.config import load_peer

    return Path(load_peer(folder / PEER_FILE).state)


def _since_ms(text: str | None) -> int:
    """Milliseconds since 1970 of `24h` ago, or of a date or time in UTC."""
    from fedtrain.config.units import parse_duration_ms

    if text is None:
        return 0
    try:
        return time.time_ns() // 1_000_000 - parse_duration_ms(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is neither a duration (24h, 7d) nor a date (2026-01-31, 2026-01-31T08:00)",
            key="--since",
        ) from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _coordinator_key(state: Path) -> str:
    from fedtrain.trust.folders import load_member

    return load_member(state).coordinator_public


def _readable(entry: dict[str, Any]) -> dict[str, Any]:
    """An upload's row without what its order says already."""
    hidden = ("run", "round", "messages")
    return {"at": output.utc(entry["at_ms"])} | {
        key: value for key, value in entry.items() if key not in (*hidden, "at_ms")
    }


def _head(found: Inspection) -> dict[str, Any]:
    noise = sum(tensor.likeness.like_noise for tensor in found.tensors)
    return {
        "order": found.order,
        "kind": found.kind,
        "codec": found.codec,
        "size_bytes": found.size_bytes,
        "digest": found.digest,
        "norm": found.norm,
        "cosine": "-" if found.cosine is None else f"{found.cosine:.4f} with {found.beside}",
        "like noise": f"{noise} of {len(found.tensors)} tensors",
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    seen = tensor.likeness
    flat = "-" if seen.flatness is None else f"{seen.flatness:.3f} ({seen.flatness_sigmas:+.1f} sigmas)"
    return {
        "name": f"{tensor.name} {list(tensor.shape)}",
        "norm": f"{seen.norm:.6g}, values {seen.low:.4g} to {seen.high:.4g}, mean {seen.mean:.3g}, "
        f"deviation {seen.deviation:.4g}, zeros {seen.zeros:.1%}",
        "from noise": f"entropy {seen.entropy:.3f} (noise {seen.entropy_noise:.3f}), "
        f"kurtosis {seen.kurtosis:.2f} ({seen.kurtosis_sigmas:+.1f} sigmas), "
        f"lag {seen.lag:.3f} ({seen.lag_sigmas:+.1f} sigmas), flatness {flat}",
    }


def _histogram(tensor: Tensor) -> None:
    seen = tensor.likeness
    absmax, most = max(-seen.low, seen.high), max(seen.histogram)
    width = 2 * absmax / len(seen.histogram)
    for index, count in enumerate(seen.histogram):
        bar = "#" * round(BAR_CHARACTERS * count / most)
        output.say(f"  {-absmax + index * width:>11.3g}  {bar:<{BAR_CHARACTERS}}  {count}")
