"""The walls that the compose files promise stand in every service of every file."""

from __future__ import annotations

import re

import pytest
from compose_files import COMPOSE, NAMES, Service, document, mounts, services

from fedtrain.config import load_peer, load_run

EVERY = [pytest.param(name, service, id=f"{name}-{service}") for name in NAMES for service in services(name)]
RISKY = (
    "privileged", "cap_add", "devices", "pid", "ipc", "userns_mode", "uts", "cgroup_parent",
    "volumes_from", "device_cgroup_rules", "sysctls", "group_add", "env_file", "cgroup", "network",
)  # fmt: skip


def trainers() -> list[tuple[str, Service]]:
    """Every trainer of every file."""
    return [
        (f"{name}: {service}", body)
        for name in NAMES
        for service, body in services(name).items()
        if service.endswith("trainer")
    ]


def agents() -> list[tuple[str, Service]]:
    """Every agent of every file."""
    return [
        (f"{name}: {service}", body)
        for name in NAMES
        for service, body in services(name).items()
        if service.endswith("agent")
    ]


@pytest.mark.parametrize(("name", "service"), EVERY)
def test_every_service_is_walled(name: str, service: str) -> None:
    """No root, no capability, no way to gain one, nothing to write but volumes and /tmp."""
    body = services(name)[service]
    assert body["read_only"] is True
    assert body["cap_drop"] == ["ALL"]
    assert body["security_opt"] == ["no-new-privileges"]
    user, group = re.sub(r"\$\{\w+:-(\d+)\}", r"\1", body["user"]).split(":")
    assert int(user) >= 1000 and int(group) >= 1000
    assert [entry.partition(":")[0] for entry in body["tmpfs"]] == ["/tmp"]
    assert "noexec" in body["tmpfs"][0]
    assert not [key for key in RISKY if key in body]
    assert body.get("network_mode", "none") == "none", "a service has the project's network, or none"


@pytest.mark.parametrize(("name", "service"), EVERY)
def test_nothing_of_the_host_is_mounted_but_what_the_site_names(name: str, service: str) -> None:
    """No socket, no system folder: a bind mount is the site's file, or its data, and is read-only."""
    volumes = document(name)["volumes"]
    for source, read_only in mounts(services(name)[service]).values():
        if source not in volumes:
            assert read_only
            assert re.fullmatch(r"\./demo/\w+\.yaml|\$\{FEDTRAIN_(PEER|DATA)\b.*\}", source), source


def test_long_lived_services_say_how_they_are() -> None:
    """Coordinator, agents and trainers have a health check and come back after a crash."""
    found = [
        body
        for name in NAMES
        for service, body in services(name).items()
        if service not in ("operator", "texts")
    ]
    assert len(found) == 2 + 1 + 7
    for body in found:
        assert body["healthcheck"]["test"]
        assert body["restart"] == "unless-stopped"


def test_the_trainer_has_the_data_and_no_network() -> None:
    """No network, no port, no key, no invite; the data cannot be written."""
    assert len(trainers()) == 4
    for name, body in trainers():
        assert body["network_mode"] == "none", name
        assert not {"networks", "ports", "secrets", "extra_hosts", "links"} & body.keys(), name
        places = mounts(body)
        assert set(places) == {"/site/peer.yaml", "/data", "/mailbox"}, name
        assert places["/data"][1] and places["/site/peer.yaml"][1], name


def test_the_agent_has_the_network_and_no_data() -> None:
    """Nothing of the data reaches the agent, and nobody can dial it."""
    data = {mounts(body)["/data"][0] for _, body in trainers()}
    assert len(agents()) == 4
    for name, body in agents():
        assert "ports" not in body, name
        places = mounts(body)
        assert set(places) <= {"/site/peer.yaml", "/site/state", "/site/mailbox", "/run/secrets"}, name
        assert not data & {source for source, _ in places.values()}, name


def test_agent_and_trainer_are_two_users_of_one_group() -> None:
    """They share the mailbox by their group, and nothing by their user."""
    (_, agent), (_, trainer) = agents()[0], trainers()[0]
    assert agent["user"].split(":")[-1] == trainer["user"].split(":")[-1]
    assert agent["user"] != trainer["user"]
    assert "FEDTRAIN_TRAINER_UID:-7102" in trainer["user"]


def test_secrets_are_files() -> None:
    """The invite reaches the agent as a file, never as a word of a command or of the environment."""
    company = document("company.yaml")
    assert company["services"]["agent"]["secrets"] == ["invite"]
    assert list(company["secrets"]["invite"]) == ["file"]
    for name in NAMES:
        for body in services(name).values():
            assert "environment" not in body


def test_companies_of_the_demo_share_nothing() -> None:
    """No volume of one company is mounted by another's agent or trainer."""
    for service, body in services("demo.yaml").items():
        company = service.partition("-")[0]
        if company in ("alpha", "beta", "gamma"):
            owned = [source for source, _ in mounts(body).values()]
            assert all(re.match(rf"(\./demo/)?{company}\b", source) for source in owned), service


def test_no_file_names_a_host() -> None:
    """Where packages come from is a build argument, a pip setting or the wheelhouse."""
    for path in sorted(COMPOSE.rglob("*")):
        if path.is_file() and path.parent.name not in ("wheelhouse", "__pycache__"):
            assert not re.search(r"https?://|\b\d+\.\d+\.\d+\.\d+\b", path.read_text()), path


def test_the_base_is_pinned() -> None:
    """One base, named by its digest as a build argument, and every stage of the recipe starts from it."""
    for body in document("services.yaml")["services"].values():
        assert re.fullmatch(r"\$\{FEDTRAIN_BASE:-\S+@sha256:[0-9a-f]{64}\}", body["build"]["args"]["BASE"])
    recipe = (COMPOSE / "Containerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", recipe, re.MULTILINE)
    known = {"${BASE}"}
    for base, stage in stages:
        assert base in known
        known.add(stage)
    targets = {body["build"]["target"] for body in document("services.yaml")["services"].values()}
    assert targets == {"coordinator", "agent", "trainer", "demo"} <= known
    assert not re.search(r"^USER (0|root)", recipe.split("AS demo")[0], re.MULTILINE)


@pytest.mark.parametrize("company", ["alpha", "beta", "gamma"])
def test_sites_of_the_demo_are_valid(company: str) -> None:
    """Each company's file is one that the agent takes, with a trainer of its own."""
    config = load_peer(COMPOSE / "demo" / f"{company}.yaml")
    assert config.site == company
    assert config.trainer.launch == "external"


def test_the_run_of_the_demo_is_valid() -> None:
    """Three companies are asked, and none may be missing."""
    spec = load_run(COMPOSE / "demo" / "run.yaml").spec()
    assert spec.run == "texts"
    assert spec.minimum == spec.quorum == 3


def test_the_example_of_a_site_allows_nothing(tmp_path: object) -> None:
    """With its two places filled in, the example is valid, and refuses every run."""
    text = (COMPOSE / "peer.yaml.example").read_text()
    path = COMPOSE.__class__(str(tmp_path)) / "peer.yaml"
    path.write_text(text.replace("site: NAME", "site: jsc").replace("HOST:7443", "hub.example.org:7443"))
    config = load_peer(path)
    assert config.contract.runs == config.contract.tasks == ()
    assert config.trainer.launch == "external"
