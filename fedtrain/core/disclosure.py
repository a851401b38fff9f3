"""What a run's privacy means, in words and numbers that never come without their unit.

Made from the run's promise and from the accounts that its sites have signed; `run show` and the model card
tell the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedtrain.core.accounts import read
from fedtrain.core.charges import GAUSSIAN, POISSON_GAUSSIAN, Claim, Mechanism
from fedtrain.core.masks import Signed
from fedtrain.core.privacy import PrivacyTerms, plain
from fedtrain.core.terms import read_asked

SIDE_CHANNELS = (
    "evaluation losses on held-out data are without noise (training with noise tells no training loss)",
    "counts of tokens or examples, batch sizes and steps are without noise",
    "wall times, sizes of messages, and whether a site took part",
)
"""What no mechanism here hides."""

_NO_NOISE = "no noise is promised: updates and models may give records of the data away"


def disclosure(task: str, charges: Mapping[str, Signed]) -> dict[str, Any]:
    """The promise, each site's spending, what is assumed, and what is not covered.

    Args:
        task: the run's task section.
        charges: site -> its newest signed account.
    """
    terms = read_asked(task).privacy
    spent = []
    for site, signed in sorted(charges.items()):
        account = read(signed)
        spent += [_line(site, claim, account.order, account.sequence) for claim in account.claims]
    return {
        "promised": plain(terms),
        "spent": spent,
        "assumptions": list(assumptions(terms)),
        "side_channels": list(SIDE_CHANNELS) if terms != PrivacyTerms() else [],
    }


def assumptions(terms: PrivacyTerms) -> tuple[str, ...]:
    """On what the promise rests: whose data is where, and who is trusted for what."""
    found = []
    if terms.record is not None:
        unit = "record" if terms.record.unit == "record" else "group of records"
        found += [
            f"each {unit} lies at one site only: epsilons of different sites are not added up",
            f"each site adds the noise for its own {unit}s before anything leaves it: nobody else is trusted",
            "each step draws units by Poisson sampling, from randomness that nobody can know or repeat",
        ]
    if terms.site is not None:
        found.append("a site's epsilon is for its whole part, against a run without it")
        found.append(
            "each site adds all its noise itself: nobody else is trusted"
            if terms.site.noise == "site"
            else "noise is added in shares: a site trusts the others to add theirs, and a colluding site "
            f"takes its share away; up to {terms.site.dropouts_max} missing shares are provided for"
        )
    if terms.masked is not None:
        found.append(
            "under masks the coordinator learns the sum only, unless it colludes with as many sites as a "
            "secret has shares that open it; a sum by itself is no protection of records"
        )
    if terms.record is None and terms.site is None:
        found.append(_NO_NOISE)
    return tuple(found)


def _line(site: str, claim: Claim, order: str, row: int) -> dict[str, Any]:
    return {
        "site": site,
        "unit": claim.unit,
        "epsilon_pld": claim.epsilon_pld,
        "epsilon_rdp": claim.epsilon_rdp,
        "delta": claim.delta,
        "accountants": f"{claim.pld_by}, rdp" if claim.pld_by != "rdp" else "rdp",
        "note": claim.note,
        "mechanism": "; ".join(
            f"{_words(mechanism)}, {count} times" for mechanism, count in claim.mechanisms
        ),
        "order": order,
        "ledger_row": row,
    }


def _words(mechanism: Mechanism) -> str:
    noise = f"noise {mechanism.noise_multiplier:.4g} x clip {mechanism.clip:.4g}"
    if mechanism.kind == POISSON_GAUSSIAN:
        rate = f"rate {mechanism.sampling_rate:.4g}, {mechanism.steps} steps"
        return f"Gaussian, Poisson sampling ({rate}), {noise}"
    if mechanism.kind == GAUSSIAN:
        return f"Gaussian, no sampling, {noise}"
    shares = mechanism.detail.get("sites", 0)
    return f"discrete Gaussian in {shares:.0f} shares, no sampling, {noise}"
