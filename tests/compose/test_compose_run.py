"""The compose files under a real engine: a whole run, and the walls measured from inside the containers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from podman_engine import Engine, EngineMissing, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROJECT, COMPANY = "fedtrain-demo", "fedtrain-company"
TRAINERS = [f"{PROJECT}_{name}-trainer_1" for name in ("alpha", "beta", "gamma")]
AGENTS = [f"{PROJECT}_{name}-agent_1" for name in ("alpha", "beta", "gamma")]
COORDINATOR, OPERATOR = f"{PROJECT}_coordinator_1", f"{PROJECT}_operator_1"

INSIDE = r"""
import json, os, socket, sys
def dial(host, port):
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError as error:
        return str(error)
    return "answers"
def write(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
    return "written"
places, places_written = json.loads(sys.argv[1])
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
sockets = [line.split() for line in open("/proc/net/unix").read().splitlines()[1:]]
print(json.dumps({
    "dialled": {address: dial(*address.rsplit(":", 1)) for address in sys.argv[2:]},
    "interfaces": sorted(os.listdir("/sys/class/net")),
    "users": status["Uid"].split(),
    "capabilities": {name: int(value, 16) for name, value in status.items() if name.startswith("Cap")},
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "written": {path: write(path) for path in places_written},
    "there": [path for path in places if os.path.exists(path)],
    "sockets": [fields[7] for fields in sockets if len(fields) > 7],
}))
"""
PLACES = [
    *("/data", "/site/state", "/run/secrets", "/opt/fedtrain/bin/pip"),
    *("/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock"),
]
WRITTEN = ["/probe", "/etc/probe", "/opt/fedtrain/probe", "/data/probe"]


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine with the four images. Where none can be had, the tests are skipped and the reason printed."""
    reason, made = why_not(), None
    if not reason:
        made = Engine()
        try:
            made.build()
        except EngineMissing as error:
            reason = str(error)
    if made is None or reason:
        reporter = request.config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"tests/compose: skipped, {reason}")
        pytest.skip(reason)
    return made


@pytest.fixture(scope="module")
def demo(engine: Engine) -> Iterator[Engine]:
    """The demo, after its operator has ended; everybody else is still there."""
    engine.compose(PROJECT, ["demo.yaml"], "down", "-v", "-t", "3")
    engine.compose(PROJECT, ["demo.yaml"], "up", "-d", "--no-build")
    try:
        code = engine.wait(OPERATOR)
        assert code == 0, engine.logs(OPERATOR)[-4000:]
        yield engine
    finally:
        engine.compose(PROJECT, ["demo.yaml"], "down", "-v", "-t", "3")


def inside(engine: Engine, container: str, *addresses: str) -> dict[str, object]:
    """What a process of this container finds around it."""
    found: dict[str, object] = json.loads(
        engine.python(container, INSIDE, json.dumps([PLACES, WRITTEN]), *addresses)
    )
    return found


def address_of(engine: Engine, container: str) -> str:
    """The container's address in the demo's network."""
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}}{{end}}"
    return engine.podman("inspect", container, "-f", template).split()[0]


def test_three_companies_complete_a_run(demo: Engine) -> None:
    """Every round counts all three companies' updates, a model is exported and the journal verifies."""
    said = demo.logs(OPERATOR)
    assert "texts: done (3 rounds done)" in said
    assert "the demo is done" in said
    words = ["exec", COORDINATOR, "fedtrain", "run", "rounds", "texts", "--dir", "/hub", "--json"]
    rounds = [entry for entry in json.loads(demo.podman(*words))["rounds"] if entry["index"] in (1, 2, 3)]
    assert [len(entry["counted"]) for entry in rounds] == [3, 3, 3]


def test_no_address_answers_a_trainer(demo: Engine) -> None:
    """Not the coordinator, the name service, the host or the world; the agent beside it is answered."""
    hub = address_of(demo, COORDINATOR)
    gateway = hub.rpartition(".")[0] + ".1"
    addresses = [
        "coordinator:7443",
        f"{hub}:7443",
        f"{gateway}:53",
        "127.0.0.1:7443",
        "192.0.2.1:443",
        "1.1.1.1:53",
    ]
    for trainer in TRAINERS:
        found = inside(demo, trainer, *addresses)
        assert found["interfaces"] == ["lo"]
        assert "answers" not in found["dialled"].values(), (trainer, found["dialled"])
        assert found["sockets"] == []
    control = inside(demo, AGENTS[0], *addresses[:2])["dialled"]
    assert set(control.values()) == {"answers"}, f"the same question from an agent: {control}"


