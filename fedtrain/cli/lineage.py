"""Where a model version comes from: shown, checked, and told as a model card.

`audit lineage` makes the document from a copy of the journal alone; `model lineage` asks the coordinator
for the signed one. A card is made from the signed document and from nothing else.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedtrain.cli import output
from fedtrain.cli.options import JournalFile, Json, KeyFile, RunName, Version, check_journal
from fedtrain.errors import ConfigError, IntegrityError, LocalError, NotFoundError, RemoteError, StorageError

if TYPE_CHECKING:
    from fedtrain.core.lineage import Lineage, SignedLineage

DOCUMENT_BYTES_MAX = 64 << 20
"""Of a document in a file; one with a thousand contributors takes a megabyte."""


def lineage(
    journal: JournalFile,
    run: RunName,
    version: Version = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="FILE", help="A document from `model lineage --json`, to compare."),
    ] = None,
    key: KeyFile = None,
    json: Json = False,
) -> None:
    """Make a version's lineage from the journal and check its signatures. Exit code 5 if one fails."""
    from fedtrain.core import canonical
    from fedtrain.trust.lineage import check_contributors

    agreed: dict[str, str] = {}
    made = _from_journal(check_journal(journal), run, version, agreed)
    commits, consents = check_contributors(made, agreed)
    if check is not None:
        from fedtrain.cli.audit import public_key

        _compare(made, read_document(check), public_key(journal, key), check)
    document = {
        "journal": str(journal),
        "digest": canonical.digest(made),
        "lineage": canonical.to_plain(made),
        "commits_verified": commits,
        "consents_verified": consents,
        "checked": str(check) if check else None,
    }
    if json:
        output.emit(document, as_json=True)
        return
    show(made)
    output.say(f"signatures that hold: {commits} of commits, {consents} of consents")
    if check is not None:
        output.say(output.printable(f"{check} is signed by the coordinator and says the same"))


def _from_journal(journal: Path, run: str, version: int | None, agreed: dict[str, str]) -> Lineage:
    from fedtrain.core.lineage import rebuild
    from fedtrain.storage.journal import Journal

    found = None
    book = Journal.open(journal, writer=False)
    try:
        for found in rebuild(book.read(), [run], agreed):
            if found.version == version:
                break
    except (LocalError, AssertionError, LookupError, TypeError) as error:
        raise IntegrityError(
            f"the rows of {journal} hold together, but tell of nothing that a coordinator does ({error}): "
            "run `fedtrain audit verify` with the heads that sites kept"
        ) from error
    finally:
        book.close()
    if found is None or version not in (None, found.version):
        which = "version" if version is None else f"version {version}"
        raise NotFoundError(f"{journal} tells of no {which} of run {run}: `fedtrain audit show` has its runs")
    return found


def _compare(made: Lineage, shown: SignedLineage, public: str, path: Path) -> None:
    """Holds that `shown`, from a file, is signed and says what the journal says."""
    from fedtrain.core.lineage import differences
    from fedtrain.trust.lineage import check_statement

    check_statement(shown, public)
    if differing := differences(made, shown.lineage):
        raise IntegrityError(
            f"{path} is signed by the coordinator, and its journal says otherwise of {', '.join(differing)}: "
            "keep both, they prove it"
        )


def read_document(path: Path) -> SignedLineage:
    """A signed document from a file; `ConfigError` if there is none."""
    from fedtrain.core import canonical
    from fedtrain.core.lineage import SignedLineage

    try:
        with open(path, "rb") as file:
            data = file.read(DOCUMENT_BYTES_MAX)
        return canonical.decode(SignedLineage, data)
    except (OSError, RemoteError) as error:
        raise ConfigError(
            f"holds no lineage ({error}): make one with `fedtrain model lineage RUN --json`", file=str(path)
        ) from error


