"""`fedtrain join`, `fedtrain peer` and `fedtrain trainer`: what runs at a site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtrain.cli import options, output

if TYPE_CHECKING:
    from fedtrain.config import PeerConfig
    from fedtrain.peer.settings import AgentSettings

app = typer.Typer(no_args_is_help=True)
trainer = typer.Typer(no_args_is_help=True)

PEER_FILE = "peer.yaml"

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]


def join(
    invite: Annotated[
        str,
        typer.Argument(metavar="INVITE", help="The line of `site invite`, or the file of `site sign`."),
    ] = "",
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")] = options.HERE,
    request: Annotated[
        Path | None,
        typer.Option("--request", metavar="DIR", help="Only make keys there, and a request to be signed."),
    ] = None,
    name: Annotated[str, typer.Option(help="With --request: the newcomer's name.")] = "",
    role: Annotated[str, typer.Option(help="With --request: site, operator, observer, auditor.")] = "site",
    organisation: Annotated[str, typer.Option(metavar="ORG", help="With --request: its institution.")] = "",
) -> None:
    """Enrol with an invite: makes the keys here, fetches the certificate, writes a commented peer.yaml."""
    from fedtrain.cli import offline
    from fedtrain.errors import ConfigError

    if request is not None:
        offline.request(request, name, role, organisation)
        return
    if not invite or folder == options.HERE:
        raise ConfigError("needs the invite and the new folder: fedtrain join INVITE DIR", key="join")
    if invite.endswith(".json"):
        made, member, address = offline.take(Path(invite), folder)
    else:
        from fedtrain import peer

        joined = peer.join(invite, folder)
        made, member, address = joined.role, joined.name, joined.address
        output.say(f"Joined {joined.consortium} as {made} {member}.")
    if made == "site":
        path = folder / PEER_FILE
        _write_peer_file(path, member, address)
        output.say(f"Next: list your data and what you allow in {output.printable(path)},")
        output.say(f"then: fedtrain peer run {output.printable(folder)}")


@app.command("run")
def run_peer(
    folder: Folder,
    once: Annotated[bool, typer.Option("--once", help="Wake, sync, hand over, leave.")] = False,
) -> None:
    """Run the site's agent: it holds every order against the contract in peer.yaml."""
    from fedtrain import peer
    from fedtrain.config import load_peer

    settings = _settings(folder, load_peer(folder / PEER_FILE))
    output.log_to_stderr()
    peer.run(settings, once=once)


@app.command("check")
def check_peer(
    folder: Folder,
    as_json: options.Json = False,
) -> None:
    """Look at all before the first order: certificate, link, clock, disk, contract, trainer, data, walls.

    Ends with 0 if nothing failed. Changes nothing, and may run beside the agent.
    """
    from fedtrain.config import load_peer
    from fedtrain.peer import preflight

    checks = preflight.preflight(_settings(folder, load_peer(folder / PEER_FILE)))
    output.emit({"checks": preflight.plain(checks)}, as_json)
    if code := preflight.exit_code(checks):
        failed = [check.check for check in checks if check.outcome is preflight.Outcome.FAILED]
        output.note(f"fedtrain: {len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
        raise typer.Exit(code)


@trainer.command("run")
def run_trainer(
    mailbox: Annotated[Path, typer.Argument(metavar="MAILBOX", help="The folder shared with the agent.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="peer.yaml", help="The site's file, for its data sets.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Leave when no order is waiting.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="For arithmetic; results depend on it.")] = 1,
) -> None:
    """Run the trainer, which sees the data and needs no network."""
    from fedtrain.trainer import process

    output.log_to_stderr()
    raise typer.Exit(process.run(mailbox, data, once=once, threads=threads))


def _settings(folder: Path, config: PeerConfig) -> AgentSettings:
    """What the agent needs of the site's file, in its own terms."""
    from fedtrain.peer.settings import AgentSettings

    return AgentSettings(
        folder=folder.absolute(),
        site=config.site,
        coordinator=config.coordinator,
        proxy=config.proxy,
        state=Path(config.state),
        mailbox=Path(config.mailbox),
        launch=config.trainer.launch,
        contract=config.terms(),
        data_file=(folder / PEER_FILE).absolute(),
        isolation=config.trainer.isolation,
        trainer_user=config.trainer.user,
        data_files={
            name: dataset.files(folder.resolve()) for name, dataset in sorted(config.datasets.items())
        },
        ledger=Path(config.ledger) if config.ledger else None,
    )


def _write_peer_file(path: Path, site: str, address: str) -> None:
    """The commented template, unless there is a file already: a site's own words are never overwritten."""
    from fedtrain.config import peer_template
    from fedtrain.errors import StorageError

    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(peer_template(site, address))
    except FileExistsError:
        output.note(f"fedtrain: {path} exists and is left as it is")
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error.strerror}): check the folder and its disk"
        ) from error
