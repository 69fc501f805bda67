"""Error messages about parameters, in the words of a pipeline file instead of the validator's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import did_you_mean
from pipeline.spec.yaml_reader import KeyPath
from pipeline.stage import UnsupportedKeys, nested_sections

_SECTION = "a section of `key: value` lines"
_EXPECTED = {
    **dict.fromkeys(("int_type", "int_from_float"), "a whole number"),
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), _SECTION),
}
_LIMITS = {
    "greater_than": "must be over {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be under {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "multiple_of": "must be a multiple of {multiple_of:g}",
    "too_short": "needs {min_length} or more items",
    "too_long": "takes {max_length} or fewer items",
    "string_too_short": "needs {min_length} or more characters",
    "string_too_long": "takes {max_length} or fewer characters",
    "string_pattern_mismatch": "must match {pattern}",
}


@dataclass(frozen=True)
class ValidationIssue:
    """One problem in a stage's parameters."""

    path: KeyPath
    message: str
    remedy: str = ""


def validation_issues(
    error: ValidationError, model: type[BaseModel], data: Any, edges: Iterable[str]
) -> list[ValidationIssue]:
    """Return the issues of a failed validation, one per key.

    Args:
        error: the validator's error.
        model: the class that the data was validated against.
        data: the plain data.
        edges: the stage's inputs, which are keys next to its parameters in the file.
    """
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_key_path(detail, data), []).append(detail)
    found = []
    for path, details in by_path.items():
        inside = any(other[: len(path)] == path for other in by_path if other != path)
        if not (inside and details[0]["type"] in _EXPECTED):  # another branch of a union fits
            found.append(_issue(path, details, model, edges if len(path) == 1 else ()))
    return found


def describe_value(value: Any) -> str:
    """Describe a value in the words of a pipeline file."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:39] + '…'!r}"
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    return repr(value)


def type_remedy(expected: Iterable[str], value: Any) -> str:
    """Return a remedy for a value of another type, or empty text."""
    if "text" in expected and isinstance(value, bool | int | float):
        return "put it in quotes"
    yes_no = isinstance(value, str) and value.lower() in ("yes", "no", "on", "off")
    return "write true or false" if yes_no and "true or false" in expected else ""


def _issue(
    path: KeyPath, details: list[ErrorDetails], model: type[BaseModel], edges: Iterable[str]
) -> ValidationIssue:
    """Join the findings at one key: the branches of a union are alternatives."""
    kind, context = details[0]["type"], details[0].get("ctx", {})
    if kind in ("missing", "union_tag_not_found"):
        return ValidationIssue(path, "missing", f"add `{path[-1]}: …`")
    if kind == "extra_forbidden":
        return ValidationIssue(path, *_unknown_key(str(path[-1]), path[:-1], model, edges))
    value = context.get("tag", details[0]["input"])
    expected = list(dict.fromkeys(text for text in map(_expected, details) if text))
    if expected:
        message = f"expected {' or '.join(expected)}, got {describe_value(value)}"
        return ValidationIssue(path, message, type_remedy(expected, value))
    if kind in _LIMITS:
        actual = describe_value(context.get("actual_length", value))
        return ValidationIssue(path, f"{_LIMITS[kind].format(**context)}, got {actual}")
    return ValidationIssue(path, str(context.get("error") or details[0]["msg"]))


def _unknown_key(
    name: str, section_path: KeyPath, model: type[BaseModel], edges: Iterable[str]
) -> tuple[str, str]:
    """Return message and remedy for a key that does not exist, or not in this branch of a union."""
    sections = {model}
    for part in section_path:
        fields = [s.model_fields[part] for s in sections if part in s.model_fields]
        if fields:  # an index of a list or a key of a mapping has no class
            sections = {inner for info in fields for inner in nested_sections(info.annotation)}
    for section in sections:
        if new_name := getattr(section, "renamed", {}).get(name):
            return f"renamed to {new_name!r}", f"write `{new_name}: …`"
    known = {*edges, *(field for section in sections for field in section.model_fields)}
    if name in known:
        return "cannot be combined with the other values here", ""
    words: UnsupportedKeys = getattr(model, "unsupported_keys", {})
    word = words.get(name.lower(), name)
    if not isinstance(word, str):
        return word
    found = [path for path in _dotted_keys(model) if f".{path}".endswith(f".{word}")]
    places = " or ".join(dict.fromkeys(found))
    return "unknown key", f"its name here is {places}" if found else did_you_mean(name, known)


def _dotted_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a section and of those inside it, as in an override."""
    for name, info in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in nested_sections(info.annotation):
            yield from _dotted_keys(inner, f"{prefix}{name}.")


def _expected(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "union_tag_invalid":
        return str(context["expected_tags"]).replace(", ", " or ")
    return _EXPECTED.get(kind, "")


def _key_path(detail: ErrorDetails, data: Any) -> KeyPath:
    """Return the key in the file: the validator's location without the names of union branches."""
    path: list[str | int] = []
    *inner, last = detail["loc"] or ("",)
    for part in inner:
        if _holds(data, part):
            path.append(part)
            data = data[part]
    if _holds(data, last) or detail["type"] == "missing":
        path.append(last)
    if detail["type"].startswith("union_tag"):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, Mapping):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)
