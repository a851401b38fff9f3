"""The agent's command line, in a process that is killed between its first charge and the mailbox."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from fedtrain.cli import main
from fedtrain.storage.mailbox import Mailbox

_post = Mailbox.post


def post_or_die(self: Mailbox, order: Any, model_path: Any, permit: Any = None) -> None:
    """As the real one, but for an order that is charged for."""
    if permit is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    _post(self, order, model_path, permit)


if __name__ == "__main__":
    Mailbox.post = post_or_die  # type: ignore[method-assign]
    sys.exit(main())
