"""The identity of an artifact: a hash of everything that decides its bytes, and nothing else.

    payload = {format, stage, version, params, inputs, externals}
    fingerprint = first 16 hex digits of sha256(canonical_json(payload))

`params` holds the identity fields only, without those marked EXECUTION. `inputs` holds
fingerprints, so that a change anywhere upstream changes everything downstream. The encoder rejects
values without one byte form (sets, callables, NaN, subclasses whose repr may change) instead of
guessing: a fingerprint that drifts would retrain a model for nothing, one that collides would serve
the wrong one. The `version` of a stage is hashed, its code is not: a comment must not retrain a
model. The payload is stored, so that `describe_changes` can compare two.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from pipeline.errors import NotCanonical
from pipeline.stage import Params, Stage, execution_fields

FORMAT = 1
DIGITS = 16
MAX_SHOWN = 40  # characters of a value in a difference

Payload = dict[str, Any]


def canonical_json(value: Any) -> bytes:
    """Encode plain data in its one byte form: sorted JSON in UTF-8, shortest exact floats.

    Tuples equal lists. 1 and 1.0 differ.

    Raises:
        NotCanonical: the value, or one inside it, has no such form; the message names it.
    """
    _check_canonical(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def identity_fields(params: BaseModel) -> dict[str, Any]:
    """Return the parameters that decide the output: no EXECUTION fields, defaults included."""
    excluded = execution_fields(type(params))
    names = [name for name in type(params).model_fields if name not in excluded]
    return {name: _to_plain(getattr(params, name)) for name in names}


def identity_payload(
    stage: Stage, params: Params, inputs: Mapping[str, Sequence[str]], externals: Mapping[str, str]
) -> Payload:
    """Return everything that decides the bytes of an artifact.

    Args:
        stage: the stage that makes it.
        params: its parameters; EXECUTION fields are left out.
        inputs: the fingerprints on each edge.
        externals: content digests of what it reads from outside the store.
    """
    return {
        "format": FORMAT,
        "stage": stage.uses,
        "version": stage.version,
        "params": identity_fields(params),
        "inputs": {edge: list(prints) for edge, prints in inputs.items()},
        "externals": dict(externals),
    }


def fingerprint(payload: Payload) -> str:
    """Return the fingerprint of a payload: 16 hex digits."""
    return hashlib.sha256(canonical_json(payload)).hexdigest()[:DIGITS]


def describe_changes(
    old: Payload, new: Payload, producers: Mapping[str, Iterable[str]] | None = None
) -> list[str]:
    """Describe how two payloads of a stage differ, by field: `train.lr 3e-4 -> 2e-4`.

    Args:
        old: the payload of what exists, also as read from JSON.
        new: the payload of what is wanted.
        producers: the names of the stages on each edge, for `upstream tokens changed`.
    """
    found = [
        f"{key} {format_value(old.get(key))} -> {format_value(new.get(key))}"
        for key in ("format", "version")
        if old.get(key) != new.get(key)
    ]
    found += _differences(old.get("params", {}), new.get("params", {}), "")
    for edge in _differing_keys(old.get("inputs", {}), new.get("inputs", {})):
        names = (producers or {}).get(edge) or [edge]
        found.append(f"upstream {' or '.join(dict.fromkeys(names))} changed")
    sources = _differing_keys(old.get("externals", {}), new.get("externals", {}))
    return [*found, *(f"source {source} changed" for source in sources)]


def format_value(value: Any) -> str:
    """Format a value briefly: the shortest form of a number (`3e-4`), truncated text."""
    if isinstance(value, float) and math.isfinite(value) and value:
        sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
        point = f".{''.join(map(str, digits[1:]))}" if digits[1:] else ""
        power = int(exponent) + len(digits) - 1
        scientific = f"{'-' if sign else ''}{digits[0]}{point}e{power}"
        return min(repr(value), scientific, key=len)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*new, *old]):
            inner = f"{key}.{name}" if key else name
            if name not in old:
                yield f"{inner} (new) {format_value(new[name])}"
            elif name not in new:
                yield f"{inner} (gone) {format_value(old[name])}"
            else:
                yield from _differences(old[name], new[name], inner)
    elif canonical_json(old) != canonical_json(new):
        yield f"{key} {format_value(old)} -> {format_value(new)}"


def _differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key)]


def _to_plain(value: Any) -> Any:
    """Replace the sections inside a value by their identity fields."""
    if isinstance(value, BaseModel):
        return identity_fields(value)
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    return value


def _check_canonical(value: Any, where: str) -> None:
    """Check that a value is plain; of the exact types, because a subclass may print itself."""
    kind = type(value)
    if kind is str:
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise NotCanonical(f"{where}: {value!r} is not Unicode text")
    elif kind is float and not math.isfinite(value):
        raise NotCanonical(f"{where}: {value} is not a finite number")
    elif kind in (list, tuple):
        for i, item in enumerate(value):
            _check_canonical(item, f"{where}[{i}]")
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise NotCanonical(f"{where}: the key {key!r} is not text")
            _check_canonical(key, where)
            _check_canonical(item, f"{where}.{key}")
    elif value is not None and kind not in (bool, int, float):
        remedy = "use numbers, text, tuples and sections, or mark the field EXECUTION"
        raise NotCanonical(f"{where}: a {kind.__name__} has no one byte form", remedy=remedy)
