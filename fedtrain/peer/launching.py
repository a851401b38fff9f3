"""How the agent starts a trainer of its own: the command behind its walls, the account, the environment."""

from __future__ import annotations

import fnmatch
import itertools
import os
import pwd
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedtrain.errors import ConfigError
from fedtrain.peer import walls
from fedtrain.peer.settings import AgentSettings

ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TMPDIR", "TERM"),
    *("PYTHON*", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "XDG_DATA_HOME"),
    *("CUDA_*", "CUBLAS_*", "CUDNN_*", "NVIDIA_*", "HIP_*", "ROCR_*", "ROCM_*", "HSA_*", "ZE_*"),
    *("OMP_*", "MKL_*", "OPENBLAS_*", "GOMP_*", "KMP_*", "NUMEXPR_*", "MALLOC_*"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "NCCL_*", "GLOO_*", "HF_HOME"),
)
"""What a trainer is told of our environment. A list of what it needs, because nobody could list the names
under which secrets come: tokens of clouds, proxies with passwords, sockets of agents and sessions."""


@dataclass(frozen=True)
class Account:
    """Of an operating system: user id, its group, and all groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def trainer_command(settings: AgentSettings, *more: str) -> tuple[str, ...]:
    """How the agent starts a trainer, behind the walls that `settings` asks for.

    Args:
        more: arguments of the trainer beside the usual ones.

    Raises `ConfigError` if its account is unknown or not ours to change to.
    """
    trainer = (
        *(sys.executable, "-m", "fedtrain.trainer", str(settings.mailbox)),
        *("--data", str(settings.data_file)),
        *("--threads", str(settings.trainer_threads)),
        "--until-eof",
        *more,
    )
    account = trainer_account(settings)
    if settings.isolation == "none" and account is None:
        return trainer
    if sys.platform != "linux":
        if settings.isolation == "required" or account is not None:
            raise _trainer_error(
                settings, "isolation", "the walls around a trainer are made by Linux: start it in a container"
            )
        return trainer
    # Without the site's packages (-I -S): it starts in milliseconds, and nothing runs before the walls.
    raising = [sys.executable, "-I", "-S", str(Path(walls.__file__)), "--isolation", settings.isolation]
    raising += ["--hide", str(settings.state)]
    for path in _kept(settings):
        raising += ["--keep", path]
    if account is not None:
        groups = ",".join(map(str, (account.gid, *(g for g in account.groups if g != account.gid))))
        raising += ["--user", f"{account.uid}:{groups}"]
    return (*raising, "--", *trainer)


def trainer_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of our environment that a trainer gets."""
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ENVIRONMENT)
    }


def trainer_account(settings: AgentSettings) -> Account | None:
    """The account of `trainer.user`, None for the agent's own.

    Raises `ConfigError` if there is no such account, or if we may not change to it.
    """
    name = settings.trainer_user
    if not name:
        return None
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        account = Account(entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))
    except (KeyError, OverflowError) as error:
        if not name.isdecimal() or int(name) >= 2**32 - 1:
            raise _trainer_error(settings, "user", f"this machine has no account {name!r}") from error
        account = Account(int(name), int(name), (int(name),))
    if account.uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise _trainer_error(
            settings,
            "user",
            f"only root starts a trainer under another account ({name}), and this agent is account "
            f"{os.geteuid()}: leave the key out, or start the trainer yourself under that account and set "
            "trainer.launch to external",
        )
    return account


def _kept(settings: AgentSettings) -> list[str]:
    """What the trainer works with, should it lie where sockets are hidden: data, mailbox, Python."""
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(None, sys.path)]
    python += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    data = [fixed_part(pattern) for patterns in settings.data_files.values() for pattern in patterns]
    named = [str(settings.folder), str(settings.mailbox), str(settings.data_file), *data, *python]
    return [path for path in dict.fromkeys(map(os.path.abspath, named)) if _may_be_covered(path)]


def _may_be_covered(path: str) -> bool:
    names = (path, os.path.realpath(path))
    return any(f"{name}/".startswith(f"{place}/") for name in names for place in walls.COVERED)


def fixed_part(pattern: str) -> str:
    """The file or folder below which everything lies that matches the pattern."""
    plain = itertools.takewhile(lambda part: not set("*?[") & set(part), Path(pattern).parts)
    return str(Path(*plain))


def _trainer_error(settings: AgentSettings, key: str, message: str) -> ConfigError:
    return ConfigError(message, file=str(settings.data_file), key=f"trainer.{key}")
