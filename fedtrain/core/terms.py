"""What an order's task section asks of a site, read as strictly as something hostile has to be.

Beside `name`, `model`, `data` and `training` the section may hold `access`, a list of what the run wants
of the data beyond training on it, and `terms`: `use`, `licence` and `privacy`. What is absent is the most
modest: no access, no economic use, no licence stated, no privacy mechanism. What is there and cannot be
understood is a fault: nobody agrees to words that they do not know. `core.privacy` reads the last part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedtrain.core.privacy import MaskTerms, Misfit, PrivacyTerms, RecordTerms, SiteTerms, read_privacy

USES = ("economic", "non-economic")
LICENCE_UNSTATED = "unstated"

_TERMS = ("use", "licence", "privacy")
_CHARACTERS_MAX = 80


@dataclass(frozen=True)
class Asked:
    """What the task section says.

    Attributes:
        task: the task's name; `dataset`: the data set's, "" for none.
        access: rights on the data set beyond training.
        model, training: the task's settings.
        privacy: the mechanisms that the run promises.
        fault: why the section cannot be judged, "" if it can. The rest then has its defaults.
    """

    task: str = ""
    dataset: str = ""
    access: tuple[str, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    use: str = "non-economic"
    licence: str = LICENCE_UNSTATED
    training: Mapping[str, Any] = field(default_factory=dict)
    privacy: PrivacyTerms = field(default_factory=PrivacyTerms)
    fault: str = ""

    @property
    def record(self) -> RecordTerms | None:
        """Privacy of records."""
        return self.privacy.record

    @property
    def site(self) -> SiteTerms | None:
        """Privacy of whole sites."""
        return self.privacy.site

    @property
    def masked(self) -> MaskTerms | None:
        """Sums under masks."""
        return self.privacy.masked

    @property
    def batch_size(self) -> int:
        """Units that one step takes; 0 where the task does not say."""
        found = self.training.get("batch_size")
        return found if type(found) is int and found > 0 else 0


def read_asked(task: str) -> Asked:
    """The section of an order; never raises."""
    try:
        return _asked(_decoder.decode(task))
    except Misfit as misfit:
        return Asked(fault=str(misfit))
    except (ValueError, RecursionError):
        return Asked(fault="it is not JSON, or nested too deep")


def shown(text: str) -> str:
    """A foreign word, short and in ASCII: letters that only look like others show as their numbers."""
    return ascii(text[: _CHARACTERS_MAX + 1])[1:-1][:_CHARACTERS_MAX]


def _asked(plain: Any) -> Asked:
    section = _mapping(plain, "it")
    terms = _mapping(section.get("terms", {}), "terms", _TERMS)
    use = _text(terms.get("use", "non-economic"), "terms.use")
    if use not in USES:
        raise Misfit(f"terms.use is {shown(use)}, which is neither {' nor '.join(USES)}")
    access = section.get("access", [])
    if not isinstance(access, list):
        raise Misfit("access is no list")
    return Asked(
        task=_text(section.get("name"), "name"),
        dataset=_text(section.get("data", ""), "data"),
        access=tuple(_text(right, "access") for right in access),
        model=_mapping(section.get("model", {}), "model"),
        use=use,
        licence=_text(terms.get("licence", LICENCE_UNSTATED), "terms.licence"),
        training=_mapping(section.get("training", {}), "training"),
        privacy=read_privacy(terms.get("privacy", {})),
    )


def _mapping(value: Any, place: str, known: tuple[str, ...] = ()) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Misfit(f"{place} is no section of keys and values")
    for key in value:
        if known and key not in known:
            raise Misfit(f"{place}.{shown(key)} is a word that this version does not know")
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise Misfit(f"{place} is no text")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise Misfit(f"the key {shown(twice)} is there twice")
    return found


def _no_constant(word: str) -> float:
    raise Misfit(f"{word} is no number")


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Misfit(f"{shown(text)} is too large a number")
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_number)
