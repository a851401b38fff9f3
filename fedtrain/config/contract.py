"""The clauses of a `peer.yaml`: what the owner of the data allows, as a person writes it.

Each becomes a value of `core.contract`, which the agent holds every order against.
"""

from __future__ import annotations

import re
import zoneinfo
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fedtrain.config.section import Name, Section, SizeBytes, Text, Texts, Word, Words, fault, word_form
from fedtrain.core.contract import Approval, Budget, Contract, Hours, Models, Require, Rights
from fedtrain.core.orders import DIGEST

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]|24(?=:00)):([0-5]\d) (\S{1,64})")

Positive = Annotated[float, Field(gt=0)]


def _hours(value: object) -> object:
    match = _HOURS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise fault(f'found {value!r}, but it must be "HH:MM-HH:MM ZONE", e.g. "20:00-06:00 Europe/Berlin"')
    if match[5] not in zoneinfo.available_timezones():
        raise fault(f"{match[5]!r} is not a time zone; valid are names such as UTC or Europe/Berlin")
    if match[1] == match[3] and match[2] == match[4]:
        raise fault(f"found {value!r}, which is never; all day is 00:00-24:00")
    return value


def _grant(value: object) -> object:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise fault(f"found {value!r}, but it must be true, false or a list of tasks")
    return tuple(word_form(item) for item in value)


def _layout(value: object) -> object:
    if isinstance(value, str) and DIGEST.fullmatch(value) is None:
        raise fault(f"found {value!r}, but a layout is named by its digest: 64 hexadecimal digits")
    return value


def _public_key(value: object) -> object:
    if isinstance(value, str) and DIGEST.fullmatch(value) is None:
        raise fault(
            f"found {value!r}, but a message key is 64 hexadecimal digits, as `fedtrain site show` tells it"
        )
    return value


Grant = Annotated[bool | tuple[str, ...], BeforeValidator(_grant)]
"""true or false for every task, or the tasks that it holds for."""

PublicKey = Annotated[str, BeforeValidator(_public_key)]

Layouts = Annotated[tuple[Annotated[str, BeforeValidator(_layout)], ...], Field(strict=False)]


class RightsSection(Section):
    """What others may do with a data set. `execute` lists the tasks that may train on it."""

    discoverable: Grant = False
    execute: Words = ()
    read: Grant = False
    write: Grant = False

    def terms(self) -> Rights:
        """In the core's terms."""
        flags = {name: getattr(self, name) is True for name in ("discoverable", "read", "write")}
        discoverable, read, write = (
            grant if isinstance(grant, tuple) else () for grant in (self.discoverable, self.read, self.write)
        )
        return Rights(
            **flags,
            execute=self.execute,
            discoverable_to=discoverable,
            readable_by=read,
            writable_by=write,
        )


class ModelsSection(Section):
    """Which models may be trained. `limits` bounds numbers of the run's `task.model`, e.g. `layers: 12`."""

    size_max: SizeBytes | None = None
    layouts: Layouts = ()
    limits: dict[Word, float] = Field(default_factory=dict)


class RequireSection(Section):
    """What a round must have before this site takes part."""

    masked: bool = False
    epsilon_max: Positive | None = None
    unit: Literal["", "record", "group", "site"] = ""


class ContractSection(Section):
    """What the agent lets this site take part in. Default deny: only what is listed is allowed."""

    runs: Texts = ()
    tasks: Words = ()
    cohort_min: int = Field(default=2, ge=1, le=1_000_000)
    organisations_min: int = Field(default=1, ge=1, le=1_000_000)
    models: ModelsSection = ModelsSection()
    require: RequireSection = RequireSection()
    hours: Annotated[Text, BeforeValidator(_hours)] | None = None
    upload_max_per_day: SizeBytes | None = None
    upload_max_per_round: SizeBytes | None = None
    gpu_hours_max: Positive | None = None
    use: Literal["economic", "non-economic"] = "non-economic"
    licences: Texts = ()
    approval: Literal["automatic", "manual", "hold"] = "automatic"
    partners: dict[Name, PublicKey] = Field(default_factory=dict)

    def terms(self, datasets: dict[str, Rights], budgets: dict[str, Budget]) -> Contract:
        """In the core's terms."""
        return Contract(
            runs=self.runs,
            tasks=self.tasks,
            cohort_min=self.cohort_min,
            datasets=datasets,
            organisations_min=self.organisations_min,
            models=Models(self.models.size_max, self.models.layouts, self.models.limits),
            hours=_window(self.hours),
            upload_max_per_day_bytes=self.upload_max_per_day,
            upload_max_per_round_bytes=self.upload_max_per_round,
            gpu_hours_max=self.gpu_hours_max,
            use=self.use,
            licences=self.licences,
            require=Require(self.require.masked, self.require.epsilon_max, self.require.unit),
            approval=Approval(self.approval),
            budgets=budgets,
            partners=self.partners,
        )


def _window(text: str | None) -> Hours | None:
    match = _HOURS.fullmatch(text) if text is not None else None
    if match is None:
        return None
    start_hour, start, end_hour, end = (int(match[group]) for group in (1, 2, 3, 4))
    return Hours(60 * start_hour + start, 60 * end_hour + end, match[5])