def test_the_data_exist_for_the_trainer_only(demo: Engine) -> None:
    """The agent's container has no data folder; the trainer's cannot be written and has no key or invite."""
    for agent, trainer in zip(AGENTS, TRAINERS, strict=True):
        assert inside(demo, agent)["there"] == ["/site/state", "/run/secrets"]
        found = inside(demo, trainer)
        assert found["there"] == ["/data"]
        assert found["written"]["/data/probe"] == "Read-only file system"


def test_every_container_is_walled(demo: Engine) -> None:
    """No root, no capability, no new privileges, and a root file system that nobody can write."""
    for container in [COORDINATOR, *AGENTS, *TRAINERS]:
        found = inside(demo, container)
        assert "0" not in found["users"]
        assert set(found["capabilities"].values()) == {0}, container
        assert found["no_new_privileges"] == "1"
        assert {found["written"][path] for path in WRITTEN[:3]} == {"Read-only file system"}


def test_health_checks_tell_who_is_at_work(demo: Engine) -> None:
    """Coordinator, agents and trainers are healthy; an agent whose coordinator is away is not."""
    for container in [COORDINATOR, *AGENTS, *TRAINERS]:
        demo.podman("healthcheck", "run", container)
    demo.podman("stop", "-t", "5", COORDINATOR)
    words = ["python", "/opt/fedtrain/compose/health.py", "agent"]
    try:
        demo.until(AGENTS[0], words, "no connection to coordinator:7443")
    finally:
        demo.podman("start", COORDINATOR)
    demo.until(AGENTS[0], words, "at work")


@pytest.mark.parametrize(("image", "torch"), [("coordinator", False), ("agent", False), ("trainer", True)])
def test_images_hold_what_their_bill_says(engine: Engine, image: str, torch: bool) -> None:
    """Torch is in the trainer's image alone, and each image carries a bill of materials of what is there."""
    name = f"fedtrain-{image}:test"
    run = ("run", "--rm", "--network", "none", "--entrypoint")
    listed = json.loads(engine.podman(*run, "cat", name, "/opt/fedtrain/sbom.cdx.json"))
    purls = {component["purl"].partition("@")[0] for component in listed["components"]}
    assert {"pkg:pypi/fedtrain", "pkg:pypi/grpcio", "pkg:deb/debian/libc6"} <= purls
    assert ("pkg:pypi/torch" in purls) is torch
    script = "import importlib.util as u; print(u.find_spec('torch') is not None, u.find_spec('pip') is None)"
    assert engine.podman(*run, "python", name, "-c", script).split() == [str(torch), "True"]


def test_a_company_joins_by_pasting_its_invite(demo: Engine, tmp_path: Path) -> None:
    """An invite, a site file and a data folder are all that company.yaml needs, and later no invite."""
    line = demo.podman("exec", COORDINATOR, "fedtrain", "site", "invite", "delta", "--dir", "/hub")
    (tmp_path / "invite").write_text(line)
    example = (Path(__file__).parents[2] / "compose" / "peer.yaml.example").read_text()
    (tmp_path / "peer.yaml").write_text(
        example.replace("site: NAME", "site: delta").replace("HOST:7443", "coordinator:7443")
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("words of a company\n" * 50)
    (tmp_path / "network.yaml").write_text(
        f"networks:\n  default:\n    external: true\n    name: {PROJECT}_default\n"
    )
    readable(tmp_path)
    variables = {
        "FEDTRAIN_INVITE": str(tmp_path / "invite"),
        "FEDTRAIN_PEER": str(tmp_path / "peer.yaml"),
        "FEDTRAIN_DATA": str(tmp_path / "data"),
    }
    files = ["company.yaml", str(tmp_path / "network.yaml")]
    agent, trainer = f"{COMPANY}_agent_1", f"{COMPANY}_trainer_1"
    try:
        demo.compose(COMPANY, files, "up", "-d", "--no-build", **variables)
        demo.until(agent, ["python", "/opt/fedtrain/compose/health.py", "agent"], "at work")
        demo.until(trainer, ["python", "/opt/fedtrain/compose/health.py", "trainer"], "at work")
        assert inside(demo, trainer, "coordinator:7443")["dialled"]["coordinator:7443"] != "answers"
        assert "/data" not in inside(demo, agent)["there"]
        (tmp_path / "invite").write_text("")
        demo.podman("restart", "-t", "5", agent)
        demo.until(agent, ["python", "/opt/fedtrain/compose/health.py", "agent"], "at work")
        assert demo.logs(agent).count("Joined demo as site delta.") == 1, "the second start needs no invite"
    finally:
        demo.compose(COMPANY, files, "down", "-v", "-t", "3", **variables)


def readable(folder: Path) -> None:
    """Let the containers' users read what the test has written; pytest's own folders are for root alone."""
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
