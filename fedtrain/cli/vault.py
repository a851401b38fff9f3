"""`fedtrain coordinator backup` and `restore`: the coordinator's folder, kept safe and made anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtrain.cli import output
from fedtrain.cli.options import Json

if TYPE_CHECKING:
    from fedtrain.coordinator.recovery import RestoreReport

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="The backup's folder, best on another disk.")]
Backup = Annotated[Path, typer.Argument(metavar="BACKUP", help="A folder that `backup` made.")]
NewFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The new coordinator's folder.")]


def backup(folder: Folder, target: Target, json: Json = False) -> None:
    """Copy the coordinator's folder, also while it runs. Again into the same TARGET, only what is new.

    TARGET then holds the consortium's private keys: guard it as you guard DIR.
    """
    from fedtrain.coordinator import vault

    report = vault.backup(folder, target)
    if json:
        output.emit({**vars(report), "folder": str(folder), "target": str(target)}, as_json=True)
    else:
        output.say(
            f"Consortium {output.printable(report.consortium)} is backed up in {output.printable(target)} "
            f"up to row {report.sequence}: {report.num_files} files of {report.size_bytes} bytes, "
            f"{report.copied_files} of them copied now."
        )
    for told, paths in (("is damaged", report.damaged), ("is missing", report.missing)):
        for path in paths:
            output.note(f"fedtrain: {folder / path} {told}, so the backup is without it: check the disk")


def restore(
    source: Backup,
    folder: NewFolder,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log", metavar="DAMAGED", help="The damaged coordinator's folder: what still holds is used."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make a coordinator's folder from a backup, and from what still holds of a damaged one."""
    from fedtrain.coordinator import recovery

    report = recovery.restore(source, folder, log)
    next_command = f"fedtrain coordinator serve {folder} --take-over"
    if json:
        output.emit({**vars(report), "folder": str(folder), "next": next_command}, as_json=True)
        return
    for line in _sentences(report, log):
        output.say(output.printable(line))
    output.say(f"Next: {output.printable(next_command)}")


def _sentences(report: RestoreReport, log: Path | None) -> list[str]:
    """The report in words."""
    lines = [
        f"Consortium {report.consortium} is restored in {report.folder}: {report.backup_rows} rows from the "
        f"backup, {report.recovered_rows} behind them from the log."
    ]
    if log is None:
        lines.append("What happened after the backup is lost; with --log DAMAGED it may be found.")
    elif report.stopped_by:
        lines.append(f"The log ends there: {report.stopped_by}.")
        told = ", ".join(f"{count} {kind}" for kind, count in report.lost.items())
        lines.append(f"Lost behind it: {told or 'nothing that can be told'}.")
    else:
        lines.append("The log holds to its end: nothing that was journaled is lost.")
    lines += [f"Missing: {path}; no copy of it holds." for path in report.missing]
    lines += [f"Not proven: {path} was taken as it is." for path in report.unproven]
    return lines
