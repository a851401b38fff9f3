"""`fedtrain site`: invites for new members, and who is a member."""

from __future__ import annotations

from typing import Annotated

import typer

from fedtrain.cli import output
from fedtrain.cli.options import HERE, Dir, Json

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The member's name.")]


@app.command()
def invite(
    name: Name,
    role: Annotated[str, typer.Option(help="site, operator, observer or auditor.")] = "site",
    valid: Annotated[str, typer.Option(help="How long the invite can be used, e.g. 72h.")] = "72h",
    folder: Dir = HERE,
    json: Json = False,
) -> None:
    """Print one line to paste into `fedtrain join` at the new member's. It can be used once."""
    from fedtrain.cli.session import ask

    _check_role(role)
    valid_s = _seconds(valid)
    line = ask(folder, lambda client: client.make_invite(name, role, valid_s))
    if json:
        output.emit({"name": name, "role": role, "valid_s": valid_s, "invite": line}, as_json=True)
    else:
        output.say(line)


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
