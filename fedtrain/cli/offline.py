"""Certificates signed by hand: `join --request` at the newcomer, `site sign` where the root's key is,
`site register` to tell the coordinator."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fedtrain.cli import output
from fedtrain.cli.options import HERE, Dir, Json

REQUEST_FILE = "request.json"

RequestPath = Annotated[Path, typer.Argument(metavar="REQUEST", help="The file of `join --request`.")]
AdmissionPath = Annotated[Path, typer.Argument(metavar="ADMISSION", help="The file of `site sign`.")]


def sign(
    request: RequestPath,
    ca: Annotated[Path, typer.Option("--ca", metavar="CADIR", help="The folder with the root's key.")],
    out: Annotated[Path, typer.Option("--out", metavar="ADMISSION", help="Where the admission goes.")],
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", metavar="FILE", help="Opens the root's key.")
    ] = None,
) -> None:
    """Sign a newcomer's request with the root's key, away from any network. It holds for 365 days."""
    from fedtrain.cli.secrets import passphrase_for
    from fedtrain.trust import offline
    from fedtrain.trust.generations import load_offline_root

    root = load_offline_root(ca, passphrase_for(ca, passphrase_file))
    asked = offline.read_request_file(request)
    admission = offline.sign_request(root, ca, asked, time.time_ns() // 1_000_000)
    offline.write_file(out, admission)
    output.say(f"{asked.role} {asked.name} is signed for 365 days; nothing renews it by itself.")
    output.say(f"Next, at an operator's: fedtrain site register {output.printable(out)} --dir DIR")
    output.say(f"then, at {asked.name}: fedtrain join {output.printable(out)} DIR")


def register(admission: AdmissionPath, folder: Dir = HERE, json: Json = False) -> None:
    """Tell the coordinator of a member whose certificate was signed offline."""
    from fedtrain.cli.session import ask
    from fedtrain.trust.offline import read_admission
    from fedtrain.wire.values import Registration

    known = read_admission(admission)
    registration = Registration(known.certificate_pem.encode(), known.message_key, known.organisation)
    output.emit(ask(folder, lambda client: client.register(registration)), json)


def request(folder: Path, name: str, role: str, organisation: str) -> None:
    """Make keys in `folder` and the file that asks for a certificate for them."""
    from fedtrain.trust import offline

    made = offline.make_request(folder / "state", name, role, organisation)
    path = folder / REQUEST_FILE
    offline.write_file(path, made)
    output.say(f"The request is in {output.printable(path)}; it holds no secret.")
    output.say(
        f"Next, where the root's key is: fedtrain site sign {REQUEST_FILE} --ca CADIR --out admission.json"
    )


def take(admission: Path, folder: Path) -> tuple[str, str, str]:
    """Save what was signed; (role, name, address) of the new member."""
    from fedtrain.trust import offline

    keys = offline.take_admission(folder / "state", offline.read_admission(admission))
    member = keys.membership
    output.say(f"Joined {member.consortium} as {member.role.value} {member.name}.")
    return member.role.value, member.name, member.address
