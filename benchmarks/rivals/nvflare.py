"""NVFlare in proof-of-concept mode: server, clients and job processes as real processes.

The job is in `nvflare_app/`: its own FedAvg recipe for arrays, and clients that add a number to every
weight, another one each round and site. Its ports are fixed, so one at a time on a machine.
"""

from __future__ import annotations

import datetime
import itertools
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from rivals.environment import RivalFailed, tail

APP = Path(__file__).parent / "nvflare_app"
PACKAGE = "nvflare"
WISHES = ("nvflare==2.9.*", "nvflare")

_CLOCK = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
_MARK = re.compile(r"Round \d+ started|Finished FedAvg")


def measure(programs: Path, sites: int, parameters: int, rounds: int, limit_s: float) -> list[float]:
    """Seconds of each round, from the server's log.

    Raises `RivalFailed` if it does not finish in `limit_s`.
    """
    with tempfile.TemporaryDirectory(prefix="rival-nvflare-") as name:
        folder = Path(name)
        workspace = folder / "poc"
        environment = {
            **os.environ,
            "NVFLARE_POC_WORKSPACE": str(workspace),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),  # it keeps a configuration there
        }
        command = [str(programs / "python"), str(APP / "drive.py"), str(sites), str(parameters), str(rounds)]
        with open(folder / "drive.log", "wb") as log:
            driver = subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        try:
            moments = _wait(workspace, driver, rounds, limit_s)
            if len(moments) != rounds + 1:
                raise RivalFailed(
                    f"{max(0, len(moments) - 1)} of {rounds} rounds done in {limit_s:.0f} s; "
                    f"{tail(folder, 'drive.log')}"
                )
            return [after - before for before, after in itertools.pairwise(moments)]
        finally:
            _end(driver, folder)


def _wait(workspace: Path, driver: subprocess.Popen[bytes], rounds: int, limit_s: float) -> list[float]:
    """Starts of the rounds and the end of the last one, seconds; fewer if it ended or time is over."""
    end = time.monotonic() + limit_s
    while True:
        over = driver.poll() is not None or time.monotonic() > end
        moments: list[float] = []
        for log in workspace.glob("**/server/**/log.txt"):
            moments = max(moments, _moments(log.read_text(errors="replace")), key=len)
        if len(moments) == rounds + 1 or over:
            return moments
        time.sleep(0.5)


def _moments(log: str) -> list[float]:
    """When rounds started and the job ended; the clock stands on a line above, the words are centred."""
    moments, clock = [], ""
    for line in log.splitlines():
        clock = found[0] if (found := _CLOCK.search(line)) else clock
        if _MARK.search(line) and clock:
            moments.append(datetime.datetime.strptime(clock, "%Y-%m-%d %H:%M:%S,%f").timestamp())
    return moments


def _end(driver: subprocess.Popen[bytes], folder: Path) -> None:
    """End the driver and every process that its workspace started (they run in sessions of their own)."""
    driver.terminate()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _children_of(folder):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        time.sleep(1.0)
    driver.kill()
    driver.wait()


def _children_of(folder: Path) -> list[int]:
    """Processes whose command line names the temporary folder: nothing else does."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in command:
                found.append(int(entry.name))
    return found
