"""What the agent is told about its site: plain values, made from `peer.yaml` by whoever starts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedtrain.core.contract import Contract


@dataclass(frozen=True)
class AgentSettings:
    """One site's agent.

    Attributes:
        folder: the site's folder; the trainer starts in it.
        site: the site's name, which must be the one in its certificate.
        coordinator: `host:port`.
        proxy: `host:port` of an HTTP CONNECT proxy, None for none.
        state: keys, journal, models: the agent's own folder, closed to the trainer.
        mailbox: the folder shared with the trainer.
        launch: `process`, the agent starts the trainer; or `external`, the site does.
        contract: what orders are held against.
        data_file: the `peer.yaml` in which the trainer finds its data sets.
        isolation: `auto`, the walls around a launched trainer that the kernel grants; `required`, all of
            them or none is started; `none`.
        trainer_user: name or number of the account that a launched trainer runs under; "" for ours.
        data_files: data set -> patterns of its files, as the trainer finds them; none where its format
            reads no files.
        trainer_threads: threads of the trainer's arithmetic; its results depend on it.
        ledger: file in which the privacy of the data sets is accounted for; None for the one in `state`.
    """

    folder: Path
    site: str
    coordinator: str
    proxy: str | None
    state: Path
    mailbox: Path
    launch: str
    contract: Contract
    data_file: Path
    isolation: str = "auto"
    trainer_user: str = ""
    data_files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trainer_threads: int = 1
    ledger: Path | None = None
