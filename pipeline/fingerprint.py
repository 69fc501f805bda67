"""What identifies an artifact: a hash of everything that decides its bytes, and nothing else.

    payload = {format, stage, version, params, inputs, externals}
    fingerprint = first 16 hex digits of sha256(canonical(payload))

`params` holds the identity fields only: what says how the work is done (EXECUTION) cannot get
in. `inputs` holds fingerprints, so a change anywhere upstream changes all that follows. The
encoder refuses whatever has no one byte form (sets, callables, NaN, subclasses whose repr may
change) instead of guessing: a fingerprint that drifts would retrain a model for nothing, one
that collides would serve the wrong one. Code is not hashed, a stage's `version` is: a comment
must not retrain a model. The payload is stored whole, so that `changes` can say why two differ.
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
_INFINITE = "is no number that a file can hold"
SHOWN = 40  # characters of a value in a difference

Payload = dict[str, Any]


def canonical_json(value: Any) -> bytes:
    """The one byte form of plain data: sorted JSON in UTF-8, floats by their shortest exact text.

    Tuples count as lists. 1 and 1.0 differ.

    Raises:
        NotCanonical: the value, or one inside it, has no such form; the message says where.
    """
    plain = _plain(value, "value")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def identity_fields(params: BaseModel) -> dict[str, Any]:
    """The parameters that decide what is made: no EXECUTION fields, defaults included."""
    left_out = execution_fields(type(params))
    names = (name for name in type(params).model_fields if name not in left_out)
    return {name: _bare(getattr(params, name)) for name in names}


def identity_payload(
    stage: Stage,
    params: Params,
    inputs: Mapping[str, Sequence[str]],
    externals: Mapping[str, str],
) -> Payload:
    """Everything that decides the bytes of an artifact.

    Args:
        stage: whose work it is.
        params: its parameters; their EXECUTION fields are left out.
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
    """16 hex digits that stand for the payload."""
    return hashlib.sha256(canonical_json(payload)).hexdigest()[:DIGITS]


def describe_changes(
    old: Payload, new: Payload, producers: Mapping[str, Iterable[str]] | None = None
) -> list[str]:
    """How two payloads of a stage differ, field by field: `train.lr 3e-4 -> 2e-4`.

    Args:
        old: the payload of what exists; as JSON gave it back is fine.
        new: the payload of what is wanted.
        producers: the names of the stages on each edge, to say `upstream tokens changed`.
    """
    found = [
        f"{key} {format_value(old.get(key))} -> {format_value(new.get(key))}"
        for key in ("format", "version")
        if old.get(key) != new.get(key)
    ]
    found += _differences(old.get("params", {}), new.get("params", {}), "")
    for edge in _differing(old, new, "inputs"):
        names = (producers or {}).get(edge) or [edge]
        found.append(f"upstream {' or '.join(dict.fromkeys(names))} changed")
    found += [f"source {source} changed" for source in _differing(old, new, "externals")]
    return found


def format_value(value: Any) -> str:
    """A value as people write it: short numbers (`3e-4`), short text."""
    if isinstance(value, float) and math.isfinite(value) and value:
        return _shortest(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _shortest(value: float) -> str:
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    point = f".{''.join(map(str, digits[1:]))}" if digits[1:] else ""
    power = int(exponent) + len(digits) - 1
    scientific = f"{'-' if sign else ''}{digits[0]}{point}e{power}"
    return min(repr(value), scientific, key=len)


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in _keys(old, new):
            inner = f"{key}.{name}" if key else name
            if name not in old:
                yield f"{inner} (new) {format_value(new[name])}"
            elif name not in new:
                yield f"{inner} (gone) {format_value(old[name])}"
            else:
                yield from _differences(old[name], new[name], inner)
    elif canonical_json(old) != canonical_json(new):
        yield f"{key} {format_value(old)} -> {format_value(new)}"


def _differing(old: Payload, new: Payload, part: str) -> list[str]:
    was, now = old.get(part, {}), new.get(part, {})
    return [key for key in _keys(was, now) if was.get(key) != now.get(key)]


def _keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*new, *old]))


def _bare(value: Any) -> Any:
    """Sections inside a value as identities."""
    if isinstance(value, BaseModel):
        return identity_fields(value)
    if isinstance(value, list | tuple):
        return [_bare(item) for item in value]
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items()}
    return value


def _plain(value: Any, where: str) -> Any:
    """The value itself, checked to be plain; exact types, since a subclass may print itself."""
    kind = type(value)
    if value is None or kind in (bool, int):
        return value
    if kind is str:
        return _text(value, where)
    if kind is float:
        if not math.isfinite(value):
            why = "equals nothing, not even itself" if math.isnan(value) else _INFINITE
            raise NotCanonical(f"{where}: {value} {why}")
        return value
    if kind in (list, tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is dict:
        return {_key(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise NotCanonical(
        f"{where}: a {kind.__name__} has no one byte form",
        remedy="use numbers, text, tuples and sections, or mark the field EXECUTION",
    )


def _key(key: Any, where: str) -> str:
    if type(key) is not str:
        raise NotCanonical(f"{where}: the key {key!r} is not text")
    return _text(key, where)


def _text(text: str, where: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise NotCanonical(f"{where}: {text!r} is not Unicode text")
    return text
