"""A site: `peer.yaml`. What the owner of the data declares, and what the agent holds orders against.

A clause that this version cannot enforce is either refused here or listed by `unenforced`, which
the agent prints at start: nobody may believe in a protection that is not there. Refused is what
would let data-derived numbers leave against the owner's written word (`masked: true`,
`approval: manual`); listed is what bounds effort and time.
"""

from __future__ import annotations

import os
import re
import zoneinfo
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedtrain.config.document import read_document
from fedtrain.config.section import (
    Address,
    Name,
    Section,
    SizeBytes,
    Text,
    Texts,
    Word,
    Words,
    fault,
    validate,
)
from fedtrain.core.contract import Contract, Rights
from fedtrain.errors import ConfigError

_HOURS = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d) (\S{1,64})")
_ALL_DAY = "00:00-24:00"

Positive = Annotated[float, Field(gt=0)]


def _hours(value: object) -> object:
    match = _HOURS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise fault(f'found {value!r}, but it must be "HH:MM-HH:MM ZONE", e.g. "20:00-06:00 Europe/Berlin"')
    if match[5] not in zoneinfo.available_timezones():
        raise fault(f"{match[5]!r} is not a time zone; valid are names such as UTC or Europe/Berlin")
    return value


def _launch(value: object) -> object:
    if value in ("slurm", "pbs"):
        raise fault(f"{value!r} is not available in this version; valid here: process, external")
    return value


def _approval(value: object) -> object:
    if value == "manual":
        raise fault("manual approval is not available in this version; valid here: automatic")
    return value


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


class TrainerSection(Section):
    """Who starts the trainer: the agent (`process`), or the site itself (`external`)."""

    launch: Annotated[Literal["process", "external"], BeforeValidator(_launch)] = "process"
    devices: Literal["auto"] = "auto"


class RightsSection(Section):
    """What others may do with a data set. `execute` lists the tasks that may train on it."""

    discoverable: bool = False
    execute: Words = ()
    read: bool = False
    write: bool = False


class DatasetPrivacySection(Section):
    """The owner's lifetime budget for a data set."""

    unit: Literal["record", "group"] = "record"
    epsilon_max: Positive
    delta: float = Field(gt=0, lt=1)


class DatasetSection(Section):
    """A data set of this site. `path` is read by the trainer's loader for `format`, never by the agent."""

    path: Annotated[Texts, BeforeValidator(_one_or_many)]
    format: Word = "text"
    licence: Text = "unstated"
    rights: RightsSection = RightsSection()
    privacy: DatasetPrivacySection | None = None


class RequireSection(Section):
    """What a round must have before this site takes part."""

    masked: bool = False

    @model_validator(mode="after")
    def _can_be_met(self) -> RequireSection:
        if self.masked:
            raise fault(
                "masked rounds are not available in this version, so this site would refuse every run; "
                "valid here: false",
                "masked",
            )
        return self


class ContractSection(Section):
    """What the agent lets this site take part in. Default deny: only what is listed is allowed."""

    runs: Texts = ()
    tasks: Words = ()
    cohort_min: int = Field(default=2, ge=1, le=1_000_000)
    require: RequireSection = RequireSection()
    hours: Annotated[str, BeforeValidator(_hours)] = f"{_ALL_DAY} UTC"
    upload_max_per_day: SizeBytes | None = None
    gpu_hours_max: Positive | None = None
    use: Literal["economic", "non-economic"] = "non-economic"
    approval: Annotated[Literal["automatic"], BeforeValidator(_approval)] = "automatic"


class EnergySection(Section):
    """Facts about the site's power, for reports. Power usage effectiveness is never below 1."""

    pue: float | None = Field(default=None, ge=1, le=10)
    price_eur_per_kwh: float | None = Field(default=None, ge=0)
    co2_g_per_kwh: float | None = Field(default=None, ge=0)


class PeerConfig(Section):
    """A whole site, as written in its file. `state` and `mailbox` are resolved by `load_peer`."""

    site: Name
    coordinator: Address
    proxy: Address | None = None
    state: Text = "state"
    mailbox: Text = "mailbox"
    trainer: TrainerSection = TrainerSection()
    datasets: dict[Word, DatasetSection] = Field(default_factory=dict)
    contract: ContractSection = ContractSection()
    energy: EnergySection = EnergySection()

    def terms(self) -> Contract:
        """The clauses that the agent holds every order against."""
        rights = {
            name: Rights(
                discoverable=dataset.rights.discoverable,
                execute=dataset.rights.execute,
                read=dataset.rights.read,
                write=dataset.rights.write,
            )
            for name, dataset in self.datasets.items()
        }
        return Contract(self.contract.runs, self.contract.tasks, self.contract.cohort_min, rights)

    def unenforced(self) -> tuple[str, ...]:
        """Clauses of this file that this version of the agent does not enforce, each in one sentence."""
        contract = self.contract
        clauses = []
        if not contract.hours.startswith(_ALL_DAY):
            clauses.append(f"contract.hours: {contract.hours} is not enforced in this version")
        if contract.upload_max_per_day is not None:
            clauses.append("contract.upload_max_per_day: uploads are not limited in this version")
        if contract.gpu_hours_max is not None:
            clauses.append("contract.gpu_hours_max: accelerator hours are not counted in this version")
        clauses.extend(
            f"datasets.{name}.privacy: no privacy budget is kept in this version"
            for name, dataset in sorted(self.datasets.items())
            if dataset.privacy is not None
        )
        return tuple(clauses)


def load_peer(path: str | Path) -> PeerConfig:
    """The site in a YAML file, its folders resolved against the file's own folder.

    Raises `ConfigError` with file, line and key if it is not one.
    """
    document = read_document(path)
    config = validate(PeerConfig, document)
    folder = Path(path).absolute().parent
    state, mailbox = (Path(os.path.normpath(folder / part)) for part in (config.state, config.mailbox))
    if state == mailbox or state in mailbox.parents or mailbox in state.parents:
        raise ConfigError(
            f"the mailbox ({mailbox}) and the state folder ({state}) must lie apart, "
            "because the trainer sees the mailbox and may not see the keys",
            file=document.place(("mailbox",)),
            key="mailbox",
        )
    return config.model_copy(update={"state": str(state), "mailbox": str(mailbox)})
