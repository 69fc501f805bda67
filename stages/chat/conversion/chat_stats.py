"""Counts of conversations or rankings: read, kept, shortened and dropped, with their panels.

Every one that is read is kept as it is, kept shortened, or dropped by one reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from pipeline import panels
from stages.chat.conversion.ranking_rows import count_pairs
from stages.chat.conversion.row_annotator import UNREADABLE
from stages.chat.conversion.row_reader import Json
from stages.curation.curation_stats import CurationStats
from stages.data.hashing import hash_fraction

SHOWN = 40
"""Items per sample in the report."""
SAMPLE_CHARACTERS = 2_000
MAX_TABLE_ROWS = 40
_TAIL = 12  # turns and numbers of responses that have a bar of their own


@dataclass
class ChatStats(CurationStats):
    """Counts of one kind of rows, with examples for the report."""

    record_noun: ClassVar[str] = "rows"
    noun: str = "conversations"
    """Plural of what is counted."""
    rows: int = 0
    """Records of the sources."""
    shortened: int = 0
    shortenings: Counter[str] = field(default_factory=Counter)
    """Number of those kept with each shortening; one may have several."""
    repeated: int = 0
    """Number of those that equal an earlier one, kept or dropped."""
    control: int = 0
    """Number of those that spell a control token, kept or not."""
    splits: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    responses: Counter[int] = field(default_factory=Counter)
    """Number of rankings by their number of responses."""
    pairs: int = 0
    lengths: list[int] = field(default_factory=list)
    """Characters of each one kept."""
    formats: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of those read by file and format."""
    kept_formats: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped_places: list[str] = field(default_factory=list)
    """Place, reason and detail of the first that are left out."""
    _control_rows: list[tuple[str, str, str]] = field(default_factory=list)
    _kept_sample: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    _dropped_sample: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def units(self) -> tuple[str, ...]:
        """The unit that is counted."""
        return (self.noun,)

    def drop(
        self, row: Mapping[str, Any], item: Json, reason: str, field_name: str, detail: str
    ) -> None:
        """Count one that is left out, for a reason, because of a field."""
        self.count(row["file"], reason, {self.noun: 1})
        self.formats[row["file"], row["format"]] += 1
        place = f"{row['file']} {row['at']}".strip()
        self._count_control(place, item["control"], reason)
        cause = f"{field_name}: {detail}" if field_name else detail
        if reason == UNREADABLE:
            self.count_broken(place, cause)
        if len(self.dropped_places) < SHOWN:
            self.dropped_places.append(f"{place}: {reason}: {cause}")
        examples = self._dropped_sample.setdefault(reason, [])
        if len(examples) < SHOWN // 4:
            text = f"{detail}\n\n{row['excerpt']}".strip()[:SAMPLE_CHARACTERS]
            examples.append({"reason": reason, "row": place, "field": field_name, "text": text})

    def keep(
        self,
        row: Mapping[str, Any],
        item: Json,
        split: str,
        texts: Sequence[str],
        parts: Iterable[tuple[str, str]],
    ) -> None:
        """Count one that is kept.

        Args:
            row: its row of the annotation table.
            item: what the row holds, with changes and control tokens.
            split: its split.
            texts: all its texts.
            parts: the parts of an example, each with its name.
        """
        data = item["data"]
        self.count(row["file"], "", {self.noun: 1})
        self.formats[row["file"], row["format"]] += 1
        self.kept_formats[row["file"], row["format"]] += 1
        self.splits[split] += 1
        self.shortened += bool(item["changes"])
        self.shortenings.update(item["changes"])
        roles = [message["role"] for message in data["messages"]]
        self.roles.update(roles)
        self.turns[roles.count("user")] += 1
        if "ranks" in data:
            self.responses[len(data["ranks"])] += 1
            self.pairs += count_pairs(data["ranks"])
        self.lengths.append(sum(map(len, texts)))
        place = data["meta"]["place"]
        self._count_control(place, item["control"], "kept")
        self._show(place, split, item["changes"], parts)

    def _count_control(self, place: str, tokens: Sequence[str], outcome: str) -> None:
        """Count one that spells control tokens."""
        self.control += bool(tokens)
        if tokens and len(self._control_rows) < MAX_TABLE_ROWS:
            self._control_rows.append((place, " ".join(tokens), outcome))

    def _show(
        self, place: str, split: str, changes: Sequence[str], parts: Iterable[tuple[str, str]]
    ) -> None:
        """Store an example if its place is among those of the smallest hashes."""
        order = hash_fraction(f"shown {place} {self.records_read}")
        if len(self._kept_sample) == SHOWN and order >= self._kept_sample[-1][0]:
            return
        text = "\n\n".join(f"{name}: {text}" for name, text in parts)[:SAMPLE_CHARACTERS]
        outcome = ", ".join(changes) or "as it is"
        labels = {"split": split, "outcome": outcome, "row": place, "text": text}
        self._kept_sample.append((order, labels))
        self._kept_sample.sort(key=lambda shown: shown[0])
        del self._kept_sample[SHOWN:]

    def results(self) -> dict[str, int | float | None]:
        """Return the metrics: read = kept + shortened + dropped."""
        read, written = self.records_read, self.records_kept
        metrics: dict[str, int | float | None] = {
            "rows": self.rows,
            "read": read,
            "kept": written - self.shortened,
            "shortened": self.shortened,
            "dropped": self.dropped()[self.noun],
            self.noun: written,
            "kept_share": written / read if read else None,
            "repeated": self.repeated,
            "control_text": self.control,
            "broken": self.broken,
            **{split: self.splits[split] for split in ("train", "eval")},
            **{f"shortened_{name}": count for name, count in self.shortenings.items()},
        }
        if self.noun == "rankings":
            return {**metrics, "pairs": self.pairs}
        messages = {f"messages_{role}": count for role, count in sorted(self.roles.items())}
        return {**metrics, "multi_turn": self.multi_turn, **messages}

    @property
    def multi_turn(self) -> int:
        """Number of conversations with more than one message of the user."""
        return sum(count for turns, count in self.turns.items() if turns > 1)

    def report_panels(self, descriptions: Mapping[str, str]) -> Iterator[panels.Panel]:
        """Yield the report's panels.

        Args:
            descriptions: explanation of each reason and shortening.
        """
        yield panels.waterfall(
            f"Rows to {self.noun}", self.noun, self.waterfall_steps(self.noun, "")
        )
        yield self._outcomes(descriptions)
        yield self._files()
        if self.responses:
            yield panels.bars("Responses per prompt", _bars(self.responses), unit="prompts")
        yield panels.bars("Turns of the user", _bars(self.turns), unit=self.noun)
        yield panels.bars("Messages by role", dict(sorted(self.roles.items())), unit="messages")
        edges = [digit * 10**power for power in range(6) for digit in (1, 2, 5)] + [10**6]
        counts, _ = np.histogram(np.clip(self.lengths, edges[0], edges[-1]), edges)
        yield panels.histogram(f"Characters per {self.noun[:-1]}", edges, counts.tolist())
        yield from self.broken_panels()
        if self._control_rows:
            title = f"Texts that spell a control token: {self.control}"
            yield panels.table(title, ("row", "tokens", "outcome"), self._control_rows)
        if self._kept_sample:
            items = [labels for _, labels in self._kept_sample]
            yield panels.browser(f"Kept {self.noun}: a sample", items)
        dropped = [item for _, items in sorted(self._dropped_sample.items()) for item in items]
        if dropped:
            yield panels.browser("Left out: a sample", dropped)

    def _outcomes(self, descriptions: Mapping[str, str]) -> panels.Panel:
        """Return the table of read, kept, shortened and dropped, each with its reasons."""
        read = max(1, self.records_read)
        reasons = {name: counts[self.noun] for name, counts in self.by_rule.items()}
        rows: list[tuple[str, str, int]] = [
            ("read", "", self.records_read),
            ("kept as it is", "", self.records_kept - self.shortened),
            ("kept, shortened", "", self.shortened),
            *(("kept, shortened", name, count) for name, count in self.shortenings.most_common()),
            ("dropped", "", self.dropped()[self.noun]),
            *(("dropped", name, n) for name, n in Counter(reasons).most_common()),
        ]
        return panels.table(
            "Outcomes",
            ("outcome", "reason", self.noun, "share", "meaning"),
            [(*row, f"{row[2] / read:.1%}", descriptions.get(row[1], "")) for row in rows],
        )

    def _files(self) -> panels.Panel:
        """Return the table of files with their formats."""
        rows = [
            (file, name or "-", count, self.kept_formats[file, name])
            for (file, name), count in sorted(self.formats.items())
        ]
        title = (
            "Files" if len(rows) <= MAX_TABLE_ROWS else f"Files: {MAX_TABLE_ROWS} of {len(rows)}"
        )
        return panels.table(title, ("file", "format", "read", "kept"), rows[:MAX_TABLE_ROWS])


def _bars(counts: Mapping[int, int]) -> dict[str, int]:
    """Return a bar per number, with one for all large ones."""
    bars = {str(number): counts[number] for number in sorted(counts) if number <= _TAIL}
    more = sum(count for number, count in counts.items() if number > _TAIL)
    return {**bars, f"> {_TAIL}": more} if more else bars
