"""Tasks that wait, break and die when a test says so, installed as a third party's would be.

`gated` is the synthetic task, `gated_lm` the language model; both are steered by files in the
site's folder, where the trainer runs:

    gate      training waits, with progress, for as long as it is there (the model: after a step)
    crash     the trainer's process ends at once, without a word
    widened   the task builds another layout than everywhere else
"""

from __future__ import annotations

import os
from pathlib import Path

from fedtrain.methods.layout import Entry, Layout
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks.causal_lm import CausalLanguageModel
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


class GatedLanguageModel(CausalLanguageModel):
    """The real model, held up after its first step."""

    def train(self, start: Weights, work: Work, context: Context) -> Outcome:
        """Train as ever, with a turnstile behind every step."""
        return super().train(start, work, Turnstile(context))


class Turnstile:
    """A task's context that lets nobody past the gate."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.pause = context.pause

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        """Report the step, then wait at the gate."""
        self._context.step_done(steps, loss, weight)
        while GATE.exists():
            self._context.pause(0.02)
