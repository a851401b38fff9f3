"""Format `python-library`: text that every Python carries, for examples that need no download.

A path is the name of a module or package of the standard library, whose sources are read (a package
with its submodules, without its tests), or a pattern such as `_pydatetime*` over top-level names,
which may match nothing, because the library differs between Python versions. The name
`pydoc_data.topics` stands for the texts of the language reference's topics. No module is imported.
"""

from __future__ import annotations

import ast
import fnmatch
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from fedtrain.errors import ConfigError, StorageError

TOPICS = "pydoc_data.topics"
_NOT_TEXT = {"test", "tests", "__pycache__"}


def library_documents(patterns: tuple[str, ...], folder: Path) -> Iterator[bytes]:
    """Documents of the named modules, each module once, sorted by name; `folder` plays no part."""
    library = Path(sysconfig.get_path("stdlib"))
    if TOPICS in patterns:
        yield from _topics(_source(library, TOPICS))
    files: dict[str, Path] = {}
    for pattern in patterns:
        if pattern != TOPICS:
            files |= {path.relative_to(library).as_posix(): path for path in _files(library, pattern)}
    if not files and TOPICS not in patterns:
        raise ConfigError(f"no module of the library in {library} matches {', '.join(patterns)}")
    for _, path in sorted(files.items()):
        yield _read(path)


def _files(library: Path, pattern: str) -> list[Path]:
    if not any(sign in pattern for sign in "*?["):
        return _sources(_source(library, pattern))
    names = sorted(fnmatch.filter(sys.stdlib_module_names, pattern))
    found = [_find(library, name) for name in names]
    return [path for source in found if source is not None for path in _sources(source)]


def _source(library: Path, name: str) -> Path:
    path = _find(library, name)
    if path is None:
        raise ConfigError(f"the library in {library} has no Python source of a module {name!r}")
    return path


def _find(library: Path, name: str) -> Path | None:
    """The module's source, None where it has none (built in, or written in C)."""
    places: list[str] | None = [str(library)]
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        if places is None:
            return None
        # Not importlib.util.find_spec: it imports the parent packages.
        spec = PathFinder.find_spec(".".join(parts[:depth]), places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ()) or None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _sources(source: Path) -> list[Path]:
    """The source itself, or all sources of the package that it opens."""
    if source.name != "__init__.py":
        return [source]
    inside = source.parent.rglob("*.py")
    return [path for path in inside if not _NOT_TEXT & set(path.relative_to(source.parent).parts)]


def _topics(source: Path) -> Iterator[bytes]:
    """The texts of the dictionary `topics`, read as a literal; each paragraph where it first comes.

    Topics quote whole sections of one another: with the repetitions, half of the held-out windows
    of this text stood word for word in the training text as well.
    """
    seen: set[str] = set()
    for statement in ast.parse(_read(source)).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics = ast.literal_eval(statement.value)
            for _, text in sorted(topics.items()):
                paragraphs = [part for part in str(text).split("\n\n") if part.strip() not in seen]
                seen.update(part.strip() for part in paragraphs)
                yield "\n\n".join(paragraphs).encode()
            return
    raise ConfigError(f"{source} holds no dictionary of topics; this Python is not supported as a data set")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"the library file {path} cannot be read: {error.strerror}") from error
