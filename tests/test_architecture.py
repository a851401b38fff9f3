"""The house rules as code: who may import whom, how large a piece may be, and what is not written at all.

Imports are read from the source, also those inside functions and behind `TYPE_CHECKING`, so a
forbidden one is found although no test happens to run it.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fedtrain"

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 7


@dataclass(frozen=True)
class Room:
    """What a room may import: parts of fedtrain (a room, or one module of it), and third parties."""

    fedtrain: frozenset[str]
    third_party: frozenset[str]


def room(fedtrain: str = "", third_party: str = "") -> Room:
    return Room(frozenset(fedtrain.split()), frozenset(third_party.split()))


FLOORS_0_TO_3 = "errors core methods wire trust storage"

ROOMS = {
    "errors": room(),
    "core": room("errors"),
    "methods": room("core errors", "numpy dp_accounting"),
    "wire": room("core methods errors", "grpc google"),
    "trust": room("core errors", "cryptography"),
    "storage": room("core errors", "inotify_simple"),
    # The trainer knows nothing of rounds: only the mailbox tells it what to do.
    "trainer": room(
        "methods storage.mailbox storage.watching errors",
        "torch opacus sklearn cryptography safetensors numpy yaml",
    ),
    "swarm": room("core methods errors", "hivemind torch"),
    "sim": room("core methods errors", "numpy"),
    "coordinator": room(FLOORS_0_TO_3, "grpc uvloop"),
    "peer": room(FLOORS_0_TO_3, "grpc uvloop"),
    "report": room(FLOORS_0_TO_3),
    "config": room("errors core methods", "pydantic pydantic_core yaml"),
    "cli": room(f"{FLOORS_0_TO_3} trainer sim coordinator peer report config", "typer rich matplotlib"),
}

NOT_IN_CORE = frozenset(
    [
        "time",
        "datetime",
        "os",
        "pathlib",
        "asyncio",
        "threading",
        "socket",
        "secrets",
        "uuid",
        "logging",
        "io",
        "sys",
        "subprocess",
        "tempfile",
        "sqlite3",
    ]
)
"""What brings time, chance, files or the network into decisions. `random` only as `random.Random(seed)`."""

UNSAFE = frozenset(["pickle", "dill", "cloudpickle", "marshal", "shelve"])
UNCLEAR_WORDS = frozenset(["util", "utils", "helper", "helpers", "manager", "managers", "common", "impl"])
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|NotImplemented" + r"Error)\b")


def is_generated(path: Path) -> bool:
    return path.stem.endswith(("_pb2", "_pb2_grpc"))


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not is_generated(path)]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    line = f":{getattr(node, 'lineno', 1)}" if node is not None else ""
    return f"{path.relative_to(ROOT)}{line}"


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every module that a file names in an import, `from package import name` as `package.name` too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node)}: write the import in full"
            assert node.module is not None
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            named = node.args[0] if node.args else None
            if isinstance(named, ast.Constant) and isinstance(named.value, str):
                yield named.value, node


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


ROOM_FILES = [path for path in sources("fedtrain") if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", ROOM_FILES, ids=where)
def test_rooms_import_from_lower_floors_only(path: Path) -> None:
    """A room imports what the table allows it, and nothing else, wherever in the file the import stands."""
    own = room_of(path)
    assert own in ROOMS, f"{where(path)}: the table knows no room {own!r}"
    allowed = ROOMS[own]
    for name, node in imports(path):
        top, _, rest = name.partition(".")
        if top == "fedtrain":
            parts = rest.split(".")
            if parts[0] in ("", "__version__", own):
                continue
            fits = parts[0] in allowed.fedtrain or ".".join(parts[:2]) in allowed.fedtrain
            assert fits, f"{where(path, node)}: {own} may not import {name}"
        elif top not in sys.stdlib_module_names:
            assert top in allowed.third_party, f"{where(path, node)}: {own} may not import {top}"


@pytest.mark.parametrize("path", sources("fedtrain/core"), ids=where)
def test_decisions_know_no_clock_file_socket_or_chance(path: Path) -> None:
    """The core names no module that would bring in time, files, the network or unseeded chance."""
    for name, node in imports(path):
        top = name.partition(".")[0]
        assert top not in NOT_IN_CORE, f"{where(path, node)}: the core may not import {name}"
        if name.startswith("random."):
            assert name == "random.Random", f"{where(path, node)}: only random.Random(seed)"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr == "Random", f"{where(path, node)}: only random.Random(seed)"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input"), f"{where(path, node)}: {node.func.id}"


def test_generated_messages_stay_in_wire() -> None:
    """Only the room `wire` knows protobuf."""
    for path in sources("fedtrain"):
        if room_of(path) == "wire":
            continue
        for name, node in imports(path):
            assert "_pb2" not in name, f"{where(path, node)}: {name} stays in wire"
            assert not name.startswith("fedtrain.wire.v1"), f"{where(path, node)}: {name} stays in wire"


@pytest.mark.parametrize("name", ["fedtrain.coordinator", "fedtrain.peer", "fedtrain.cli.app"])
def test_network_side_never_loads_torch(name: str) -> None:
    """Importing the coordinator, the agent or the command line does not load torch, by any detour."""
    code = f"import sys, {name}; print(sorted({{'torch', 'fedtrain.trainer'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("path", sources("fedtrain", "tests", "benchmarks"), ids=where)
def test_files_and_functions_are_small(path: Path) -> None:
    """A file has at most 400 lines, a function 70, a constructor seven parameters."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES_MAX, f"{where(path)} has {lines} lines"
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{where(path, node)}: {node.name} has {length} lines"
            if node.name == "__init__":
                given = node.args
                count = len(given.posonlyargs + given.args + given.kwonlyargs) - 1
                assert count <= PARAMETERS_MAX, f"{where(path, node)}: {count} parameters"


