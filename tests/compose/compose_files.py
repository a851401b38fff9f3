"""The compose files as an engine reads them: with `extends` and anchors resolved. For this folder's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
NAMES = ("company.yaml", "coordinator.yaml", "demo.yaml")

Service = dict[str, Any]


def services(name: str) -> dict[str, Service]:
    """The services of one file, each with what it builds on."""
    return {service: _resolved(own) for service, own in _read(name)["services"].items()}


def document(name: str) -> dict[str, Any]:
    """The file as it is written."""
    return _read(name)


def _resolved(own: Service) -> Service:
    base: Service = {}
    if "extends" in own:
        base = _read(own["extends"]["file"])["services"][own["extends"]["service"]]
    return {**base, **{key: value for key, value in own.items() if key != "extends"}}


def _read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((COMPOSE / name).read_text()))


def mounts(service: Service) -> dict[str, tuple[str, bool]]:
    """Place in the container -> (volume or folder, whether it is read-only). Sources may hold `${A:-b}`."""
    found = {}
    for line in service.get("volumes", []):
        plain, read_only = (line.removesuffix(":ro"), True) if line.endswith(":ro") else (line, False)
        source, _, target = plain.rpartition(":")
        found[target] = (source, read_only)
    return found
