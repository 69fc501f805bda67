"""What is wrong with a value, in plain words: not in those of the validator or of Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """One thing that is wrong in a stage's parameters."""

    path: KeyPath
    message: str
    remedy: str = ""


def validation_issues(
    error: ValidationError, model: type[BaseModel], data: Any, edges: Iterable[str]
) -> list[ValidationIssue]:
    """All that a validation found, one line a key.

    Args:
        error: what the validator raised.
        model: what it validated against.
        data: the plain data that it was given.
        edges: the stage's inputs, which stand beside its parameters in the file.
    """
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_path(detail, data), []).append(detail)
    found = []
    for path, details in by_path.items():
        inside = any(other[: len(path)] == path for other in by_path if other != path)
        if not (inside and details[0]["type"] in _EXPECTED):  # another branch of a union fits
            found.append(_issue(path, details, model, edges if len(path) == 1 else ()))
    return found


def describe_value(value: Any) -> str:
    """A value as a person would call it."""
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
    """What to do about a value of another type, if it is plain."""
    if "text" in expected and isinstance(value, bool | int | float):
        return "put it in quotes"
    if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
        return "write true or false" if "true or false" in expected else ""
    return ""


def _issue(
    path: KeyPath, details: list[ErrorDetails], model: type[BaseModel], edges: Iterable[str]
) -> ValidationIssue:
    """Join the findings at one key: the branches of a union are alternatives."""
    first = details[0]
    kind, value = first["type"], first["input"]
    if kind in ("missing", "union_tag_not_found"):
        return ValidationIssue(path, "missing", f"add `{path[-1]}: …`")
    if kind == "extra_forbidden":
        name, sections = str(path[-1]), _sections_at(model, path[:-1])
        for section in sections:
            if new_name := getattr(section, "renamed", {}).get(name):
                return ValidationIssue(path, f"renamed to {new_name!r}", f"write `{new_name}: …`")
        known = {*edges, *(field for section in sections for field in section.model_fields)}
        if name in known:
            return ValidationIssue(path, "cannot be combined with the other values here")
        unsupported: UnsupportedKeys = getattr(model, "unsupported_keys", {})
        unknown = ("unknown key", did_you_mean(name, known))
        return ValidationIssue(path, *unsupported.get(name.lower(), unknown))
    context = first.get("ctx", {})
    value = context.get("tag", value)
    expected = list(dict.fromkeys(word for word in map(_expected, details) if word))
    if expected:
        return ValidationIssue(
            path,
            f"expected {' or '.join(expected)}, got {describe_value(value)}",
            type_remedy(expected, value),
        )
    if kind in _LIMITS:
        actual = context.get("actual_length", value)
        return ValidationIssue(
            path, f"{_LIMITS[kind].format(**context)}, got {describe_value(actual)}"
        )
    return ValidationIssue(path, str(context.get("error") or first["msg"]))


def _expected(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "union_tag_invalid":
        return str(context["expected_tags"]).replace(", ", " or ")
    return _EXPECTED.get(kind, "")


def _path(detail: ErrorDetails, data: Any) -> KeyPath:
    """The key in the file: the validator's location without the names of union branches."""
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


def _sections_at(model: type[BaseModel], path: KeyPath) -> set[type[BaseModel]]:
    """Return the section classes that may stand at a path; several where the type is a union."""
    level = {model}
    for part in path:
        fields = [m.model_fields[part] for m in level if part in m.model_fields]
        if fields:  # an index of a list or a key of a mapping has no class
            level = {inner for info in fields for inner in nested_sections(info.annotation)}
    return level