@pytest.mark.parametrize("path", sources("fedtrain", "tests", "benchmarks"), ids=where)
def test_names_say_what_a_thing_is(path: Path) -> None:
    """No file, class or function is called a helper, manager, utility or the like."""
    defined: list[tuple[str, ast.AST | None]] = [(part, None) for part in path.relative_to(ROOT).parts]
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.append((node.name, node))
    for name, place in defined:
        words = re.findall(r"[a-z]+|[A-Z][a-z]*", name)
        unclear = UNCLEAR_WORDS & {word.lower() for word in words}
        assert not unclear, f"{where(path, place)}: {name}: what is it for?"


@pytest.mark.parametrize("path", sources("fedtrain", "benchmarks"), ids=where)
def test_modules_say_what_they_are_for(path: Path) -> None:
    """Every module opens with a docstring."""
    assert ast.get_docstring(parsed(path)), f"{where(path)} has no docstring"


@pytest.mark.parametrize("path", sources("tests"), ids=where)
def test_tests_say_what_they_hold(path: Path) -> None:
    """Every test has a docstring."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{where(path, node)}: {node.name} has no docstring"


@pytest.mark.parametrize("path", sources("fedtrain", "tests", "benchmarks"), ids=where)
def test_nothing_is_unpickled_or_left_unfinished(path: Path) -> None:
    """No module can run what a stranger sent as an object, and none holds a promise in place of code."""
    for name, node in imports(path):
        assert name.partition(".")[0] not in UNSAFE, f"{where(path, node)}: {name} runs what it reads"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute):
            called = ast.unparse(node)
            assert called not in ("torch.load", "torch.save"), f"{where(path, node)}: {called} pickles"
    text = path.read_text(encoding="utf-8")
    left = UNFINISHED.search(text)
    assert left is None, f"{where(path)}:{text.count(chr(10), 0, left.start()) + 1}: {left.group()}"


def test_table_matches_the_tree() -> None:
    """Every room of the tree stands in the table."""
    rooms = {
        path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()
    }
    assert rooms - {"__init__", "__pycache__"} <= set(ROOMS)
