"""How a site stands to each run, read from its agent's journal while that runs or does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedtrain.core.agent import AGENT_EVENTS, AgentState, step
from fedtrain.core.contract import Word
from fedtrain.core.orders import Order
from fedtrain.core.terms import read_asked
from fedtrain.errors import ConfigError, NotFoundError, RefusedError
from fedtrain.storage.journal import Journal
from fedtrain.storage.snapshots import Snapshots

_ASKED = "OrderReceived"
_ANSWERED = ("UploadAcknowledged", "AnswerDelivered")


@dataclass(frozen=True)
class Waiting:
    """A run that waits for a person's word, and what it asks.

    Attributes:
        since_ms: when it first asked, UTC.
        organisations: of the cohort's sites, as the coordinator's signed roster has them.
        model_bytes: of the model's file, 0 while there is none.
    """

    run: str
    since_ms: int
    order: str
    work: str
    task: str
    data: str
    cohort: tuple[str, ...]
    organisations: tuple[str, ...]
    use: str
    licence: str
    model_bytes: int


class Standing:
    """What the journal says; made by `open_standing`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.state = Snapshots(journal, AgentState).recover(step, AgentState(), AGENT_EVENTS)

    def waiting(self) -> list[Waiting]:
        """Runs that wait for nothing but a person's word, by name."""
        pending = {run: refused.order for run, refused in self.state.refused.items() if refused.pending}
        since_ms: dict[str, int] = {}
        for row in self._journal.read(kinds={_ASKED}) if pending else ():
            since_ms.setdefault(row.run, row.at_ms)
        return [self._waiting(order, since_ms.get(run, 0)) for run, order in sorted(pending.items())]

    def check_approvable(self, run: str) -> None:
        """Raises a `RefusedError` with the reason if an approval of this run would mean nothing."""
        self._check_known(run)
        verdict, refused = self.state.verdicts.get(run), self.state.refused.get(run)
        if verdict is not None and verdict.word is not Word.APPROVED:
            return  # the word is taken back
        if refused is None:
            how = "it is approved already" if verdict is not None else "the contract alone decides about it"
            raise RefusedError(f"nothing of run {run} waits for a word: {how}")
        if not refused.pending:
            raise RefusedError(
                f"run {run} is refused by the contract, and no approval changes that: "
                f"{'; '.join(refused.reasons)}. Change peer.yaml if it should take part"
            )

    def check_deniable(self, run: str) -> None:
        """Raises a `RefusedError` with the reason if a no to this run would mean nothing."""
        self._check_known(run)
        verdict = self.state.verdicts.get(run)
        if verdict is not None and verdict.word is not Word.APPROVED:
            raise RefusedError(f"run {run} is {verdict.word} already, by {verdict.by}")

    def check_withdrawable(self, run: str) -> None:
        """Raises a `RefusedError` with the reason if there is no consent to this run to take back."""
        self.check_deniable(run)
        in_hand = any(held.order.run == run for held in self.state.held.values())
        if not in_hand and all(row.run != run for row in self._journal.read(kinds=_ANSWERED)):
            raise RefusedError(
                f"this site has taken no part in run {run}, so there is nothing to withdraw: "
                "`fedtrain peer deny` keeps it out"
            )

    def _check_known(self, run: str) -> None:
        if run in self.state.refused or run in self.state.verdicts:
            return
        if all(row.run != run for row in self._journal.read(kinds={_ASKED})):
            raise NotFoundError(
                f"run {run!r} has asked this site for nothing: `fedtrain peer pending` shows what waits"
            )

    def _waiting(self, order: Order, since_ms: int) -> Waiting:
        asked, roster = read_asked(order.task), self.state.roster
        return Waiting(
            run=order.run,
            since_ms=since_ms,
            order=order.id,
            work=f"{order.kind.value}, {order.steps} steps",
            task=asked.task,
            data=asked.dataset,
            cohort=order.cohort,
            organisations=tuple(sorted({roster[site] for site in order.cohort if site in roster})),
            use=asked.use,
            licence=asked.licence,
            model_bytes=max((size for _, _, size in order.model.chain), default=0) if order.model else 0,
        )


@contextmanager
def open_standing(state: Path) -> Iterator[Standing]:
    """The standing of the site whose agent keeps its journal in `state`; `ConfigError` if it has none yet."""
    path = state / "journal.db"
    if not path.is_file():
        raise ConfigError(
            "no journal is here yet: run the agent first (`fedtrain peer run DIR`)", file=str(path)
        )
    journal = Journal.open(path, writer=False)
    try:
        yield Standing(journal)
    finally:
        journal.close()
