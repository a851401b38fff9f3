"""One tree of errors. Each says whose fault it is, its gRPC status and its exit code.

    FedtrainError
      ConfigError      the user's file or command line         exit 2
      RefusedError     a contract, role or budget said no      exit 3
      UnreachableError nobody answered                         exit 4
      IntegrityError   a digest, signature or chain is wrong   exit 5
      RemoteError      the other side broke the protocol       (status by kind)
      StorageError     this machine's disk said no             exit 1
      LocalError       our own bug                             exit 1

A message is one sentence that says what was found and what to do next. gRPC is not imported
here: `status` is the *name* of a `grpc.StatusCode`, which `wire` looks up.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_UNREACHABLE = 4
EXIT_INTEGRITY = 5
EXIT_INTERRUPTED = 130


class FedtrainError(Exception):
    """Root of everything that fedtrain raises on purpose.

    `code` is the machine-readable word that crosses the wire beside the sentence.
    """

    code = "error"
    status = "UNKNOWN"
    exit_code = EXIT_BUG


class LocalError(FedtrainError):
    """Our own broken invariant: a bug in fedtrain, to be reported."""

    code = "bug"
    status = "INTERNAL"


class ConfigError(FedtrainError):
    """A file or an argument that a person can correct.

    Args:
        message: what was found and what would be valid.
        file: the file's path, where there is one.
        key: dotted path of the key inside it, e.g. `rounds.quorum`.
    """

    code = "config"
    status = "INVALID_ARGUMENT"
    exit_code = EXIT_USAGE

    def __init__(self, message: str, *, file: str = "", key: str = "") -> None:
        self.file = file
        self.key = key
        place = ": ".join(part for part in (file, key) if part)
        super().__init__(f"{place}: {message}" if place else message)


class RefusedError(FedtrainError):
    """A contract, a role or a budget forbids it; the reason names the clause."""

    code = "refused"
    status = "PERMISSION_DENIED"
    exit_code = EXIT_REFUSED


class Unauthenticated(RefusedError):
    """The certificate that was shown, or the membership behind it, is not good, or not any more."""

    code = "unauthenticated"
    status = "UNAUTHENTICATED"


class NotFoundError(RefusedError):
    """No such run, site, version or blob (or none that the caller may know of)."""

    code = "not_found"
    status = "NOT_FOUND"


class UnreachableError(FedtrainError):
    """Nobody answered: the message says who, how long it was tried, and what to check."""

    code = "unreachable"
    status = "UNAVAILABLE"
    exit_code = EXIT_UNREACHABLE


class StaleEpoch(UnreachableError):
    """An earlier life of the coordinator answered, so the one that is obeyed was not reached."""

    code = "stale_epoch"


class OfferAgain(UnreachableError):
    """The coordinator that knew of this upload is gone, and the one that answers has to hear of it first."""

    code = "offer_again"


class BusyError(FedtrainError):
    """Too many came at once; nothing is wrong.

    Args:
        message: what is full.
        retry_after_ms: when to come again; then there will be room.
    """

    code = "busy"
    status = "RESOURCE_EXHAUSTED"
    exit_code = EXIT_UNREACHABLE

    def __init__(self, message: str, retry_after_ms: int = 1_000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class IntegrityError(FedtrainError):
    """A digest, a signature or the journal's chain does not hold."""

    code = "integrity"
    status = "DATA_LOSS"
    exit_code = EXIT_INTEGRITY


class StorageError(FedtrainError):
    """This machine's disk refused: full, read-only, failing."""

    code = "storage"
    status = "RESOURCE_EXHAUSTED"


class RemoteError(FedtrainError):
    """The other side broke the protocol. Never our fault, never fatal to us."""

    code = "remote"
    status = "INVALID_ARGUMENT"
    exit_code = EXIT_REFUSED


class BadUpdate(RemoteError):
    """An update that is malformed, non-finite, over its norm bound, or of another layout."""

    code = "bad_update"


class BadOrder(RemoteError):
    """An order that this side cannot carry out as it stands."""

    code = "bad_order"


class StaleRound(RemoteError):
    """A message for a round, attempt or epoch that is over."""

    code = "stale_round"
    status = "FAILED_PRECONDITION"


class UnknownSite(RemoteError):
    """A site that is not in the round's roster, or not enrolled at all."""

    code = "unknown_site"
    status = "PERMISSION_DENIED"


class BadSignature(RemoteError):
    """A signature that does not verify under the sender's enrolled key."""

    code = "bad_signature"
    status = "UNAUTHENTICATED"
    exit_code = EXIT_INTEGRITY


class Equivocation(RemoteError):
    """A second, different statement where only one can be true; it is journaled."""

    code = "equivocation"
    status = "ALREADY_EXISTS"


class BadMailbox(RemoteError):
    """A mailbox entry that the other process may not have written like this."""

    code = "bad_mailbox"
