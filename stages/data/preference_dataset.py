"""Preferences on disk: K ranked responses per prompt; K = 2 are pairs.

part-00000.parquet   id, prompt: list<struct<role, content, name, tool_calls, weight>>,
                     responses: list<str>, ranks: list<int> (0 is best, equal ranks are ties),
                     split, meta (JSON)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError
from stages.data import kinds, parquet_parts
from stages.data.conversation_dataset import MESSAGES, Message
from stages.data.table_split import TableSplit

KIND = kinds.PREFERENCES.name
VERSION = 2
SPLITS = ("train", "eval")

SCHEMA = parquet_parts.versioned_schema(
    pa.schema(
        [
            ("id", pa.string()),
            ("prompt", MESSAGES),
            ("responses", pa.list_(pa.string())),
            ("ranks", pa.list_(pa.int32())),
            ("split", pa.string()),
            ("meta", pa.string()),
        ]
    ),
    KIND,
    VERSION,
)


@dataclass(frozen=True, slots=True)
class Preference:
    """K responses to one prompt; `ranks[k]` is the rank of `responses[k]`, 0 is best."""

    id: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    split: str = "train"
    meta: dict[str, Any] = field(default_factory=dict)


def write_preferences(out: Path, preferences: Iterable[Preference]) -> int:
    """Write preferences in the order given.

    Returns:
        The number of preferences written.

    Raises:
        InputError: a preference has fewer than two responses, another number of ranks, or equal
            ranks only.
    """
    with parquet_parts.PartWriter(Path(out), SCHEMA) as writer:
        for preference in preferences:
            _check(preference)
            writer.write(
                {
                    "id": preference.id,
                    "prompt": [message.as_row() for message in preference.prompt],
                    "responses": list(preference.responses),
                    "ranks": list(preference.ranks),
                    "split": preference.split,
                    "meta": json.dumps(preference.meta, sort_keys=True),
                }
            )
    return writer.rows


def _check(preference: Preference) -> None:
    ranked = len(preference.responses) == len(preference.ranks) and len(set(preference.ranks)) > 1
    if not ranked or preference.split not in SPLITS:
        raise InputError(
            f"preference {preference.id!r}: {len(preference.responses)} responses with ranks "
            f"{list(preference.ranks)} in split {preference.split!r}",
            remedy="give one rank per response, at least two different; splits are train and eval",
        )


class Preferences(TableSplit[Preference]):
    """The preferences of one split, or of all if `split` is None, by position."""

    kind, version, schema = KIND, VERSION, SCHEMA

    def from_row(self, row: dict[str, Any]) -> Preference:
        """Build a preference."""
        return Preference(
            row["id"],
            tuple(Message.from_row(message) for message in row["prompt"]),
            tuple(row["responses"]),
            tuple(row["ranks"]),
            row["split"],
            json.loads(row["meta"]),
        )