def from_answer(document: Mapping[str, Any], public: str) -> SignedLineage:
    """What the coordinator answered, held against its signature and the contributors'."""
    from fedtrain.core import canonical
    from fedtrain.core.lineage import SignedLineage
    from fedtrain.trust.lineage import check_contributors, check_statement

    shown = canonical.from_plain(SignedLineage, document)
    check_statement(shown, public)
    check_contributors(shown.lineage)
    return shown


def show(made: Lineage) -> None:
    """Print a document for people: facts, then a line for each contributor."""
    from fedtrain.core import canonical

    for name, value in _facts(made):
        output.say(output.printable(f"{name:<16}{value}"))
    contributors = [canonical.to_plain(item) for item in made.contributors]
    columns = ("site", "organisation", "update", "size_bytes", "weight", "steps", "norm", "contract")
    output.emit({"contributors": [{name: item[name] for name in columns} for item in contributors]}, False)


def _facts(made: Lineage) -> Iterator[tuple[str, object]]:
    yield "run", f"{made.run}, version {made.version} ({made.kind})"
    yield "published", f"{output.utc(made.published_ms)} UTC, round {made.round}, attempt {made.attempt}"
    yield "because", made.reason
    yield "model", made.model_digest
    for parent in made.parents:
        yield "parent", f"version {parent.version}, {parent.model_digest}, lineage {parent.lineage}"
    yield "configuration", made.configuration_digest
    yield "code", f"fedtrain {made.code_version or '(not stated)'}, {made.code_digest or '(no digest)'}"
    yield "journal", f"row {made.journal.sequence}, {made.journal.hash}"
    yield "epoch", made.epoch


# -- the card -------------------------------------------------------------------------------------


def card(signed: SignedLineage) -> str:
    """The model card, markdown, of the version that the document is about."""
    made = signed.lineage
    parts = [
        f"# {made.run}, version {made.version}\n",
        _paragraph(signed),
        "## The model",
        *_list(_model(made)),
        "## How it was trained",
        *_list(_training(made)),
        "## Who contributed to it, from the first version on",
        *_table(("site", "organisation", "updates", "weight", "share", "steps"), _shares(made)),
        "## What went into this version",
        *_table(("site", "update", "weight", "steps", "norm", "contract"), _contributions(made)),
        "## Terms",
        *_list(_terms(made)),
        "## Privacy",
        *_privacy(made),
        "## How to verify this card",
        *_list(_proof(signed)),
        "Weights are tokens or examples, as the sites stated and signed them. The lineage statement says "
        "nothing of how good the model is, and so this card does not either.",
    ]
    return "\n".join(parts) + "\n"


def _paragraph(signed: SignedLineage) -> str:
    made = signed.lineage
    sites = len(made.shares)
    origin = {
        "seeded": "It is the initial model, before any training.",
        "restored": f"It is version {made.parents[0].version} again." if made.parents else "",
    }.get(made.kind, f"{sites} {'site has' if sites == 1 else 'sites have'} contributed to it.")
    when = output.utc(made.published_ms)
    return f"Published by the consortium {signed.consortium} on {when} UTC. {origin}\n"


def _model(made: Lineage) -> Iterator[tuple[str, object]]:
    yield "values", f"{made.num_elements:,} (float32)"
    yield "model digest", f"`{made.model_digest}`"
    yield "layout digest", f"`{made.layout_digest}`"
    task = _task(made)
    yield "task", task.get("name", "not stated")
    for name, value in sorted(_mapping(task.get("model")).items()):
        yield f"model, {name}", value


def _training(made: Lineage) -> Iterator[tuple[str, object]]:
    spec = made.configuration
    yield "data set", _task(made).get("data", "not stated") or "not stated"
    yield "rounds", f"{made.version} of {spec.rounds}, of {spec.steps} steps at each site"
    for name, value in sorted(_mapping(_task(made).get("training")).items()):
        yield f"inner training, {name}", value
    settings = ", ".join(f"{name} {value:g}" for name, value in sorted(spec.outer_params.items()))
    yield "outer optimiser", spec.outer + (f" ({settings})" if settings else "")
    yield "aggregation", spec.aggregator
    yield "bound on an update's norm", "none" if spec.norm_max is None else f"{spec.norm_max:g}"
    yield "codec up, down", f"{spec.codec_up}, {spec.codec_down}"
    yield "late updates", spec.late.value
    yield "seed", spec.seed


