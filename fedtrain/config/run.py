"""A run: `configs/*.yaml`. `load_run` checks everything that can be known before a site is asked.

Which codecs, outer optimisers and aggregators exist is asked of their own tables in `methods`, so
a new one needs no change here. A value or section that belongs to a later version is refused, and
the answer lists what this version has: a setting is never silently ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fedtrain.config.document import read_document
from fedtrain.config.privacy import PrivacySection, known_codec, summable_codec
from fedtrain.config.section import AllOrNames, Name, Seconds, Section, Text, Word, fault, nearest, validate
from fedtrain.core import canonical
from fedtrain.core.masks import SITES_MIN
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.core.terms import LICENCE_UNSTATED

if TYPE_CHECKING:
    from fedtrain.methods.outer import Parameter

_COUNT_MAX = 999_999_999
"""An order's id holds round numbers of nine digits."""

_SYMBOLS = {"learning_rate": "eta", "momentum": "mu"}
"""Run files say what the outer optimisers, after their papers, give a letter."""

Count = Annotated[int, Field(ge=1, le=_COUNT_MAX)]
Access = Annotated[tuple[Literal["read", "write"], ...], Field(strict=False)]
Interval = Annotated[Seconds, Field(gt=0, le=31_536_000)]  # a year


def _late(value: object) -> object:
    policies = [policy.value for policy in LatePolicy]
    if not isinstance(value, str) or value not in policies:
        raise fault(f"found {value!r}; {nearest(str(value), policies)}")
    return LatePolicy(value)


def _available(value: str, names: Iterable[str]) -> str:
    names = list(names)
    if value not in names:
        raise fault(f"{value!r} is not available in this version; {nearest(value, names)}")
    return value


class TaskSection(Section):
    """What is trained. `model` and `training` belong to the task, which checks them at the site.

    `access` is what the run wants of the data beyond training on it; sites that grant it are rare.
    """

    name: Word
    model: dict[str, Any] = Field(default_factory=dict)
    data: Word = ""  # a task without data names none
    training: dict[str, Any] = Field(default_factory=dict)
    access: Access = ()


class SitesSection(Section):
    """Who may take part (`all` enrolled sites, or names), and the fewest that a round starts with."""

    include: AllOrNames = ()
    minimum: Count = 2

    @model_validator(mode="after")
    def _names_fit(self) -> SitesSection:
        for i, name in enumerate(self.include):
            if name in self.include[:i]:
                raise fault(f"the site {name!r} is named twice", "include", i)
        if self.include and self.minimum > len(self.include):
            raise fault(f"found {self.minimum}, but `include` names {len(self.include)} sites", "minimum")
        return self


class RoundsSection(Section):
    """How many rounds, how long each, and when one may close. `quorum` defaults to `sites.minimum`."""

    count: Count
    steps: Count
    quorum: Count | None = None
    quorum_share: float = Field(default=0.5, gt=0, le=1)
    deadline_s: Interval = 300.0
    patience_s: Interval = 60.0
    heartbeat_s: Interval = 5.0
    late: Annotated[LatePolicy, BeforeValidator(_late)] = LatePolicy.NEXT_ROUND

    @model_validator(mode="after")
    def _times_fit(self) -> RoundsSection:
        for shorter, longer in (("patience_s", "deadline_s"), ("heartbeat_s", "patience_s")):
            value, bound = getattr(self, shorter), getattr(self, longer)
            if value >= bound:
                raise fault(f"found {value:g} s, but it must be below {longer} ({bound:g} s)", shorter)
        return self


class CodecSection(Section):
    """How updates travel up and model deltas travel down. int8 cost nothing measurable in loss."""

    up: str = "int8"
    down: str = "int8"

    @field_validator("up", "down")
    @classmethod
    def _exists(cls, value: str) -> str:
        return known_codec(value)


