"""Data for an audit where a site names none: what every installation carries."""

from __future__ import annotations

from pathlib import Path

from fedtrain.errors import ConfigError
from fedtrain.trainer.data import Dataset, DataSource
from fedtrain.trainer.settings import TaskSpec

_TABLES = {(30, 2): "breast_cancer", (64, 10): "digits", (4, 3): "iris", (13, 3): "wine"}
"""(features, classes) of the data sets of scikit-learn."""


def demo_source(spec: TaskSpec) -> DataSource:
    """Bundled data that fit the task; `ConfigError` where there are none."""
    name = "demo"
    if spec.name == "causal_lm":
        dataset = Dataset(name, ("pydoc_data.topics",), "python-library", (spec.name,), Path())
        return DataSource(name, spec.name, {name: dataset})
    if spec.name == "classifier":
        table = _TABLES.get((spec.model.get("features", 0), spec.model.get("classes", 0)))
        if table is not None:
            dataset = Dataset(name, (f"{table}:1/1",), "scikit-learn", (spec.name,), Path())
            return DataSource(name, spec.name, {name: dataset})
    raise ConfigError(
        f"no bundled data fit the task {spec.name!r} with its model: name a site's with --data peer.yaml",
        key="task",
    )
