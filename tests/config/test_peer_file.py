"""What a site's file may hold, and which of its clauses are enforced."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtrain.config import load_peer, peer_template
from fedtrain.core.contract import Approval, Budget, Contract, Hours, Models, Require, Rights
from fedtrain.errors import ConfigError

PEER = """\
site: jsc
coordinator: coordinator.example.org:7443
proxy: null                      # host:port of an HTTP CONNECT proxy, if any
state: state                     # certificate, journal, ledgers, blobs
mailbox: mailbox                 # shared with the trainer
trainer: {launch: process}       # process | external | slurm | pbs; devices: auto
datasets:
  corpus:
    path: /data/corpus/*.txt
    format: text
    licence: CC-BY-4.0
    rights: {discoverable: true, execute: [causal_lm], read: false, write: false}
    privacy: {unit: record, epsilon_max: 8.0, delta: 1.0e-5}
contract:
  runs: ["library-*"]
  tasks: [causal_lm]
  cohort_min: 2
  require: {masked: false}
  hours: "00:00-24:00 Europe/Berlin"
  upload_max_per_day: 10GB
  gpu_hours_max: 500
  use: non-economic
  approval: automatic
energy: {pue: 1.07, price_eur_per_kwh: 0.20, co2_g_per_kwh: 380}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "peer.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_documented_site_loads(tmp_path: Path) -> None:
    """The documented site file loads, with its folders resolved against its own."""
    peer = load_peer(written(tmp_path, PEER))
    assert peer.site == "jsc" and peer.coordinator == "coordinator.example.org:7443" and peer.proxy is None
    assert peer.state == str(tmp_path / "state") and peer.mailbox == str(tmp_path / "mailbox")
    assert peer.datasets["corpus"].path == ("/data/corpus/*.txt",)
    assert peer.datasets["corpus"].rights.execute == ("causal_lm",)
    assert peer.contract.runs == ("library-*",) and peer.contract.upload_max_per_day == 10**10
    assert peer.energy.pue == 1.07


def test_contract_reaches_the_agent_whole(tmp_path: Path) -> None:
    """The agent judges by exactly the runs, tasks, cohort and rights that the file names."""
    rights = Rights(discoverable=True, execute=("causal_lm",), read=False, write=False)
    expected = Contract(
        ("library-*",),
        ("causal_lm",),
        2,
        {"corpus": rights},
        hours=Hours(0, 1440, "Europe/Berlin"),
        upload_max_per_day_bytes=10**10,
        gpu_hours_max=500.0,
        budgets={"corpus": Budget("record", 8.0, 1e-5)},
    )
    assert load_peer(written(tmp_path, PEER)).terms() == expected


def test_the_ledger_lies_where_the_file_says_and_never_with_the_trainer(tmp_path: Path) -> None:
    """It is in the state folder unless agents of several consortia share one; not in the mailbox."""
    assert load_peer(written(tmp_path, PEER)).ledger == str(tmp_path / "state" / "ledger.sqlite")
    shared = PEER.replace("state: state", "ledger: ../site.sqlite\nstate: state")
    assert load_peer(written(tmp_path, shared)).ledger == str(tmp_path.parent / "site.sqlite")
    open_to_all = PEER.replace("state: state", "ledger: mailbox/site.sqlite\nstate: state")
    with pytest.raises(ConfigError) as caught:
        load_peer(written(tmp_path, open_to_all))
    assert caught.value.key == "ledger" and "mailbox" in str(caught.value)


EVERY_CLAUSE = """\
  models: {size_max: 64MiB, layouts: [LAYOUT], limits: {layers: 12, width: 0.5}}
  organisations_min: 3
  upload_max_per_round: 2MB
  licences: [Apache-2.0, "CC-*"]
energy:""".replace("LAYOUT", "ab" * 32)


def test_every_clause_reaches_the_agent(tmp_path: Path) -> None:
    """Each clause that a person can write is one that the agent judges by, in the core's units."""
    text = PEER.replace("energy:", EVERY_CLAUSE)
    for old, new in (
        ("{masked: false}", "{masked: true, epsilon_max: 3, unit: group}"),
        ("approval: automatic", "partners: {uka: KEY}\n  approval: automatic".replace("KEY", "cd" * 32)),
        ("00:00-24:00", "20:15-06:00"),
        ("use: non-economic", "use: economic"),
        ("approval: automatic", "approval: manual"),
        ("discoverable: true", "discoverable: [causal_lm]"),
        ("read: false", "read: [a, b]"),
        ("write: false", "write: true"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    contract = load_peer(written(tmp_path, text)).terms()
    assert contract.datasets["corpus"] == Rights(
        execute=("causal_lm",), write=True, discoverable_to=("causal_lm",), readable_by=("a", "b")
    )
    assert contract.models == Models(64 << 20, ("ab" * 32,), {"layers": 12.0, "width": 0.5})
    assert (contract.organisations_min, contract.upload_max_per_round_bytes) == (3, 2_000_000)
    assert contract.licences == ("Apache-2.0", "CC-*") and contract.use == "economic"
    assert contract.hours == Hours(20 * 60 + 15, 6 * 60, "Europe/Berlin")
    assert contract.partners == {"uka": "cd" * 32}
    assert contract.require == Require(True, 3.0, "group") and contract.approval is Approval.MANUAL


def test_template_is_a_valid_site_that_allows_nothing(tmp_path: Path) -> None:
    """The file that `join` leaves is valid as it stands, names the site, and allows no run."""
    peer = load_peer(written(tmp_path, peer_template("north", "10.0.0.1:7443")))
    assert (peer.site, peer.coordinator, peer.proxy) == ("north", "10.0.0.1:7443", None)
    assert peer.contract.runs == () and peer.contract.tasks == () and not peer.datasets


def test_template_with_its_examples_uncommented_is_valid(tmp_path: Path) -> None:
    """The commented examples of the template are valid once the comment signs are taken away."""
    text = peer_template("north", "10.0.0.1:7443", "proxy.example.org:3128")
    text = (
        text.replace("datasets: {}\n", "datasets:\n")
        .replace("energy: {}\n", "energy:\n")
        .replace("\n#  ", "\n  ")
    )
    peer = load_peer(written(tmp_path, text))
    assert peer.datasets["corpus"].rights.execute == ("causal_lm",) and peer.energy.pue == 1.4
    assert peer.proxy == "proxy.example.org:3128"


WRONG = [
    ("site: jsc", "sight: jsc", 1, "sight", ["'site'"]),
    ("site: jsc", 'site: "a\\e[31mb"', 1, "site", ["small letters"]),
    (
        "coordinator: coordinator.example.org:7443",
        "coordinator: example.org",
        2,
        "coordinator",
        ["HOST:PORT"],
    ),
    (
        "coordinator: coordinator.example.org:7443",
        "coordinator: example.org:99999",
        2,
        "coordinator",
        ["65535"],
    ),
    ("proxy: null", "proxy: 3128", 3, "proxy", ["3128"]),
    ("mailbox: mailbox ", "mailbox: ./state ", 5, "mailbox", ["apart"]),
    ("mailbox: mailbox ", "mailbox: state/mailbox ", 5, "mailbox", ["apart"]),
    ("launch: process", "launch: slurm", 6, "trainer.launch", ["not available in this version", "external"]),
    ("launch: process", "launch: proces", 6, "trainer.launch", ["'proces'", "'process'"]),
    ("format: text", "formt: text", 10, "datasets.corpus.formt", ["'format'"]),
    ("    path: /data/corpus/*.txt\n", "", 8, "datasets.corpus.path", ["missing"]),
    ("path: /data/corpus/*.txt", "path: [1]", 9, "datasets.corpus.path[0]", ["1", "string"]),
    ("read: false", "read: sometimes", 12, "datasets.corpus.rights.read", ["'sometimes'"]),
    ("epsilon_max: 8.0", "epsilon_max: 0", 13, "datasets.corpus.privacy.epsilon_max", ["greater than 0"]),
    ("delta: 1.0e-5", "delta: 1.0", 13, "datasets.corpus.privacy.delta", ["0.01"]),
    ("cohort_min: 2", "cohort_min: none", 17, "contract.cohort_min", ["'none'", "integer"]),
    ("cohort_min: 2", "cohort_min: 0", 17, "contract.cohort_min", ["0"]),
    ("masked: false", "masked: maybe", 18, "contract.require.masked", ["'maybe'"]),
    ("masked: false", "unit: person", 18, "contract.require.unit", ["'person'", "group"]),
    ("00:00-24:00", "08:00-08:00", 19, "contract.hours", ["never"]),
    ("00:00-24:00", "08:00-24:30", 19, "contract.hours", ["HH:MM-HH:MM"]),
    ("discoverable: true", "discoverable: [a b]", 12, "datasets.corpus.rights.discoverable", ["letters"]),
    ("cohort_min: 2", "models: {layouts: [abc]}", 17, "contract.models.layouts[0]", ["digest"]),
    ("cohort_min: 2", "models: {limits: {layers: many}}", 17, "contract.models.limits.layers", ["'many'"]),
    ("Europe/Berlin", "Europe/Bonn", 19, "contract.hours", ["Europe/Bonn", "time zone"]),
    ("00:00-24:00", "0-24", 19, "contract.hours", ["HH:MM-HH:MM"]),
    (
        "upload_max_per_day: 10GB",
        "upload_max_per_day: 10",
        20,
        "contract.upload_max_per_day",
        ["unit", "10GB"],
    ),
    (
        "upload_max_per_day: 10GB",
        "upload_max_per_day: 10Gb",
        20,
        "contract.upload_max_per_day",
        ["'Gb'", "GiB"],
    ),
    ("gpu_hours_max: 500", "gpu_hours_max: -1", 21, "contract.gpu_hours_max", ["-1"]),
    ("use: non-economic", "use: economics", 22, "contract.use", ["'economics'", "non-economic"]),
    ("approval: automatic", "approval: never", 23, "contract.approval", ["'never'", "manual"]),
    ("pue: 1.07", "pue: 0.5", 24, "energy.pue", ["0.5", "1"]),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "words"), WRONG, ids=[f"{w[1]!r}" for w in WRONG])
def test_mistake_is_named(tmp_path: Path, old: str, new: str, line: int, key: str, words: list[str]) -> None:
    """A mistake is answered with the file's line, the key, what was found and what is valid."""
    assert old in PEER
    with pytest.raises(ConfigError) as caught:
        load_peer(written(tmp_path, PEER.replace(old, new, 1)))
    error = caught.value
    assert error.file == f"{tmp_path / 'peer.yaml'}:{line}"
    assert error.key == key
    for word in words:
        assert word in str(error), f"{word!r} is not in {error}"
    assert "\x1b" not in str(error)
