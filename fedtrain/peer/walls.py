"""Raises walls around the program that it then becomes: no network, no keys, no other sockets, no powers.

    python -I -S walls.py [--isolation auto|required|none] [--hide FOLDER] [--keep PATH]
                          [--user UID:GID[,GID]] -- PROGRAM ARGUMENT...

A program of its own, because namespaces are entered by a process with one thread, which the agent is
not. It runs as a file and imports the standard library alone, so that it costs some 50 ms and nothing
of the site's software runs before the walls stand.

What it does, as far as the kernel lets it:

- an empty network namespace: no interface is up, not even the loopback, and no abstract socket is in it.
  Without the right to make one it is made inside a user namespace, in which the caller's own account is
  the only one.
- a mount namespace: the folders `--hide` are empty, and so are the places where daemons put their
  sockets; what is kept (`--keep`) is bound back into them. `/dev` stays as it is, for accelerators.
- with `--user`, that account; always no capability, and no program can regain one.

The walls only close when the program is started; whoever holds a descriptor keeps it, so the agent
hands over none but the standard ones. With `auto` a wall that cannot be raised is named on standard
error and the program starts without it. Nobody believes in that line: the trainer measures.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

COVERED = ("/run", "/var/run", "/tmp", "/var/tmp")
"""Where daemons put their Unix sockets; sockets elsewhere stay visible, and the trainer's probe says so."""

EXIT_REFUSED = 3
EXIT_NOT_STARTED = 127

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 4, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITIES_MAX = 64

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: Sequence[str]) -> NoReturn:
    """Raise the walls and become the program."""
    parser = argparse.ArgumentParser(prog="fedtrain walls", allow_abbrev=False)
    parser.add_argument("--isolation", choices=("auto", "required", "none"), default="auto")
    parser.add_argument("--hide", action="append", default=[], type=os.path.realpath)
    parser.add_argument("--keep", action="append", default=[], type=os.path.abspath)
    parser.add_argument("--user", type=_read_user)
    parser.add_argument("program", nargs="+")
    options = parser.parse_args(arguments)
    folder = Path.cwd()
    faults = []
    try:
        if options.isolation == "none":
            _become(options.user)
        else:
            faults = raise_walls(options.hide, [str(folder), *options.keep], options.user)
        os.chdir(folder)  # by its name, so that `..` leads to what is covered now
    except OSError as error:
        _end(EXIT_NOT_STARTED, f"the trainer cannot be started: {error}")
    if faults and options.isolation == "required":
        _end(
            EXIT_REFUSED,
            f"trainer.isolation is `required`, and {'; '.join(faults)}: let this account make user"
            " namespaces, or start the trainer in a container without network (trainer.launch: external)",
        )
    for fault in faults:
        print(f"fedtrain walls: {fault}", file=sys.stderr, flush=True)
    try:
        os.execvp(options.program[0], options.program)
    except OSError as error:
        _end(EXIT_NOT_STARTED, f"{options.program[0]} cannot be started by account {os.getuid()}: {error}")


def raise_walls(
    hidden: Sequence[str], kept: Sequence[str], user: tuple[int, int, list[int]] | None
) -> list[str]:
    """Raise what can be raised; one sentence for each wall that cannot.

    Raises `OSError` if the account cannot be changed, because the program may not run under another.
    """
    faults = []
    entered = _enter_namespaces(inside_user_namespace=False)
    if not entered:
        # An account is not changed inside a user namespace that knows only one, so it comes first.
        _become(user)
        user = None
        try:
            entered = _enter_namespaces(inside_user_namespace=True)
        except OSError as error:
            faults.append(f"the user namespace is incomplete ({error.strerror})")
            entered = True
    if entered:
        faults += _cover(hidden, kept)
    else:
        faults.append(
            f"no network and mount namespace can be made ({os.strerror(ctypes.get_errno())}), so the trainer"
            " has this machine's network, sockets and files"
        )
    _drop_bounding_set()
    _become(user)
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        faults.append("set-uid programs cannot be disabled")
    return faults


def _enter_namespaces(*, inside_user_namespace: bool) -> bool:
    """New network and mount namespaces; False if the kernel refuses. `OSError` if it does half of it."""
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNET | CLONE_NEWNS | (CLONE_NEWUSER if inside_user_namespace else 0)
    if _libc.unshare(flags):
        return False
    if inside_user_namespace:
        # A change of account takes the right to write one's own maps.
        _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return True


def _cover(hidden: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Empty folders in place of what is hidden; one sentence for each that cannot be covered."""
    faults = []
    try:
        _mount("none", "/", "", MS_REC | MS_PRIVATE)
    except OSError as error:
        return [f"no folder can be hidden from the trainer ({error.strerror})"]
    for place in dict.fromkeys(map(os.path.realpath, COVERED)):
        if Path(place).is_dir():
            try:
                _cover_but(place, kept)
            except OSError as error:
                faults.append(f"the sockets in {place} cannot be hidden ({error.strerror})")
    for folder in hidden:
        if Path(folder).is_dir():
            try:
                _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k,mode=755")
            except OSError as error:
                faults.append(f"the keys in {folder} cannot be hidden ({error.strerror})")
    return faults


def _cover_but(place: str, kept: Sequence[str]) -> None:
    """A fresh temporary folder over `place`, with what is kept below it bound back under its own name."""
    within: list[str] = []
    for path in sorted({*kept, *map(os.path.realpath, kept)}):
        if path == place:
            raise OSError(0, "what the trainer works on is the folder itself")
        if _is_below(path, place) and Path(path).exists() and not any(_is_below(path, p) for p in within):
            within.append(path)
    # Descriptors reach what is about to be covered.
    with contextlib.ExitStack() as held:
        sources = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in within]
        for _, descriptor in sources:
            held.callback(os.close, descriptor)
        _mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
        try:
            for path, descriptor in sources:
                _bind(f"/proc/self/fd/{descriptor}", path)
        except OSError:
            # The trainer needs what is kept more than this wall, which is reported as missing.
            _libc.umount2(os.fsencode(place), MNT_DETACH)
            raise


def _bind(source: str, path: str) -> None:
    """Show a folder or a file under a name that does not exist yet."""
    if Path(source).is_dir():
        Path(path).mkdir(parents=True, exist_ok=True)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    _mount(source, path, "", MS_BIND | MS_REC)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    if _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _become(user: tuple[int, int, list[int]] | None) -> None:
    """The account with its groups, for good; None for the one that we have."""
    if user is None:
        return
    for name in ("HOME", "USER", "LOGNAME"):
        os.environ.pop(name, None)  # ours
    uid, gid, groups = user
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _drop_bounding_set() -> None:
    """No program that is started from here on has any capability. Needs one itself, so it may do nothing:
    then there is none to drop."""
    for number in range(CAPABILITIES_MAX):
        if _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0):
            return


def _read_user(text: str) -> tuple[int, int, list[int]]:
    uid, _, groups = text.partition(":")
    gids = [int(gid) for gid in groups.split(",")]
    return int(uid), gids[0], gids


def _end(code: int, sentence: str) -> NoReturn:
    print(f"fedtrain trainer: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
