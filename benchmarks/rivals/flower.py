"""Flower in deployment mode: one SuperLink and N SuperNodes as real processes, without TLS.

The app is in `flower_app/`: FedAvg with equal weights, no evaluation, and clients that add a number
to every weight, another one each round and site, because Flower sends equal objects only once.
`flower_secagg_app/` does the same through SecAgg+.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
import time
from pathlib import Path

from consortium import end_all, free_port, listens
from rivals.environment import RivalFailed, tail

APP = Path(__file__).parent / "flower_app"
SECAGG_APP = Path(__file__).parent / "flower_secagg_app"
PACKAGE = "flwr"
WISHES = ("flwr==1.42.*", "flwr")

START_S = 90.0

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}

CONNECTION = """\
[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""


def measure(
    programs: Path, sites: int, parameters: int, rounds: int, limit_s: float, app: Path = APP
) -> list[float]:
    """Seconds of each round, from the server app's own clock.

    Raises `RivalFailed` if it does not finish in `limit_s`.
    """
    with tempfile.TemporaryDirectory(prefix="rival-flower-") as name:
        folder = Path(name)
        environment = {
            **os.environ,
            **QUIET,
            "FLWR_HOME": str(folder),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        }
        port, times = free_port(), folder / "times"
        (folder / "config.toml").write_text(CONNECTION.format(port=port))
        link = [
            "flower-superlink",
            "--insecure",
            "--port",
            str(port),
            "--disable-runtime-dependency-installation",
        ]
        nodes = [
            ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            for _ in range(sites)
        ]
        children = []
        try:
            for index, command in enumerate([link, *nodes]):
                children.append(_launch(programs, command, folder / f"{index}.log", environment))
                if index == 0 and not listens(port, START_S):
                    raise RivalFailed(f"the SuperLink does not listen; {tail(folder, '*.log')}")
            config = f'sites={sites} parameters={parameters} rounds={rounds} times="{times}"'
            command = [str(programs / "flwr"), "run", str(app), "here", "--run-config", config]
            started = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
            if started.returncode:
                raise RivalFailed(f"flwr run: {(started.stderr or started.stdout).strip()[-300:]}")
            return _wait(times, rounds, limit_s, folder, children)
        finally:
            end_all(children[::-1])


def _launch(
    programs: Path, command: list[str], log: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    with open(log, "wb") as file:
        return subprocess.Popen(
            [str(programs / command[0]), *command[1:]],
            env=environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


def _wait(
    times: Path, rounds: int, limit_s: float, folder: Path, children: list[subprocess.Popen[bytes]]
) -> list[float]:
    end = time.monotonic() + limit_s
    while True:
        moments = [float(line) for line in times.read_text().split()] if times.exists() else []
        if len(moments) == rounds + 1:
            return [after - before for before, after in itertools.pairwise(moments)]
        if time.monotonic() > end or any(child.poll() is not None for child in children):
            why = "not done in time" if time.monotonic() > end else "a process ended"
            raise RivalFailed(
                f"{why}, {max(0, len(moments) - 1)} rounds done; {tail(folder, '*.log')[-600:]}"
            )
        time.sleep(0.5)
