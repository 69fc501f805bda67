"""The second phase of `conversations` and `rankings`: annotated rows -> splits, copies, files.

part-*.parquet           what is kept
dropped/part-*.parquet   what is left out: file, place, reason, field, detail, and the beginning
                         of the row
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.chat.conversion.chat_stats import ChatStats
from stages.chat.conversion.prompt_split import IN_EVAL, PromptSplit, prompt_key
from stages.chat.conversion.row_reader import Json, KeptRow, RowReader
from stages.data import parquet_parts
from stages.data.conversation_dataset import Message
from stages.data.hashing import hash128_hex

Rows = Callable[[], Iterable[dict[str, Any]]]
"""Annotated rows in order; each call starts anew."""

REPEATED = "repeated"
"""Reason to leave out what equals an earlier conversation or ranking."""
DROPPED_SCHEMA = parquet_parts.versioned_schema(
    pa.schema(
        [(name, pa.string()) for name in ("id", "file", "at", "reason", "field", "detail", "row")]
    ),
    "DroppedRows",
    1,
)


@dataclass
class ChatWriter:
    """Writer of the conversations or rankings of annotated rows."""

    reader: RowReader[Any]
    split: PromptSplit
    drop_repeated: bool

    def write(self, rows: Rows, out: Path) -> ChatStats:
        """Write what is kept and what is left out, with their counts."""
        shutil.rmtree(out / "dropped", ignore_errors=True)
        if self.split.given:
            self.split.held_out.update(self._given_eval(rows()))
        stats = ChatStats(noun=self.reader.noun)
        with parquet_parts.PartWriter(out / "dropped", DROPPED_SCHEMA) as dropped:
            self.reader.write(out, self._kept(rows(), stats, dropped))
        return stats

    def _given_eval(self, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
        """Yield the first prompts that sources and fields put in the eval split."""
        for row in rows:
            if self.split.is_given_eval(row["origin"], row["split"]):
                yield from (_key(item["data"]) for item in row["items"] if "data" in item)

    def _kept(
        self,
        rows: Iterable[dict[str, Any]],
        stats: ChatStats,
        dropped: parquet_parts.PartWriter,
    ) -> Iterator[KeptRow]:
        """Yield what is kept; count everything, and write what is dropped."""
        seen: set[bytes] = set()
        for row in rows:
            stats.rows += 1
            for number, item in enumerate(row["items"]):
                split, refused = self._decide(row, item, seen, stats)
                if refused:
                    stats.drop(row, item, *refused)
                    dropped.write(_dropped_row(row, number, refused))
                    continue
                data = item["data"]
                stats.keep(row, item, split, self.reader.texts(data), self.reader.sample(data))
                yield KeptRow(_item_id(row, number), data, split, data["meta"])

    def _decide(
        self, row: dict[str, Any], item: Json, seen: set[bytes], stats: ChatStats
    ) -> tuple[str, list[str]]:
        """Return the split of an item, or reason, field and detail of why it is left out."""
        if "refused" in item:
            return "", item["refused"]
        split = self.split.assign(_key(item["data"]), row["origin"], row["split"])
        if split == IN_EVAL:
            return "", [IN_EVAL, "", "its first prompt is in the eval split"]
        digest = _content_digest(item["data"])
        known = digest in seen
        seen.add(digest)
        stats.repeated += known
        if known and self.drop_repeated:
            return "", [REPEATED, "", "an earlier row has the same texts"]
        return split, []


def _key(data: Json) -> str:
    return prompt_key([Message.from_row(message) for message in data["messages"]])


def _content_digest(data: Json) -> bytes:
    """Return the hash of all that is learned of a conversation or ranking."""
    content = {name: value for name, value in data.items() if name != "meta"}
    return bytes.fromhex(hash128_hex(json.dumps(content, sort_keys=True)))


def _item_id(row: dict[str, Any], number: int) -> str:
    """Return the id of an item: that of its row, with its number if the row has several."""
    return row["id"] if len(row["items"]) == 1 else hash128_hex(row["id"], str(number))


def _dropped_row(row: dict[str, Any], number: int, refused: list[str]) -> dict[str, Any]:
    reason, field, detail = refused
    return {
        "id": _item_id(row, number),
        **{name: row[name] for name in ("file", "at")},
        **{"reason": reason, "field": field, "detail": detail, "row": row["excerpt"]},
    }
