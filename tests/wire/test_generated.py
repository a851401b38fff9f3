"""The generated code belongs to the protos beside it, and loading the client costs little."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "proto" / "fedtrain" / "wire" / "v1"
GENERATED = ROOT / "fedtrain" / "wire" / "v1"


def test_the_generated_code_was_made_from_these_protos() -> None:
    """The digests recorded at generation are those of the protos as they are."""
    recorded = dict(reversed(line.split()) for line in (GENERATED / "SOURCES").read_text().splitlines())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in PROTOS.glob("*.proto")}
    assert recorded == found, "run `make protos`"


def test_each_proto_has_its_code_and_no_code_is_left_over() -> None:
    """One `_pb2.py` and one `_pb2.pyi` per proto, made by the oldest supported generator."""
    names = {path.stem for path in PROTOS.glob("*.proto")}
    for suffix in ("_pb2.py", "_pb2.pyi"):
        assert {path.name.removesuffix(suffix) for path in GENERATED.glob(f"*{suffix}")} == names
    for path in GENERATED.glob("*_pb2.py"):
        assert "Protobuf Python Version: 5.29.0" in path.read_text()


def test_the_client_never_loads_torch_or_the_server() -> None:
    """Importing the client takes in gRPC and protobuf and nothing heavy."""
    code = (
        "import sys, fedtrain.wire.client;"
        "heavy = {'torch', 'numpy', 'cryptography', 'pydantic', 'fedtrain.wire.server'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
