"""Backups, restores and a standby: who looks after the coordinators, and which of them is obeyed in the end.

This is the operator's side of it. A copy of a folder is started by a deliberate take-over; the old
coordinator may be dead, alive or cut off, and sites follow at different times. A damaged journal is
restored from the newest backup, with those rows behind it that still verify, if all that they need
is on the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fedtrain.core import events as ev, transitions
from fedtrain.core.driver import replay
from fedtrain.core.state import ENDED, State
from fedtrain.core.versions import blobs_needed
from fedtrain.sim.auditor import Auditor
from fedtrain.sim.coordinator import Coordinator
from fedtrain.sim.disk import CoordinatorDisk
from fedtrain.sim.network import Network
from fedtrain.sim.plan import Old, SuccessionPlan
from fedtrain.sim.scene import Scene
from fedtrain.sim.site import Site

FIRST = "coordinator"
STANDBY = "standby"
DECISION_MS = 4_000
"""How long a person takes to restore a folder or to start it for good."""

VISIT_MS = 6_000


class Succession:
    """The coordinators of one world.

    Attributes:
        chief: the one that its operators mean to be obeyed.
    """

    def __init__(self, scene: Scene, network: Network, auditor: Auditor, sites: Sequence[Site]) -> None:
        self._scene = scene
        self._network = network
        self._auditor = auditor
        self._sites = sites
        self._places = 0
        self.chief = self._settle(FIRST, CoordinatorDisk(self._place()))
        self._old: Coordinator | None = None
        self._copy: CoordinatorDisk | None = None
        self._backup: CoordinatorDisk | None = None

    def prepare(self) -> None:
        """Start the first one, and let happen what the plan has in store."""
        clock, plan = self._scene.clock, self._scene.plan
        self.chief.start()
        self._threaten(self.chief)
        self._scene.recur(plan.backup_gap_ms, "backup made", FIRST, lambda how: self._back_up())
        if plan.succession is not None:
            clock.at(plan.succession.copied_ms, self._make_copy)
            clock.at(plan.succession.takes_over_ms, partial(self._take_over, plan.succession))

    def _settle(self, name: str, disk: CoordinatorDisk) -> Coordinator:
        coordinator = Coordinator(name, self._scene, self._network, self._auditor, disk)
        coordinator.refuses = lambda reason: self._decide(coordinator, reason)
        return coordinator

    def _threaten(self, coordinator: Coordinator) -> None:
        recur, rates, name = self._scene.recur, self._scene.plan.rates, coordinator.name
        coordinator.threaten(rates.coordinator_gap_ms)
        recur(rates.journal_flip_gap_ms, "bit flipped in a journal", name, coordinator.damage_journal)
        recur(rates.flip_gap_ms, "bit flipped in an update", name, coordinator.damage_update)

    def _place(self) -> str:
        self._places += 1
        return f"place {self._places}"

    # -- backups and restores -------------------------------------------------------------------------

    def _back_up(self) -> None:
        """A consistent copy of the chief's folder, as it is now."""
        if self.chief.disk.damaged_row is None:
            self._backup = self.chief.disk.copy(self._place())
            self._scene.note("operator", "backs up", f"{len(self._backup.journal.entries)} rows")

    def _decide(self, coordinator: Coordinator, reason: str) -> None:
        """A start was refused, or a life ended because another one rules. Only the chief is helped."""
        if coordinator is self.chief:
            self._scene.clock.after(DECISION_MS, lambda: self._help(coordinator))

    def _help(self, coordinator: Coordinator) -> None:
        """Restore what is damaged; then this one is to be obeyed, whatever came between."""
        if coordinator is not self.chief or coordinator.up:
            return
        if coordinator.disk.damaged_row is not None:
            disk = self._restored(coordinator.disk)
            self._scene.note("operator", "restores", f"{len(disk.journal.entries)} rows")
            coordinator.settle_on(disk)
        coordinator.take_over = True
        coordinator.start()

    def _restored(self, damaged: CoordinatorDisk) -> CoordinatorDisk:
        """The damaged folder up to its bad row if all that those rows need is there, else the backup.

        Without a backup and with too little on the disk one starts anew.
        """
        assert damaged.damaged_row is not None, "only a damaged folder is restored"
        whole = damaged.copy(self._place())
        whole.journal.entries = whole.journal.entries[: damaged.damaged_row]
        backup = self._backup
        if _complete(whole) and (backup is None or len(backup.journal.entries) <= damaged.damaged_row):
            return whole
        return CoordinatorDisk(self._place()) if backup is None else backup.copy(self._place())

    # -- the standby ----------------------------------------------------------------------------------

    def _make_copy(self) -> None:
        if self.chief.disk.damaged_row is None:
            self._copy = self.chief.disk.copy(self._place())
            self._scene.note("operator", "copies", f"{len(self._copy.journal.entries)} rows for a standby")

    def _take_over(self, plan: SuccessionPlan) -> None:
        """Start the standby, leave the old one as it is, and let sites follow one by one."""
        scene = self._scene
        if self._copy is None:
            return
        scene.faults[f"standby took over, the old one {plan.old}"] += 1
        scene.note("operator", "starts", f"the standby; the old coordinator is {plan.old}")
        self._old, self.chief = self.chief, self._settle(STANDBY, self._copy)
        self._backup = None
        self.chief.take_over = True
        if plan.old is Old.DEAD:
            self._old.bury()
        elif plan.old is Old.CUT_OFF:
            for site in self._sites:
                self._network.cut(site.name, FIRST, scene.plan.clear_ms)
                self._network.cut(FIRST, site.name, scene.plan.clear_ms)
        self.chief.start()
        self._threaten(self.chief)
        for site in self._sites:
            scene.clock.after(site.plan.moves_ms, partial(site.move, STANDBY))
            if site.name == plan.visitor and plan.old is not Old.DEAD:
                scene.clock.at(plan.visits_ms, partial(self._visit, site))

    def _visit(self, site: Site) -> None:
        """By mistake a site goes back to the old coordinator, and shows it what it follows now."""
        if site.home == STANDBY:
            self._scene.faults["site went back"] += 1
            site.move(FIRST)
            self._scene.clock.after(VISIT_MS, partial(site.move, STANDBY))


def _complete(disk: CoordinatorDisk) -> bool:
    """Whether everything that the journal's state needs lies on the disk."""
    state = replay(disk.journal, transitions.step, State(), ev.EVENTS)
    for name, run in state.runs.items():
        if run.phase in ENDED:
            continue
        if not blobs_needed(run) <= set(disk.store.blobs):
            return False
        if run.model is not None and (name, run.model.ref.version) not in disk.versions:
            return False
    return True
