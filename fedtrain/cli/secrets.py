"""Passphrases, from a file or from a terminal; never from the command line, where others could read them."""

from __future__ import annotations

import sys
from pathlib import Path


def read_passphrase(path: Path | None) -> bytes:
    """The first line of the file, without its end; empty if there is no file to read.

    `ConfigError` if the file is readable by others, missing, or holds nothing.
    """
    if path is None:
        return b""
    from fedtrain.errors import ConfigError
    from fedtrain.trust.private_files import read_private

    line = read_private(path, "is missing: write the passphrase into it").split(b"\n", 1)[0].strip(b"\r")
    if not line:
        raise ConfigError("holds no passphrase: its first line is empty", file=str(path))
    return line


def passphrase_for(state: Path, path: Path | None) -> bytes:
    """What opens the issuing key in this folder: from the file, or asked for where a person sits."""
    from fedtrain.trust.generations import is_encrypted

    if path is None and is_encrypted(state) and sys.stdin.isatty():
        import getpass

        return getpass.getpass("Passphrase of the issuing key: ").encode()
    return read_passphrase(path)
