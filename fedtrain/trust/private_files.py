"""Small files that must never be half written, and secret ones that nobody else may read.

A file is written under a temporary name beside its target, synced, renamed and the folder synced, so
a crash leaves the old file or the new one. Secrets have mode 0600 from their first byte; one that
others can read is refused when it is loaded, because it may have been read already.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from fedtrain.errors import ConfigError, StorageError

FILE_BYTES_MAX = 65_536
"""Keys, certificates and identities are far smaller: anything larger was not written by us."""


def make_private_folder(path: Path) -> None:
    """Makes `path` with mode 0700, or takes group and others off one that exists."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path} ({error.strerror}): check its owner") from error


def write_private(path: Path, data: bytes) -> None:
    """Writes a secret: mode 0600, durable when this returns."""
    _write(path, data, 0o600)


def write_public(path: Path, data: bytes) -> None:
    """Writes what anybody may read, a certificate for instance: mode 0644, durable when this returns."""
    _write(path, data, 0o644)


def read_private(path: Path, missing: str, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    """The bytes of a secret file.

    Args:
        missing: what to tell a person if there is no such file: where it comes from.
        bytes_max: larger ones are refused.
    """
    data, mode = _read(path, missing, bytes_max)
    if mode & 0o077:
        raise ConfigError(
            f"other users of this machine can read this secret (mode {mode:04o}): run `chmod 600 {path}`,"
            " and make a new one if the machine is shared",
            file=str(path),
        )
    return data


def read_public(path: Path, missing: str) -> bytes:
    """The bytes of a file that is no secret; `missing` as in `read_private`."""
    return _read(path, missing)[0]


def _write(path: Path, data: bytes, mode: int) -> None:
    temporary = ""
    try:
        # mkstemp makes the file anew with mode 0600, so no link or open handle can wait at its name.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise StorageError(
            f"cannot write {path} ({error.strerror}): check space, owner and that it is not read-only"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, missing: str, bytes_max: int = FILE_BYTES_MAX) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(bytes_max + 1)
    except FileNotFoundError as error:
        raise ConfigError(missing, file=str(path)) from error
    except OSError as error:
        raise ConfigError(
            f"cannot be read ({error.strerror}): check its owner and mode", file=str(path)
        ) from error
    if len(data) > bytes_max:
        raise ConfigError(f"has more than {bytes_max} bytes, so fedtrain did not write it", file=str(path))
    return data, mode
