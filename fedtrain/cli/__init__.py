"""The command line: `fedtrain COMMAND`. A thin face: every command calls one room and prints what it says.

Only typer is imported before a command is known, so `fedtrain --help` answers at once; each command
imports its room when it runs. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from fedtrain.errors import EXIT_BUG, EXIT_DONE, EXIT_INTERRUPTED, FedtrainError, LocalError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code (the table is in `fedtrain.errors`).

    An error of fedtrain's own is one sentence on standard error. `--debug`, anywhere on the command
    line, adds the traceback.
    """
    from fedtrain.cli.app import app
    from fedtrain.cli.output import printable

    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # gRPC writes lines of its own to standard error unless told not to before it is imported; what they
    # say of a port in use or a refused certificate is said again, in words, by the error that follows.
    os.environ["GRPC_VERBOSITY"] = "ERROR" if debug else "NONE"
    try:
        app([word for word in words if word != "--debug"], prog_name="fedtrain")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_BUG
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        sentence = printable(str(error))
        if isinstance(error, FedtrainError) and not isinstance(error, LocalError):
            print(f"fedtrain: {sentence}", file=sys.stderr)
            return error.exit_code
        advice = (
            "report it with the lines above"
            if debug
            else "run it again with --debug and report what it prints"
        )
        print(
            f"fedtrain: this is a bug in fedtrain ({type(error).__name__}: {sentence}); {advice}",
            file=sys.stderr,
        )
        return EXIT_BUG
    return EXIT_DONE
