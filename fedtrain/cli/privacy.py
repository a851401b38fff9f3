"""`fedtrain privacy`: what a run promises, held against attacks on it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fedtrain.cli import output
from fedtrain.cli.options import Config, Json
from fedtrain.errors import ConfigError, RefusedError

app = typer.Typer(no_args_is_help=True)

Told = Callable[[str, int, int], None]

PARTS = 4
"""Lines a progress that is not on a terminal has for each attack."""


@app.callback()
def _privacy() -> None:
    """What a run promises about privacy, held against attacks on it."""


@app.command()
def audit(
    config: Config,
    data: Annotated[
        Path | None, typer.Option("--data", help="A site's peer.yaml; without it, data that come along.")
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", min=400, help="Of each distinguishing attack, at most.")
    ] = 4000,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="For all attacks, about.")] = 180.0,
    confidence: Annotated[
        float, typer.Option("--confidence", min=0.5, max=0.999999999999, help="Of the lower bounds.")
    ] = 0.99,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats", min=1, max=64, help="How often each secret is planted; a promise is for once."
        ),
    ] = 1,
    json: Json = False,
) -> None:
    """Attack the run's own training step, and plant secrets: what can really be learnt, beside the claim.

    Nothing is sent anywhere. Exit code 3 if more is lost than the run claims.
    """
    from fedtrain.config.run import load_run

    spec = load_run(config).spec()
    # torch loads here, after the file was found to be one.
    from fedtrain.trainer.audit.task_audit import Limits, RunFacts, audit_task, promised

    try:
        promised(spec.task)
        with _progress() as told:
            document = audit_task(
                RunFacts(spec.run, spec.seed, spec.task),
                _source(spec.task, data),
                Limits(runs, seconds, 1 - confidence, repeats),
                told,
            )
    except ConfigError as error:
        raise error if error.file else ConfigError(str(error), file=str(config)) from error
    if json:
        output.emit(_plain(document), as_json=True)
    else:
        _show(document)
    if document["broken"]:
        units = [
            unit for unit, found in document["units"].items() if any(map(_broken, found["attacks"].values()))
        ]
        raise RefusedError(
            f"{spec.run} loses more than it claims for each {' and each '.join(units)}, and an attack proves"
            " it: do not run it"
        )


def _source(task: str, data: Path | None) -> Any:
    from fedtrain.trainer.audit.demo_data import demo_source
    from fedtrain.trainer.data import DataSource, read_datasets
    from fedtrain.trainer.settings import TaskSpec

    section = TaskSpec.from_json(task)
    if data is None:
        source = demo_source(section)
        output.note(f"fedtrain: no --data given; attacking on data that come along ({section.name})")
        return source
    return DataSource(section.data, section.name, read_datasets(data))


@contextmanager
def _progress() -> Iterator[Told]:
    """A bar for each attack on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:20}"), BarColumn(), TextColumn("{task.completed:.0f} of"))
    columns += (TextColumn("{task.total:.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[str, Any] = {}

        def told(attack: str, done: int, of: int) -> None:
            if attack not in bars:
                bars[attack] = progress.add_task(attack, total=of)
            progress.update(bars[attack], completed=done, total=of)

        yield told


def _lines() -> Told:
    said: set[tuple[str, int]] = set()

    def told(attack: str, done: int, of: int) -> None:
        part = PARTS * done // max(1, of)
        if part and (attack, part) not in said:
            said.add((attack, part))
            output.note(f"fedtrain: {attack}: {done} of {of}")

    return told


def _show(document: dict[str, Any]) -> None:
    shown: dict[str, Any] = {key: document[key] for key in ("run", "task", "dataset")}
    shown["confidence"] = f"{1 - document['failure']:.10g}"
    for unit, found in document["units"].items():
        shown[f"unit: {unit}"] = _unit(unit, found)
    if extraction := document["extraction"]:
        shown["secrets"] = (
            f"{extraction['canaries']} planted, {extraction['repeats']} times each; a model without memory"
            f" has an exposure of {extraction['chance_bits']:.2f} bits"
        )
        shown["exposure"] = [
            {
                "training": name,
                "steps": f"{found['steps']} of {found['of']}",
                "mean, bits": f"{found['mean_bits']:.2f}",
                "most": f"{found['most_bits']:.2f}",
                "possible": f"{math.log2(found['candidates'] + 1):.2f}",
            }
            for name, found in extraction["trainings"].items()
        ]
    output.emit(shown, False)


def _unit(unit: str, found: dict[str, Any]) -> dict[str, Any]:
    claim = found["claim"]
    shown: dict[str, Any] = {
        "claim": f"epsilon {claim['epsilon']:.4g} at delta {claim['delta']:g}: {claim['steps']} times noise"
        f" {claim['noise_multiplier']:.4g} on clip {claim['clip']:g}, sampling {claim['sampling_rate']:.4g}"
    }
    if "target" in found:
        length = found["target"]["gradient_clips"]
        shown["attacked"] = f"one {unit} of {claim['units']}, with a gradient of {length:.2f} clips"
    shown["attacks"] = [
        {
            "name": _ATTACKS[name],
            "runs": attack["runs"],
            "mu, lower bound": _number(attack["mu_lower"]),
            "mu claimed": _number(attack["mu_claimed"]),
            "epsilon, lower bound": _number(attack["epsilon_lower"]),
            "epsilon claimed": _number(attack["epsilon_claimed"]),
            "claim": "broken" if _broken(attack) else "holds",
        }
        for name, attack in found["attacks"].items()
    ]
    return shown


def _broken(attack: dict[str, Any]) -> bool:
    return bool(attack["mu_lower"] > attack["mu_claimed"])


_ATTACKS = {
    "step": "clip and noise (every unit in)",
    "sampling": "sampling (half of the units in)",
    "update": "clip and noise of the update",
}


def _number(value: float) -> str:
    return "unbounded" if math.isinf(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    """Without infinities, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return "unbounded" if isinstance(value, float) and math.isinf(value) else value
