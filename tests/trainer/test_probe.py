"""What a trainer finds out about itself, and that both sides of the mailbox distrust what they read."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from pathlib import Path

import pytest

from fedtrain.core import canonical
from fedtrain.errors import BadMailbox, LocalError
from fedtrain.storage.mailbox import Count, Finding, Probe
from fedtrain.trainer import probe as probing
from fedtrain.trainer.data import read_datasets
from fedtrain.trainer.process import main

ID = "00112233445566ff"
FINDING = Finding(ID, "host-1", "1", 1, 0, True, counts={"corpus": Count("causal_lm", 1, 2, 2)})


def test_a_question_in_the_mailbox_is_answered(site):
    """`--probe` answers that one question, counts the data through the task's eyes, and takes no order."""
    order = site.order("seed", 0, steps=0)
    site.mailbox.post(order, None)
    site.mailbox.ask(Probe(ID, secrets=str(site.peer.parent), count_s=60))
    assert main([str(site.mailbox.folder), "--data", str(site.peer), "--probe", ID]) == 0
    finding = site.mailbox.finding(ID)
    texts = [path.read_bytes() for path in sorted((site.peer.parent / "texts").glob("*.txt"))]
    total = sum(map(len, texts))
    assert finding.counts == {"corpus": Count("causal_lm", len(texts), total, total)}
    assert finding.uid == os.getuid() and "causal_lm" in finding.tasks
    assert finding.secrets == ("peer.yaml", "texts"), "a folder that is not hidden is told"
    assert site.mailbox.probes() == [] and site.mailbox.claims() == {}


def test_an_idle_trainer_answers_too(site):
    """A trainer that serves the mailbox sees the question beside its orders."""
    site.mailbox.ask(Probe(ID))
    assert main([str(site.mailbox.folder), "--data", str(site.peer), "--once"]) == 0
    assert site.mailbox.finding(ID).counts == {}, "no time was given for counting"
    site.mailbox.forget_probe(ID)
    assert site.mailbox.finding(ID) is None


def test_data_that_cannot_be_read_is_a_sentence(site):
    """Missing files, foreign bytes and rights for nobody are failures of that data set alone."""
    (site.peer.parent / "texts" / "a.txt").write_bytes(b"ok \xff\xfe")
    site.peer.write_text(
        "datasets:\n"
        "  broken: {path: texts/a.txt, rights: {execute: [synthetic]}}\n"
        "  missing: {path: nowhere/*.txt, rights: {execute: [synthetic]}}\n"
        "  unused: {path: texts/b.txt}\n"
        "  foreign: {path: texts/b.txt, rights: {execute: [no_such_task]}}\n"
        "  good: {path: texts/b.txt, rights: {execute: [synthetic]}}\n"
    )
    datasets = read_datasets(site.peer)
    failures = {name: probing.count(name, datasets, 60).failure for name in datasets}
    assert "not UTF-8" in failures["broken"] and "no file matches" in failures["missing"]
    assert "rights.execute" in failures["unused"] and "no_such_task" in failures["foreign"]
    good = probing.count("good", datasets, 60)
    assert good.failure == "" and good.records == 1
    assert good.examples == good.size_bytes, "a task that does not say sees bytes"


def test_counting_ends_in_time(site):
    """What is larger than the time given is counted in part, and said to be."""
    found = probing.count("corpus", read_datasets(site.peer), -1)
    assert found.records == 1 and not found.whole


def test_addresses_are_told_by_what_answers():
    """A server accepts, a closed loopback port proves nothing, and no name is ever looked up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert probing.try_address(address) == "accepts"
    assert probing.try_address(address) == ""
    for odd in ("localhost:80", "", "1.2.3.4", "127.0.0.1:99999", "[::1]:x"):
        assert probing.try_address(odd) == ""


def test_sockets_of_every_kind_are_found(tmp_path: Path):
    """What listens is open, of every kind; in the mailbox it is the site's own; what is stale is closed."""
    kinds = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "packets": socket.SOCK_SEQPACKET}
    inside = tmp_path / "mailbox"
    inside.mkdir()
    made = []
    for name, kind in kinds.items():
        for folder in (tmp_path, inside):
            made.append(socket.socket(socket.AF_UNIX, kind))
            made[-1].bind(str(folder / name))
            if name != "datagram":
                made[-1].listen()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "stale"))
    stale.close()
    names = [str(folder / name) for name in (*kinds, "stale", "absent") for folder in (tmp_path, inside)]
    found = probing.open_sockets(names, inside)
    for each in made:
        each.close()
    assert {path for path in found if path.startswith(str(tmp_path))} == {str(tmp_path / n) for n in kinds}


