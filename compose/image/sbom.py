"""What an image holds, as CycloneDX 1.5 JSON: its Python distributions and its Debian packages.

It is made inside the image, from what is installed there, with the standard library alone: a
generator with dependencies of its own would have to be installed first and would then list itself.
It names no time and no random number, so the same image gives the same document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

DPKG_STATUS = Path("/var/lib/dpkg/status")


def document(name: str, status: Path = DPKG_STATUS) -> dict[str, Any]:
    """The whole bill of materials of the image `name`."""
    components = [*python_components(), *debian_components(status)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": f"fedtrain {name}", "bom-ref": "image"}},
        "components": sorted(components, key=lambda component: component["purl"]),
    }


def python_components() -> Iterator[dict[str, Any]]:
    """Every distribution of this interpreter, once."""
    found = {canonical(distribution): distribution for distribution in distributions()}
    for name, distribution in found.items():
        component = entry(name, distribution.version, f"pkg:pypi/{name}@{quote(distribution.version)}")
        licence = licence_of(distribution)
        if licence:
            component["licenses"] = [licence]
        yield component


def canonical(distribution: Distribution) -> str:
    """The name in the form that package URLs use."""
    return str(distribution.metadata["Name"]).lower().replace("_", "-").replace(".", "-")


def licence_of(distribution: Distribution) -> dict[str, Any]:
    """The SPDX expression where the distribution states one, else its own words, else nothing."""
    expression = distribution.metadata.get("License-Expression")
    if expression:
        return {"expression": expression}
    classifiers = distribution.metadata.get_all("Classifier") or []
    names = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: ")]
    return {"license": {"name": " and ".join(sorted(names))}} if names else {}


def debian_components(status: Path) -> Iterator[dict[str, Any]]:
    """Every installed package of the base; none where the base is no Debian."""
    if not status.is_file():
        return
    for paragraph in status.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " "
        )
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={fields.get('Architecture', 'all')}"
            yield entry(name, version, purl)


def entry(name: str, version: str, purl: str) -> dict[str, Any]:
    """One component."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    json.dump(document(sys.argv[1]), sys.stdout, indent=1)
