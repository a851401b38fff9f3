"""Strict reading of settings that people write: each key is asked for, and none is left over."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedtrain.errors import ConfigError


def nearest(word: str, valid: Collection[str]) -> str:
    """ "; did you mean 'x'?" for a slip of the pen, else the list of what is valid."""
    close = difflib.get_close_matches(word, valid, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(sorted(valid)) or 'none'}"


class Section:
    """One mapping of a settings file, read key by key.

    Args:
        values: the mapping; anything else is a `ConfigError`.
        key: its dotted path, for messages.
        file: the file it stands in, for messages; "" where it came in an order.
    """

    def __init__(self, values: object, key: str, file: str = "") -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"expected a mapping, found {type(values).__name__}", file=file, key=key)
        self._values: Mapping[str, Any] = values
        self._key = key
        self._file = file
        self._known: set[str] = set()

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = 1 << 31) -> int:
        """An integer of [low, high]; required where there is no default."""
        value = self._take(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self._error(name, f"{value!r} is not a whole number from {low} to {high}")
        return value

    def number(
        self, name: str, default: float | None = None, *, low: float = 0.0, high: float = 1e9
    ) -> float:
        """A finite number of [low, high]; required where there is no default."""
        value = self._take(name, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self._error(name, f"{value!r} is not a number from {low:g} to {high:g}")
        return float(value)

    def choice(self, name: str, default: str, valid: Collection[str]) -> str:
        """One of a few words."""
        value = self._take(name, default)
        if value not in valid:
            raise self._error(name, f"{value!r} is not a choice here{nearest(str(value), valid)}")
        return str(value)

    def text(self, name: str, default: str | None = None) -> str:
        """A string; required where there is no default."""
        value = self._take(name, default)
        if not isinstance(value, str):
            raise self._error(name, f"{value!r} is not a text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise self._error(name, f"{value!r} is neither true nor false")
        return value

    def texts(self, name: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of strings; a single string is a list of one."""
        value = self._take(name, default)
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise self._error(name, f"{value!r} is neither a text nor a list of texts")
        return tuple(items)

    def numbers(self, name: str, default: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """A list of finite numbers; a single number is a list of one."""
        value = self._take(name, default)
        items = value if isinstance(value, (list, tuple)) else (value,)
        if not all(type(item) in (int, float) and abs(item) <= 1e12 for item in items):
            raise self._error(name, f"{value!r} is neither a number nor a list of numbers up to 1e12")
        return tuple(float(item) for item in items)

    def section(self, name: str) -> Section:
        """A nested mapping, empty where it is absent."""
        return Section(self._take(name, {}), f"{self._key}.{name}", self._file)

    def end(self) -> None:
        """`ConfigError` for the first key that nobody asked for, with the nearest valid one."""
        for name in self._values:
            if name not in self._known:
                raise self._error(str(name), f"unknown key{nearest(str(name), self._known)}")

    def _take(self, name: str, default: Any) -> Any:
        self._known.add(name)
        value = self._values.get(name)
        value = default if value is None else value
        if value is None:
            raise self._error(name, "is required")
        return value

    def _error(self, name: str, message: str) -> ConfigError:
        return ConfigError(message, file=self._file, key=f"{self._key}.{name}")


@dataclass(frozen=True)
class TaskSpec:
    """The task section of a run, as each site receives it.

    Attributes:
        name: which task; `data`: which data set of the site, "" for none.
        model, training: the task's own settings, to be read to the `end` by the task.
        terms: what the run promises; the agent has agreed to it, and the session keeps it.
    """

    name: str
    data: str
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    terms: Mapping[str, Any] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        """Whether the run promises noise in every training step, so models have to be fit for it."""
        privacy = self.terms.get("privacy")
        return isinstance(privacy, Mapping) and privacy.get("record") is not None

    @classmethod
    def from_json(cls, text: str) -> TaskSpec:
        """From an order's `task` document; `ConfigError` names the key that is wrong."""
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the order's task is not valid JSON ({error})", key="task") from error
        return cls.from_plain(plain)

    @classmethod
    def from_plain(cls, plain: object, file: str = "") -> TaskSpec:
        """From the parsed `task` section of an order or of a run's file."""
        section = Section(plain, "task", file)
        name, data = section.text("name"), section.text("data", "")
        for part in ("model", "training", "terms"):
            section.section(part)
        section.texts("access", ())  # was for the agent, which has agreed to it
        section.end()
        assert isinstance(plain, Mapping)
        return cls(name, data, plain.get("model", {}), plain.get("training", {}), plain.get("terms", {}))

    def model_section(self) -> Section:
        """The model's settings, to be read key by key."""
        return Section(self.model, "task.model")

    def training_section(self) -> Section:
        """The training's settings, to be read key by key."""
        return Section(self.training, "task.training")
