"""What every section of a file has in common: strict types, no unknown keys, and clear errors.

`Section` is the pydantic base of all sections. `validate` turns pydantic's findings into one
`ConfigError` with the file's line, so pydantic's own words and URLs never reach a person.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from fedtrain.config.document import Document, kind_of
from fedtrain.config.units import parse_seconds_ms, parse_size
from fedtrain.core.orders import NAME
from fedtrain.errors import ConfigError

S = TypeVar("S", bound="Section")

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_NAME_RULE = "1 to 63 small letters, digits and hyphens, with a letter or digit at both ends"


class Section(BaseModel):
    """A mapping in a file. Unknown keys are refused with the nearest right one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for key in value:
            if key not in cls.model_fields:
                raise fault(f"unknown key; {nearest(key, cls.model_fields)}", key)
        return value


def fault(sentence: str, *below: str | int) -> PydanticCustomError:
    """An error to raise in a validator; `below` leads from the validated value to the wrong key."""
    return PydanticCustomError("fedtrain", "{sentence}", {"sentence": sentence, "below": list(below)})


def nearest(word: str, valid: Iterable[str]) -> str:
    """What would be valid instead of `word`: the nearest one first, where one is near."""
    names = [str(name) for name in valid]
    close = difflib.get_close_matches(word, names, n=1)
    listed = ", ".join(sorted(names))
    return f"did you mean {close[0]!r}? valid here: {listed}" if close else f"valid here: {listed}"


def validate(section: type[S], document: Document) -> S:
    """The document as `section`, or a `ConfigError` about its first wrong line."""
    try:
        return section.model_validate(document.plain)
    except ValidationError as error:
        raise _config_error(document, error.errors(include_url=False)) from error


def _config_error(document: Document, found: list[ErrorDetails]) -> ConfigError:
    def line_of(path: tuple[str | int, ...]) -> int:
        return next(
            (document.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in document.lines), 0
        )

    faults = [(_path(document, details), _sentence(details)) for details in found]
    path, sentence = min(faults, key=lambda item: line_of(item[0]))
    if len(faults) > 1:
        sentence += f" (and {len(faults) - 1} more in this file)"
    return ConfigError(sentence, file=document.place(path), key=_dotted(path))


def _path(document: Document, details: ErrorDetails) -> tuple[str | int, ...]:
    """The wrong key's path in the file: pydantic adds steps of its own for unions, which are left out."""
    steps = (*details["loc"], *details.get("ctx", {}).get("below", ()))
    path: tuple[str | int, ...] = ()
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        if (*path, step) in document.lines or (last and details["type"] == "missing"):
            path = (*path, step)
    return path


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def _sentence(details: ErrorDetails) -> str:
    kind, value = details["type"], details["input"]
    if kind == "fedtrain":
        return str(details["ctx"]["sentence"])
    if kind == "missing":
        return "this key is missing, and it has no default"
    if kind == "value_error":
        return str(details["ctx"]["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"found {_shown(value)}, but it must be a section of `key: value` lines"
    rule = details["msg"].replace("Input should", "it must").replace("String should", "it must")
    return f"found {_shown(value)}, but {rule[0].lower()}{rule[1:]}"


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)) or value is None:
        return kind_of(value)
    text = repr(value)
    return f"{kind_of(value)} {text if len(text) <= 60 else text[:57] + '...'}"


def _name(value: object) -> object:
    if isinstance(value, str) and not NAME.fullmatch(value):
        raise fault(f"found {_shown(value)}, but a name is {_NAME_RULE}")
    return value


def word_form(value: object) -> object:
    """The value, unless it is a text that is no word."""
    if isinstance(value, str) and not _WORD.fullmatch(value):
        raise fault(f"found {_shown(value)}, but it must be 1 to 64 letters, digits, `_`, `-` or `.`")
    return value


def _address(value: object) -> object:
    if isinstance(value, str):
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
            raise fault(f"found {_shown(value)}, but an address is HOST:PORT with a port from 1 to 65535")
    return value


def _all_or_names(value: object) -> object:
    if value == "all":
        return ()
    if not isinstance(value, list) or not value:
        raise fault(f"found {_shown(value)}, but it must be `all` or a list of at least one site name")
    return value


def _seconds(value: object) -> float:
    return parse_seconds_ms(value) / 1000


Name = Annotated[str, BeforeValidator(_name)]
Word = Annotated[str, BeforeValidator(word_form)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Words = Annotated[tuple[Word, ...], Field(strict=False)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
Address = Annotated[str, BeforeValidator(_address)]
AllOrNames = Annotated[Names, BeforeValidator(_all_or_names)]
"""Empty for `all`."""

Seconds = Annotated[float, BeforeValidator(_seconds)]
SizeBytes = Annotated[int, BeforeValidator(parse_size)]
