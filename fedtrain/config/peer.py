"""A site: `peer.yaml`. What the owner of the data declares, and what the agent holds orders against.

Every clause is enforced: one that this version does not know is refused with its line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedtrain.config.contract import ContractSection, Positive, RightsSection
from fedtrain.config.document import read_document
from fedtrain.config.privacy import Delta
from fedtrain.config.section import (
    Address,
    Name,
    Section,
    Text,
    Texts,
    Word,
    fault,
    validate,
)
from fedtrain.core.contract import Budget, Contract
from fedtrain.errors import ConfigError

LEDGER_FILE = "ledger.sqlite"
LIBRARY_FORMAT = "python-library"
"""The one format whose paths are names of modules."""


def _launch(value: object) -> object:
    if value in ("slurm", "pbs"):
        raise fault(f"{value!r} is not available in this version; valid here: process, external")
    return value


def _account(value: object) -> object:
    """YAML reads an account's number as one."""
    return str(value) if type(value) is int and value >= 0 else value


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


class TrainerSection(Section):
    """Who starts the trainer: the agent (`process`), or the site itself (`external`).

    `isolation`: the walls around a trainer that the agent starts. `auto` raises those that the machine
    grants, `required` starts none unless all of them stand, `none` raises none. `user`: the account that
    it runs under, by name or number; changing to it takes an agent that is root.
    """

    launch: Annotated[Literal["process", "external"], BeforeValidator(_launch)] = "process"
    devices: Literal["auto"] = "auto"
    isolation: Literal["auto", "none", "required"] = "auto"
    user: Annotated[str, BeforeValidator(_account)] = ""

    @model_validator(mode="after")
    def _only_ours(self) -> TrainerSection:
        if self.launch == "external":
            for key, given in (("isolation", self.isolation != "auto"), ("user", bool(self.user))):
                if given:
                    raise fault(
                        "is for a trainer that the agent starts (launch: process); an external one lives as"
                        " its starter lets it, and `fedtrain peer check` shows which walls stand around it",
                        key,
                    )
        return self


class DatasetPrivacySection(Section):
    """The owner's lifetime budget for a data set, over all runs and consortia."""

    unit: Literal["record", "group", "site"] = "record"
    epsilon_max: Positive
    delta: Delta


class DatasetSection(Section):
    """A data set of this site. `path` is read by the trainer's loader for `format`, never by the agent."""

    path: Annotated[Texts, BeforeValidator(_one_or_many)]
    format: Word = "text"
    licence: Text = "unstated"
    rights: RightsSection = RightsSection()
    privacy: DatasetPrivacySection | None = None

    def files(self, folder: Path) -> tuple[str, ...]:
        """Patterns of its files, as the trainer finds them; none for texts that Python brings along."""
        if self.format == LIBRARY_FORMAT:
            return ()
        return tuple(os.path.normpath(folder / pattern) for pattern in self.path)


class EnergySection(Section):
    """Facts about the site's power, for reports. Power usage effectiveness is never below 1."""

    pue: float | None = Field(default=None, ge=1, le=10)
    price_eur_per_kwh: float | None = Field(default=None, ge=0)
    co2_g_per_kwh: float | None = Field(default=None, ge=0)


class PeerConfig(Section):
    """A whole site, as written in its file. Its folders and the ledger are resolved by `load_peer`.

    `ledger`: where the privacy of the data sets is accounted for; agents of one site for several consortia
    name one file.
    """

    site: Name
    coordinator: Address
    proxy: Address | None = None
    state: Text = "state"
    mailbox: Text = "mailbox"
    ledger: Text | None = None
    trainer: TrainerSection = TrainerSection()
    datasets: dict[Word, DatasetSection] = Field(default_factory=dict)
    contract: ContractSection = ContractSection()
    energy: EnergySection = EnergySection()

    def terms(self) -> Contract:
        """The clauses that the agent holds every order against."""
        rights = {name: dataset.rights.terms() for name, dataset in self.datasets.items()}
        budgets = {
            name: Budget(dataset.privacy.unit, dataset.privacy.epsilon_max, dataset.privacy.delta)
            for name, dataset in self.datasets.items()
            if dataset.privacy is not None
        }
        return self.contract.terms(rights, budgets)


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
    ledger = Path(os.path.normpath(folder / config.ledger)) if config.ledger else state / LEDGER_FILE
    if mailbox in ledger.parents:
        raise ConfigError(
            f"the ledger ({ledger}) must not lie in the mailbox, because the trainer could write to it",
            file=document.place(("ledger",)),
            key="ledger",
        )
    return config.model_copy(update={"state": str(state), "mailbox": str(mailbox), "ledger": str(ledger)})