class OuterSection(Section):
    """How the coordinator steps along the combined update: a row of the outer optimisers and its settings.

    The published settings of `nesterov` belong to large models that start from a pre-trained or
    long-warmed state; small models from random weights do better with `average`, at least for
    some `warmup_rounds`.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    warmup_rounds: int = Field(default=0, ge=0, le=_COUNT_MAX)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return value
        settings = _outer_settings(value["name"])
        for key, found in value.items():
            if key in cls.model_fields:
                continue
            if key not in settings:
                raise fault(f"unknown key; {nearest(key, [*settings, *cls.model_fields])}", key)
            low, high = settings[key].low, settings[key].high
            if isinstance(found, bool) or not isinstance(found, (int, float)) or not low <= found < high:
                raise fault(f"found {found!r}, but it must be a number from {low:g} to below {high:g}", key)
        return value

    def params(self) -> dict[str, float]:
        """All settings of the optimiser, under its own names for them."""
        from fedtrain.methods.outer import outer

        extra = self.model_extra or {}
        return outer(self.name).settings({_SYMBOLS.get(key, key): float(v) for key, v in extra.items()})


def _outer_settings(name: str) -> dict[str, Parameter]:
    """The settings of an outer optimiser by the names that a run file uses."""
    from fedtrain.methods.outer import OUTER

    if name not in OUTER:
        raise fault(f"{name!r} is not available in this version; {nearest(name, OUTER)}", "name")
    words = {symbol: word for word, symbol in _SYMBOLS.items()}
    return {words.get(symbol, symbol): parameter for symbol, parameter in OUTER[name].parameters.items()}


class AggregateSection(Section):
    """How updates are combined; one with an L2 norm above `norm_max` is scaled down to it."""

    name: str = "mean"
    norm_max: float | None = Field(default=None, gt=0)

    @field_validator("name")
    @classmethod
    def _exists(cls, value: str) -> str:
        from fedtrain.methods.aggregators import AGGREGATORS

        return _available(value, AGGREGATORS)


class EvaluateSection(Section):
    """Measure the public model on held-out data every so many rounds; 0 for only at the end."""

    every: int = Field(default=1, ge=0, le=_COUNT_MAX)


class RunConfig(Section):
    """A whole run, as written in its file.

    `use` is what the model is for, and `licence` what it is going to be put under: sites' contracts ask.
    """

    run: Name
    use: Literal["economic", "non-economic"] = "non-economic"
    licence: Text = LICENCE_UNSTATED
    seed: int = Field(default=1, ge=0, le=2**63 - 1)
    task: TaskSection
    sites: SitesSection = SitesSection()
    rounds: RoundsSection
    outer: OuterSection = OuterSection(name="average")
    codec: CodecSection = CodecSection()
    aggregate: AggregateSection = AggregateSection()
    privacy: PrivacySection = PrivacySection()
    topology: str = "star"
    evaluate: EvaluateSection = EvaluateSection()

    @field_validator("topology")
    @classmethod
    def _topology(cls, value: str) -> str:
        return _available(value, ["star"])

    @model_validator(mode="after")
    def _quorum_fits(self) -> RunConfig:
        names = self.sites.include
        if names and self.quorum > len(names):
            raise fault(
                f"found {self.quorum}, but `sites.include` names {len(names)} sites, so no round could close",
                "rounds",
                "quorum",
            )
        return self

    @model_validator(mode="after")
    def _privacy_fits(self) -> RunConfig:
        """Summing under masks and judging single updates exclude each other; never both are claimed."""
        self.privacy.terms(self.rounds.count, self.rounds.steps)
        if self.privacy.masked is None:
            return self
        summable_codec(self.codec_up)
        if self.aggregate.name != "mean":
            raise fault("under masks (privacy.masked) only the mean can be had: `mean`", "aggregate", "name")
        if self.sites.minimum < SITES_MIN:
            raise fault(
                f"found {self.sites.minimum}, but a sum under masks needs {SITES_MIN} sites: that of two"
                " tells each the other's part",
                "sites",
                "minimum",
            )
        return self

    @property
    def codec_up(self) -> str:
        """The uplink's codec, with its parameters."""
        return self.privacy.codec(self.codec.up, self.rounds.count, self.sites.minimum)

    @property
    def quorum(self) -> int:
        """Fewest contributions that close a round."""
        return self.rounds.quorum if self.rounds.quorum is not None else self.sites.minimum

    def _task(self) -> dict[str, Any]:
        """The task with the run's terms. What is not asked for is not mentioned, so that sites of protocol
        1.0 meet no key that they do not know.
        """
        task = self.task.model_dump()
        if not self.task.access:
            del task["access"]
        terms: dict[str, Any] = {}
        if self.use != "non-economic":
            terms["use"] = self.use
        if self.licence != LICENCE_UNSTATED:
            terms["licence"] = self.licence
        if privacy := self.privacy.plain(self.rounds.count, self.rounds.steps):
            terms["privacy"] = privacy
        return {**task, "terms": terms} if terms else task

    def spec(self) -> RunSpec:
        """What the coordinator is sent. The task section becomes canonical JSON: opaque to decisions."""
        rounds = self.rounds
        return RunSpec(
            run=self.run,
            seed=self.seed,
            task=canonical.encode(self._task()).decode(),
            sites=tuple(sorted(self.sites.include)),
            minimum=self.sites.minimum,
            rounds=rounds.count,
            steps=rounds.steps,
            quorum=self.quorum,
            quorum_share=rounds.quorum_share,
            deadline_ms=round(rounds.deadline_s * 1000),
            patience_ms=round(rounds.patience_s * 1000),
            heartbeat_ms=round(rounds.heartbeat_s * 1000),
            late=rounds.late,
            outer=self.outer.name,
            outer_params=self.outer.params(),
            outer_warmup_rounds=self.outer.warmup_rounds,
            codec_up=self.codec_up,
            codec_down=self.codec.down,
            aggregator=self.aggregate.name,
            norm_max=self.aggregate.norm_max,
            evaluate_every=self.evaluate.every,
        )


def load_run(path: str | Path) -> RunConfig:
    """The run in a YAML file; `ConfigError` with file, line and key if it is not one."""
    return validate(RunConfig, read_document(path))