@pytest.mark.parametrize(
    "changes",
    [
        {"probe": "ff" * 8},
        {"trainer": "../x"},
        {"trainer": "a\n"},
        {"uid": -1},
        {"capabilities": 2**64},
        {"sockets": ["x"] * 257},
        {"sockets": ["x" * 5000]},
        {"interfaces": ["a\0"]},
        {"counts": {"corpus": {"records": -1}}},
        {"counts": {"corpus": {"failure": "x" * 5000}}},
        {"counts": {"x" * 5000: {}}},
        {"extra": 1},
        {"no_new_privileges": 1},
    ],
    ids=str,
)
def test_a_finding_that_lies_about_its_form_is_refused(site, changes):
    """Wrong names, numbers, lengths and types are a `BadMailbox`, and rubbish."""
    plain = json.loads(canonical.encode(FINDING))
    path = site.mailbox.findings_folder / f"{ID}.json"
    path.write_text(json.dumps(plain))
    assert site.mailbox.finding(ID) == FINDING
    path.write_text(json.dumps(plain | changes))
    with pytest.raises(BadMailbox):
        site.mailbox.finding(ID)
    assert len(site.mailbox.rubbish()) == 1


def test_links_and_foreign_questions_are_left_alone(site):
    """A finding that is a link or has a second name is refused; an unfit question is not answered."""
    elsewhere = site.folder / "elsewhere.json"
    elsewhere.write_bytes(canonical.encode(FINDING))
    path = site.mailbox.findings_folder / f"{ID}.json"
    path.symlink_to(elsewhere)
    with pytest.raises(BadMailbox, match="link"):
        site.mailbox.finding(ID)
    path.unlink()
    os.link(elsewhere, path)
    with pytest.raises(BadMailbox, match="2 places"):
        site.mailbox.finding(ID)
    question = dataclasses.asdict(Probe(ID, addresses=("x",) * 300))
    (site.mailbox.probes_folder / f"{ID}.json").write_text(json.dumps(question))
    assert site.mailbox.probes() == []
    with pytest.raises(LocalError):
        site.mailbox.finding("../../etc/x")


def test_a_mailbox_of_two_accounts_is_open_to_their_group(site):
    """Marked setgid, whatever either side makes is the group's to read and write, whatever the umask."""
    site.mailbox.share(os.getgid())
    before = os.umask(0o077)
    try:
        site.mailbox.create()
        order = site.order("seed", 0, steps=0)
        site.do(order)
        site.mailbox.answer(FINDING)
    finally:
        os.umask(before)
    made = [*site.mailbox.results_folder.rglob("*"), *site.mailbox.findings_folder.rglob("*")]
    assert len(made) == 4
    for path in made:
        assert path.stat().st_mode & 0o070 == (0o070 if path.is_dir() else 0o060), path


def test_an_unmarked_mailbox_keeps_the_makers_rights(site):
    """Without the mark the umask decides, as before; a folder that is setgid alone is not shared."""
    site.mailbox.findings_folder.chmod(0o2755)
    site.mailbox.answer(FINDING)
    assert (site.mailbox.findings_folder / f"{ID}.json").stat().st_mode & 0o020 == 0


def test_units_of_a_task_are_counted(site):
    """The task's own reader says how many units a step can draw from; what it cannot say is a sentence."""
    datasets = read_datasets(site.peer)
    order = site.order("train", 1)
    units, failure = probing.count_units(order.task, "record", datasets)
    assert units > 0 and failure == ""
    nothing = json.dumps({**json.loads(order.task), "data": "elsewhere"})
    assert probing.count_units(nothing, "record", datasets)[0] == 0
    assert "elsewhere" in probing.count_units(nothing, "record", datasets)[1]
    site.mailbox.ask(Probe(ID, task=order.task, unit="record"))
    assert main([str(site.mailbox.folder), "--data", str(site.peer), "--probe", ID]) == 0
    found = site.mailbox.finding(ID)
    assert (found.units, found.units_failure) == (units, "")
