"""The tree of commands. Each module below holds one branch."""

from __future__ import annotations

from typing import Annotated

import typer

from fedtrain import __version__
from fedtrain.cli import audit, consent, coordinator, demo, egress, ledger, model, peer, privacy, run, site

app = typer.Typer(
    name="fedtrain",
    help="Train one model across institutions that may not share their data.",
    no_args_is_help=True,
    # Completion would listen to environment variables; tracebacks are for `main` to show.
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fedtrain {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere on the line).")] = False,
) -> None:
    """Train one model across institutions that may not share their data."""


app.command()(demo.demo)
app.add_typer(coordinator.app, name="coordinator", help="Set up and serve a consortium's coordinator.")
app.add_typer(site.app, name="site", help="Members of the consortium, and invites for new ones.")
app.command()(peer.join)
app.add_typer(peer.app, name="peer", help="A site's agent.")
for command in (consent.pending, consent.approve, consent.deny, consent.withdraw):
    peer.app.command()(command)
app.add_typer(peer.trainer, name="trainer", help="A site's trainer.")
app.add_typer(run.app, name="run", help="Start runs, follow them, and steer them.")
app.add_typer(model.app, name="model", help="Published models.")
app.add_typer(egress.app, name="egress", help="What left this site, and what waits for a word to leave.")
app.add_typer(ledger.app, name="ledger", help="Privacy spent and left at this site, per data set.")
app.add_typer(privacy.app, name="privacy", help="Attacks on what a run promises, before it runs.")
app.add_typer(audit.app, name="audit", help="Journals: what happened, and whether that is the truth.")