def _terms(made: Lineage) -> Iterator[tuple[str, object]]:
    terms = _mapping(_task(made).get("terms"))
    yield "use", terms.get("use") or "non-economic"
    yield "licence", terms.get("licence") or "not stated"


def _privacy(made: Lineage) -> list[str]:
    """Per site: unit, mechanism, epsilon at delta by two accountants; then assumptions and side channels."""
    from fedtrain.core.disclosure import disclosure

    told = disclosure(made.configuration.task, made.charges)
    columns = ("site", "unit", "epsilon (PLD)", "epsilon (RDP)", "delta", "mechanism", "note")
    rows = (
        (
            line["site"],
            line["unit"],
            f"{line['epsilon_pld']:.4g}",
            f"{line['epsilon_rdp']:.4g}",
            f"{line['delta']:g}",
            line["mechanism"],
            line["note"] or "-",
        )
        for line in told["spent"]
    )
    parts: list[str] = []
    if told["promised"]:
        parts += _list(iter([("promised", json_format.dumps(told["promised"], sort_keys=True))]))
        parts += _table(columns, rows) if told["spent"] else ["No site has told of a charge.", ""]
    parts += _list(("assumed", sentence) for sentence in told["assumptions"])
    if told["side_channels"]:
        parts += _list(("not hidden", sentence) for sentence in told["side_channels"])
    return parts


def _proof(signed: SignedLineage) -> Iterator[tuple[str, object]]:
    made = signed.lineage
    yield "lineage", f"signed by key {signed.key_id}: `{signed.signature}`"
    for parent in made.parents:
        yield "parent", f"version {parent.version}, model `{parent.model_digest}`, lineage `{parent.lineage}`"
    yield "configuration", f"`{made.configuration_digest}`"
    yield (
        "code",
        f"fedtrain {made.code_version or 'not stated'}, sources `{made.code_digest or 'not stated'}`",
    )
    yield "journal", f"row {made.journal.sequence}, hash `{made.journal.hash}`"
    command = f"fedtrain audit lineage JOURNAL {made.run} --version {made.version} --check LINEAGE"
    yield "with a copy of the journal", f"`{command}`"


def _shares(made: Lineage) -> Iterator[Sequence[object]]:
    total = sum(share.weight for share in made.shares.values())
    for site, share in made.shares.items():
        part = f"{100 * share.weight / total:.1f} %" if total else "-"
        yield site, share.organisation, share.updates, f"{share.weight:,}", part, f"{share.steps:,}"


def _contributions(made: Lineage) -> Iterator[Sequence[object]]:
    for item in made.contributors:
        contract = f"`{item.contract[:16]}`" if item.contract else "not named"
        yield item.site, f"`{item.update[:16]}`", f"{item.weight:,}", item.steps, f"{item.norm:.4g}", contract


def _task(made: Lineage) -> Mapping[str, Any]:
    """The task section of the run, which is JSON in a string."""
    try:
        return _mapping(json_format.loads(made.configuration.task))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(items: Iterator[tuple[str, object]]) -> list[str]:
    return ["", *(f"- {_plain(name)}: {_plain(value)}" for name, value in items), ""]


def _table(columns: Sequence[str], rows: Iterator[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in rows]
    if not lines:
        return ["", "Nobody.", ""]
    return ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines, ""]


def _plain(value: object) -> str:
    """Text of others that cannot become markup: names of organisations and settings are free text."""
    return output.printable(value).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def write_card(text: str, out: Path | None) -> None:
    """To a file, or to standard output."""
    if out is None:
        output.say(text.rstrip("\n"))
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"cannot write {out} ({error.strerror}): check the folder and its free space"
        ) from error
