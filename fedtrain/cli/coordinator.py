"""`fedtrain coordinator`: a consortium's centre, set up once and then served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedtrain.cli import output, vault
from fedtrain.cli.options import Json

app = typer.Typer(no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Its first line encrypts the issuing key."),
]
OfflineRoot = Annotated[
    Path | None,
    typer.Option(
        "--offline-ca", metavar="CADIR", help="Put the root's key there, to be carried away from here."
    ),
]


@app.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The consortium's name: small letters, digits, hyphens.")],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where sites reach the coordinator.")],
    certificates: Annotated[str, typer.Option(help="Life of a site's certificate.")] = "72h",
    people: Annotated[str, typer.Option(help="Life of an operator's, observer's, auditor's.")] = "30d",
    passphrase_file: PassphraseFile = None,
    offline_ca: OfflineRoot = None,
    no_issuer: Annotated[
        bool, typer.Option("--no-issuer", help="Let only the offline root sign (`fedtrain site sign`).")
    ] = False,
) -> None:
    """Make a consortium: its certificate authority, the coordinator's keys, and an operator's."""
    from fedtrain import coordinator
    from fedtrain.cli.secrets import read_passphrase
    from fedtrain.trust.generations import Plan

    plan = Plan(
        site_ms=_lifetime_ms(certificates, "--certificates"),
        person_ms=_lifetime_ms(people, "--people"),
        passphrase=read_passphrase(passphrase_file),
        offline=offline_ca,
        issues=not no_issuer,
    )
    coordinator.init(folder, name, address, plan)
    output.say(f"Consortium {output.printable(name)} is set up in {output.printable(folder)}.")
    if offline_ca is not None:
        output.say(f"The root's key is in {output.printable(offline_ca)}: carry that folder away from here.")
    output.say(f"Next: fedtrain coordinator serve {output.printable(folder)}")
    if no_issuer:
        output.say("Then, at each site: fedtrain join --request DIR --name NAME")
    else:
        output.say(f"Then, for each site: fedtrain site invite NAME --dir {output.printable(folder)}")


@app.command()
def serve(
    folder: Folder,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Take the place of the coordinator that this folder was copied from; that one ends.",
        ),
    ] = False,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Listen there from now on, and say so in invites.")
    ] = "",
    passphrase_file: PassphraseFile = None,
) -> None:
    """Serve until stopped. A restart goes on where the last one ended, however that was."""
    from fedtrain import coordinator
    from fedtrain.cli.secrets import passphrase_for

    passphrase = passphrase_for(folder / "state", passphrase_file)
    output.log_to_stderr()
    coordinator.serve(folder, take_over, address, passphrase)


@app.command("roll-over")
def roll_over(
    folder: Folder,
    finish: Annotated[
        bool, typer.Option("--finish", help="Retire the old authority, whoever still depends on it.")
    ] = False,
    offline_ca: OfflineRoot = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Replace the certificate authority while the coordinator serves; again, to see who is behind.

    Members move with their next renewal, and the old authority is retired when all have.
    """
    from fedtrain.cli.secrets import passphrase_for
    from fedtrain.cli.session import ask

    if offline_ca is not None:
        import time

        from fedtrain.trust.folders import load_coordinator
        from fedtrain.trust.generations import prepare_next
        from fedtrain.trust.offline import note_consortium

        passphrase = passphrase_for(folder / "state", passphrase_file)
        prepare_next(folder / "state", offline_ca, passphrase, time.time_ns() // 1_000_000)
        keys = load_coordinator(folder / "state", passphrase)
        note_consortium(offline_ca, keys.membership, keys.message_key.public)
    document = ask(folder, lambda client: client.roll_over(finish))
    if json:
        output.emit(document, as_json=True)
        return
    behind = ", ".join(map(output.printable, document["behind"]))
    if not document["rolling"]:
        output.say(f"Only authority {output.printable(document['issuing'])} is trusted.")
    else:
        issuing = output.printable(document["issuing"])
        output.say(f"Authority {issuing} issues now; the one before is still trusted.")
        output.say(f"Not on the new one yet: {behind or 'nobody'}. It ends by itself; --finish ends it now.")


def _lifetime_ms(text: str, option: str) -> int:
    from fedtrain.config.units import parse_duration_ms
    from fedtrain.errors import ConfigError
    from fedtrain.trust.generations import check_lifetime

    try:
        return check_lifetime(parse_duration_ms(text))
    except ValueError as error:
        raise ConfigError(str(error), key=option) from error


app.command()(vault.backup)
app.command()(vault.restore)
