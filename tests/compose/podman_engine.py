"""A real container engine for the tests of this folder: podman, with storage and settings of its own.

The base image is a Debian that debootstrap makes from the mirror that apt uses here; wheels come from
wherever pip finds them here. Base, wheels and images are kept in a cache folder for the next time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from compose_files import COMPOSE

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedtrain-compose"
PROGRAMS = ("podman", "runc", "debootstrap", "iptables", "apt-cache")
BASE = "localhost/fedtrain-base:bookworm"
COMPOSE_PROGRAM = "podman-compose==1.6.0"
"""Debian 12's own (1.0.3) gives every service a network, also one that asks for none."""

WAIT_S = 120.0


def why_not() -> str:
    """Why no engine can be had here, "" if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "containers are tested as root on Linux only"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return (
            f"{', '.join(missing)} not found: apt-get install --no-install-recommends podman runc "
            "debootstrap netavark aardvark-dns iptables"
        )
    return ""


class EngineMissing(Exception):
    """This machine lets nobody start a container."""


class Engine:
    """Podman with its storage in the cache folder."""

    def __init__(self) -> None:
        settings = CACHE / "engine"
        settings.mkdir(parents=True, exist_ok=True)
        (settings / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{settings}/networks"\n'
        )
        (settings / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{settings}/storage"\nrunroot = "{settings}/run"\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": f"{settings}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{settings}/storage.conf",
            "FEDTRAIN_BASE": BASE,
            "FEDTRAIN_VERSION": "test",
        }

    def podman(self, *words: str, text: str = "", check: bool = True) -> str:
        """Standard output of a podman command; with `check` off, its standard error too."""
        return self._run(["podman", *words], text, check)

    def compose(self, project: str, files: Sequence[str], *words: str, **variables: str) -> str:
        """Run podman-compose on files of compose/, or on absolute ones."""
        arguments = [part for name in files for part in ("-f", str(COMPOSE / name))]
        program = str(CACHE / "tools" / "bin" / "podman-compose")
        # One after another: side by side, each image would build the stages that they share once more.
        return self._run([program, "--parallel", "1", "-p", project, *arguments, *words], "", True, variables)

    def python(self, container: str, script: str, *words: str) -> str:
        """Standard output of a Python script inside a container."""
        return self.podman("exec", "-i", container, "python", "-", *words, text=script)

    def wait(self, container: str) -> int:
        """Exit code of a container that ends by itself."""
        end = time.monotonic() + 4 * WAIT_S
        while time.monotonic() < end:
            state = self.podman("inspect", container, "-f", "{{.State.Status}} {{.State.ExitCode}}").split()
            if state[0] == "exited":
                return int(state[1])
            time.sleep(1)
        raise AssertionError(f"{container} did not end: {self.logs(container)[-2000:]}")

    def until(self, container: str, words: Sequence[str], expected: str) -> str:
        """What a command in a container says once it says `expected`."""
        end = time.monotonic() + WAIT_S
        while expected not in (said := self.podman("exec", container, *words, check=False)):
            if time.monotonic() > end:
                raise AssertionError(f"{container} says {said!r}, not {expected!r}; {self.logs(container)}")
            time.sleep(1)
        return said

    def logs(self, container: str) -> str:
        """What a container has said."""
        return self.podman("logs", container, check=False)

    def build(self) -> None:
        """Base, wheels and images; what is there already is used again.

        `EngineMissing` if the kernel around us lets podman start no container, or if base, wheels and
        podman-compose cannot be fetched here. What fails behind that is a fault of ours.
        """
        try:
            self._prepare()
        except AssertionError as error:
            raise EngineMissing(f"the images' parts cannot be had here: {str(error)[-600:]}") from error
        self.compose("fedtrain-build", ["services.yaml"], "build", PIP_NO_INDEX="1")

    def _prepare(self) -> None:
        """All that comes from elsewhere, and a container with each kind of network."""
        if not self.podman("images", "-q", BASE).strip():
            self._build_base()
        for network in ("none", "bridge"):
            said = self.podman("run", "--rm", "--network", network, BASE, "echo", "a container", check=False)
            if "a container" not in said:
                raise EngineMissing(f"podman starts no container here: {said.strip()[-300:]}")
        if not (CACHE / "tools" / "bin" / "podman-compose").exists():
            self._run([sys.executable, "-m", "venv", str(CACHE / "tools")])
            self._run([str(CACHE / "tools" / "bin" / "pip"), "install", "--quiet", COMPOSE_PROGRAM])
        # Cheap where the wheels are there already, and right where the constraints have changed.
        self._run([str(COMPOSE / "wheels")], variables={"PYTHON": sys.executable})

    def _build_base(self) -> None:
        policy = self._run(["apt-cache", "policy", "base-files"])
        mirror = re.search(r"\d+ (\S+://\S+) \S+/main", policy)
        assert mirror is not None, f"apt names no mirror: {policy}"
        root = CACHE / "base"
        shutil.rmtree(root, ignore_errors=True)
        include = "--include=python3,python3-venv,ca-certificates"
        self._run(["debootstrap", "--variant=minbase", include, "bookworm", str(root), mirror[1]])
        for folder in ("cache/apt/archives", "lib/apt/lists"):
            shutil.rmtree(root / "var" / folder)
            (root / "var" / folder).mkdir()
        self._run(["tar", "-C", str(root), "-cf", str(CACHE / "base.tar"), "."])
        self.podman("import", str(CACHE / "base.tar"), BASE)
        shutil.rmtree(root)
        (CACHE / "base.tar").unlink()

    def _run(
        self,
        words: Sequence[str],
        text: str = "",
        check: bool = True,
        variables: dict[str, str] | None = None,
    ) -> str:
        done = subprocess.run(
            words,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if not check else subprocess.PIPE,
            text=True,
            env={**self.environment, **(variables or {})},
            timeout=1200,
        )
        if check and done.returncode != 0:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            raise AssertionError(f"{' '.join(words)}: exit code {done.returncode}\n{said}")
        return done.stdout
