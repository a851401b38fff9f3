"""Tasks by name: what a run's `task.name` may say. A task is named in an order, never shipped.

The modules are imported when their task is first asked for, because torch takes seconds and the
synthetic task does without. Third parties add theirs through the entry point group
`fedtrain.tasks`, name = "module:Class"; the protocol is `fedtrain.trainer.tasks.task.Task`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

from fedtrain.errors import ConfigError
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks.task import Task

GROUP = "fedtrain.tasks"

TASKS = {
    "classifier": "fedtrain.trainer.tasks.classifier:Classifier",
    "causal_lm": "fedtrain.trainer.tasks.causal_lm:CausalLanguageModel",
    "synthetic": "fedtrain.trainer.tasks.synthetic:Synthetic",
}


def installed_tasks() -> dict[str, importlib.metadata.EntryPoint]:
    """All tasks of this installation; our own names cannot be taken over."""
    foreign = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    own = {name: importlib.metadata.EntryPoint(name, value, GROUP) for name, value in TASKS.items()}
    return foreign | own


def build_task(spec: TaskSpec, data: DataSource) -> Task:
    """The task that `spec` names; `ConfigError` lists the installed ones if it is none of them."""
    return _load(spec.name)(spec, data)


def example_count(name: str) -> Callable[[bytes], int]:
    """How many examples this task sees in a document, in the unit of its weight.

    A task says it by a static method `examples_in(document) -> int`. For one that does not it is the
    document's bytes: no known unit is smaller, and too low a number would make honest weights look false.
    """
    said: Callable[[bytes], int] = getattr(_load(name), "examples_in", len)
    return said


def _load(name: str) -> type[Task]:
    installed = installed_tasks()
    if name not in installed:
        names = ", ".join(sorted(installed))
        raise ConfigError(f"{name!r} is not installed at this site; installed: {names}", key="task.name")
    try:
        kind: type[Task] = installed[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the task {name!r} could not be loaded ({error}); install what it needs, for the"
            " tasks of fedtrain with `pip install fedtrain[train]`",
            key="task.name",
        ) from error
    return kind
