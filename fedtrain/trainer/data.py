"""The site's data: the `datasets` section of peer.yaml, and the loaders that read what it names.

Only this section is read here; the agent reads and checks the whole file. Nothing is opened before
a task asks for its documents, and then the data set's own rights are held against the task once
more, although the agent has done so already: the trainer is the process that sees the data.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from fedtrain.errors import ConfigError, RefusedError, StorageError
from fedtrain.trainer.library import library_documents
from fedtrain.trainer.settings import Section, nearest
from fedtrain.trainer.tables import bundled_records, csv_records


@dataclass(frozen=True)
class Dataset:
    """One entry of `datasets`.

    Attributes:
        paths: patterns, whose meaning is the format's.
        execute: tasks that may compute on it (`rights.execute`).
        folder: where peer.yaml lies; relative paths start there.
    """

    name: str
    paths: tuple[str, ...]
    format: str
    execute: tuple[str, ...]
    folder: Path


Loader = Callable[[tuple[str, ...], Path], Iterator[bytes]]
"""From patterns and the folder that relative ones start in to documents, in a fixed order."""


class DataSource:
    """What a task sees of the site's data: the documents of the one data set that its run names."""

    def __init__(self, name: str, task: str, datasets: Mapping[str, Dataset]) -> None:
        self.name = name
        self._task = task
        self._datasets = datasets

    def documents(self) -> Iterator[bytes]:
        """The data set's documents, each not empty, in an order that never changes.

        Raises `ConfigError` where the data set is unknown, unreadable or empty, and
        `RefusedError` where its rights do not name the task.
        """
        dataset = self._dataset()
        count = 0
        try:
            for document in LOADERS[dataset.format](dataset.paths, dataset.folder):
                if document:
                    count += 1
                    yield document
        except ConfigError as error:
            raise ConfigError(f"the data set {self.name!r} cannot be read: {error}") from error
        if not count:
            patterns = ", ".join(dataset.paths)
            raise ConfigError(
                f"the data set {self.name!r} is empty: nothing but empty files matched {patterns}"
                f" (format {dataset.format}, looked at from {dataset.folder})"
            )

    def parts(self) -> Sequence[DataSource]:
        """What is to be split into training and held-out text by itself: this, except in a baseline."""
        return (self,)

    def _dataset(self) -> Dataset:
        if not self.name:
            raise ConfigError(
                f"the task {self._task!r} needs data: name a data set of the sites", key="task.data"
            )
        if self.name not in self._datasets:
            raise ConfigError(
                f"this site has no data set {self.name!r} (see `datasets` in its peer.yaml)"
                f"{nearest(self.name, self._datasets)}",
                key="task.data",
            )
        dataset = self._datasets[self.name]
        if self._task not in dataset.execute:
            raise RefusedError(
                f"the data set {self.name!r} does not allow the task {self._task!r}: its rights.execute in"
                f" peer.yaml names {', '.join(dataset.execute) or 'none'}"
            )
        return dataset


def read_datasets(file: Path) -> dict[str, Dataset]:
    """The `datasets` of a peer.yaml, by name; `ConfigError` with the path of the key that is wrong."""
    try:
        document = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror}); is --data right?", file=str(file)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", file=str(file)) from error
    if not isinstance(document, Mapping):
        raise ConfigError("is not a site's file: it holds no keys", file=str(file))
    entries = document.get("datasets") or {}
    if not isinstance(entries, Mapping):
        raise ConfigError("expected a mapping of names to data sets", file=str(file), key="datasets")
    return {
        str(name): _read_dataset(
            str(name), Section(entry, f"datasets.{name}", str(file)), file.resolve().parent
        )
        for name, entry in entries.items()
    }


def _read_dataset(name: str, section: Section, folder: Path) -> Dataset:
    rights, privacy = section.section("rights"), section.section("privacy")
    dataset = Dataset(
        name=name,
        paths=section.texts("path"),
        format=section.choice("format", "text", LOADERS),
        execute=rights.texts("execute", ()),
        folder=folder,
    )
    # The agent acts on the rest; here it is read so that a slip of the pen is found at the site.
    section.text("licence", "")
    for right in ("discoverable", "read", "write"):
        rights.flag(right, False)
    privacy.text("unit", "record")
    privacy.number("epsilon_max", 0.0)
    privacy.number("delta", 0.0, high=1.0)
    for part in (section, rights, privacy):
        part.end()
    return dataset


def text_documents(patterns: tuple[str, ...], folder: Path) -> Iterator[bytes]:
    """Format `text`: UTF-8 files by path patterns (`**` for any depth), each file once, sorted."""
    files: set[Path] = set()
    for pattern in patterns:
        # Not Path.glob: that one refuses absolute patterns.
        found = {Path(path) for path in glob.glob(str(folder / pattern), recursive=True)}  # noqa: PTH207
        found = {path for path in found if path.is_file()}
        if not found:
            raise ConfigError(f"no file matches {str(folder / pattern)!r}")
        files |= found
    for path in sorted(files):
        try:
            data = path.read_bytes()
            data.decode()
        except OSError as error:
            raise StorageError(f"the data file {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
        yield data


LOADERS: dict[str, Loader] = {
    "text": text_documents,
    "python-library": library_documents,
    "csv": csv_records,
    "scikit-learn": bundled_records,
}
