"""What a container runs: `start.py coordinator NAME HOST:PORT`, `start.py agent` or `start.py trainer`.

The first start sets up what the volume does not hold yet: the coordinator its consortium, the agent
its identity, from the invite in /run/secrets. Everything after that is one fedtrain command, which
takes this process's place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedtrain.cli import main as fedtrain
from fedtrain.errors import EXIT_DONE, EXIT_USAGE

HUB, SITE, MAILBOX = Path("/hub"), Path("/site"), Path("/mailbox")
PEER_FILE = SITE / "peer.yaml"
INVITE = Path("/run/secrets/invite")

IDENTITY = Path("state") / "identity.json"
"""Written last by init and join, so it tells a finished set-up from a broken off one."""

SHARED_UMASK = 0o007
"""Agent and trainer are two users of one group: what one writes to the mailbox, the other may move and
remove. Keys have modes of their own and stay closed."""


def main(arguments: Sequence[str]) -> int:
    """Set up where that is needed and run the service; returns only if it cannot be started."""
    match list(arguments):
        case ["coordinator", name, address]:
            return coordinator(name, address)
        case ["agent"]:
            return agent()
        case ["trainer"]:
            return trainer()
    return refuse(f"found {' '.join(arguments)!r}; valid: coordinator NAME HOST:PORT, agent, trainer")


def coordinator(name: str, address: str) -> int:
    """Make the consortium unless the volume holds one, and serve it."""
    if not (HUB / IDENTITY).exists():
        code = fedtrain(["coordinator", "init", str(HUB), "--name", name, "--address", address])
        if code != EXIT_DONE:
            return code
    return become("coordinator", "serve", str(HUB), "--address", address)


def agent() -> int:
    """Join with the invite unless the volume holds an identity, and attend."""
    if not PEER_FILE.is_file():
        return refuse(f"{PEER_FILE} is missing: write this site's peer.yaml and mount it there")
    if not (SITE / IDENTITY).exists():
        code = join()
        if code != EXIT_DONE:
            return code
    os.umask(SHARED_UMASK)
    return become("peer", "run", str(SITE))


def join() -> int:
    """Enrol with the invite; it is passed on in memory, because others may read a command line."""
    try:
        line = INVITE.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        line = ""
    except (OSError, UnicodeDecodeError) as error:
        return refuse(f"the invite {INVITE} cannot be read ({error}): check its owner, mode and content")
    if not line:
        return refuse(
            f"this site has no identity in {SITE / IDENTITY.parent} and no invite in {INVITE}: "
            "ask the consortium's operator for an invite, and paste its line into the file of that secret"
        )
    return fedtrain(["join", line, str(SITE)])


def trainer() -> int:
    """Serve the mailbox. Torch is here and nowhere else; a network is not."""
    if not PEER_FILE.is_file():
        return refuse(f"{PEER_FILE} is missing: mount the same file as in the agent's container")
    os.umask(SHARED_UMASK)
    return become("trainer", "run", str(MAILBOX), "--data", str(PEER_FILE))


def become(*words: str) -> int:
    """Run a fedtrain command in this process's place, so that signals reach it and its exit code counts."""
    program = Path(sys.executable).with_name("fedtrain")
    os.execv(program, [str(program), *words])


def refuse(sentence: str) -> int:
    """Say what is missing and what to do; the code is that of wrong configuration."""
    print(f"fedtrain: {sentence}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
