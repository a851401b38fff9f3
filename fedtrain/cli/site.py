"""`fedtrain site`: invites for new members, and who is a member."""

from __future__ import annotations

from typing import Annotated

import typer

from fedtrain.cli import offline, output
from fedtrain.cli.options import HERE, Dir, Json

app = typer.Typer(no_args_is_help=True)

Reason = Annotated[str, typer.Option(help="Why; it is journaled, and the member is told.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The member's name.")]


@app.command()
def invite(
    name: Name,
    role: Annotated[str, typer.Option(help="site, operator, observer or auditor.")] = "site",
    valid: Annotated[str, typer.Option(help="How long the invite can be used, e.g. 72h.")] = "72h",
    organisation: Annotated[
        str, typer.Option(metavar="ORG", help="The institution that the site belongs to.")
    ] = "",
    again: Annotated[
        bool,
        typer.Option("--again", help="For a member whose certificate expired, was revoked or is lost."),
    ] = False,
    folder: Dir = HERE,
    json: Json = False,
) -> None:
    """Print one line to paste into `fedtrain join` at the new member's. It can be used once."""
    from fedtrain.cli.session import ask
    from fedtrain.wire.client import CoordinatorClient
    from fedtrain.wire.values import InviteOrder

    _check_role(role)
    valid_s = _seconds(valid)

    async def order(client: CoordinatorClient) -> InviteOrder:
        known = str((await client.member(name))["role"]) if again else role
        return InviteOrder(name, known, valid_s, organisation, again)

    async def question(client: CoordinatorClient) -> tuple[str, str]:
        wanted = await order(client)
        return wanted.role, await client.invite(wanted)

    role, line = ask(folder, question)
    if json:
        output.emit({"name": name, "role": role, "valid_s": valid_s, "invite": line}, as_json=True)
    else:
        output.say(line)


@app.command()
def revoke(name: Name, reason: Reason = "", folder: Dir = HERE, json: Json = False) -> None:
    """End a membership, and all that the member has under way, at once."""
    from fedtrain.cli.session import ask
    from fedtrain.wire.values import Verdict

    output.emit(ask(folder, lambda client: client.revoke(Verdict(name, reason))), json)


@app.command()
def roles(json: Json = False) -> None:
    """Which role may make which call."""
    from fedtrain.coordinator.roles import table

    output.emit({"calls": table()}, json)


app.command("sign")(offline.sign)
app.command("register")(offline.register)


@app.command("list")
def list_members(folder: Dir = HERE, json: Json = False) -> None:
    """All members: role, certificate, whether the site is attached."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.members()), json)


@app.command()
def show(name: Name, folder: Dir = HERE, json: Json = False) -> None:
    """One member."""
    from fedtrain.cli.session import ask

    output.emit(ask(folder, lambda client: client.member(name)), json)


def _check_role(role: str) -> None:
    from fedtrain.config.section import nearest
    from fedtrain.errors import ConfigError
    from fedtrain.trust.identity import MEMBER_ROLES

    if role not in MEMBER_ROLES:
        raise ConfigError(f"found {role!r}; {nearest(role, MEMBER_ROLES)}", key="--role")


def _seconds(valid: str) -> int:
    from fedtrain.config.units import parse_duration_ms
    from fedtrain.errors import ConfigError

    try:
        seconds = parse_duration_ms(valid) // 1000
    except ValueError as error:
        raise ConfigError(str(error), key="--valid") from error
    if not 60 <= seconds <= 90 * 86_400:
        raise ConfigError(f"found {valid}, but an invite is valid from 1m to 90d", key="--valid")
    return seconds
