"""A task that waits, breaks and dies when a test says so, installed as a third party's would be.

It is the synthetic task, steered by files in the site's folder, where the trainer runs:

    gate      training waits, with progress, for as long as it is there
    crash     the trainer's process ends at once, without a word
    widened   the task builds another layout than everywhere else
"""

from __future__ import annotations

import os
from pathlib import Path

from fedtrain.methods.layout import Entry, Layout
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks.synthetic import Synthetic
from fedtrain.trainer.tasks.task import Context, Outcome, Weights, Work

GATE, CRASH, WIDENED = Path("gate"), Path("crash"), Path("widened")


class Gated(Synthetic):
    """`model` and `training` are the synthetic task's. A data set that is named is read."""

    def __init__(self, spec: TaskSpec, data: DataSource) -> None:
        super().__init__(spec, data)
        self._data = data

    def layout(self) -> Layout:
        """The synthetic layout, with one tensor more where the site's folder says so."""
        extra = (Entry("extra", (1,)),) if WIDENED.exists() else ()
        return Layout((*super().layout().entries, *extra))

    def train(self, start: Weights, work: Work, context: Context) -> Outcome:
        """Wait at the gate, then do as the synthetic task does."""
        if CRASH.exists():
            os._exit(9)
        if self._data.name:
            for _ in self._data.documents():
                continue
        while GATE.exists():
            context.pause(0.02)
        return super().train(start, work, context)
