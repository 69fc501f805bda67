"""Counts of records read, kept and dropped, with the report panels and errors they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pipeline import panels
from pipeline.errors import CorruptArtifact, InputError

if TYPE_CHECKING:
    from pipeline.context import Context

SHOWN_BROKEN = 40
"""Broken records whose places the report lists; the log lists half as many."""

Counts = defaultdict[str, Counter[str]]


def _counts() -> Counts:
    return defaultdict(Counter)


@dataclass
class CurationStats(ABC):
    """Counts per unit, by rule and by source; derive from it and name the units.

    In every unit `read == kept + dropped + removed`.
    """

    record_noun: ClassVar[str]
    """Plural of what a record is in messages: documents, images."""
    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    """Taken out of records that were kept."""
    by_rule: Counts = field(default_factory=_counts)
    by_source: Counts = field(default_factory=_counts)
    broken: int = 0
    """Records and files that could not be read."""
    broken_places: list[str] = field(default_factory=list)
    """Place and reason of the first `SHOWN_BROKEN` of them."""

    @property
    @abstractmethod
    def units(self) -> tuple[str, ...]:
        """Units that are counted; the first one counts records."""

    @property
    def records_read(self) -> int:
        """Number of records that were read."""
        return self.read[self.units[0]]

    @property
    def records_kept(self) -> int:
        """Number of records that were kept."""
        return self.kept[self.units[0]]

    @property
    def duplicates(self) -> int:
        """Number of records that were dropped as duplicates."""
        found = (counts for rule, counts in self.by_rule.items() if "_duplicate" in rule)
        return sum(counts[self.units[0]] for counts in found)

    def count(self, source: str, rule: str, size: Mapping[str, int]) -> None:
        """Count one record: dropped by `rule`, or kept if it is empty.

        Args:
            source: name of its source.
            rule: name of the rule.
            size: amount per unit, without what was removed from the record.
        """
        self.read.update(size)
        self.by_source[source]["read"] += 1
        if rule:
            self.by_rule[rule].update(size)
        else:
            self.kept.update(size)
            self.by_source[source]["kept"] += 1

    def count_removed(self, size: Mapping[str, int]) -> None:
        """Count what was removed from a kept record; it was read, too."""
        self.read.update(size)
        self.removed.update(size)

    def count_broken(self, place: str, reason: str) -> None:
        """Count a broken record or file."""
        self.broken += 1
        if len(self.broken_places) < SHOWN_BROKEN:
            self.broken_places.append(f"{place}: {reason}")

    def dropped(self) -> dict[str, int]:
        """Return what was dropped, per unit.

        Raises:
            CorruptArtifact: kept, dropped and removed do not add up to read.
        """
        dropped = {u: sum(counts[u] for counts in self.by_rule.values()) for u in self.units}
        for unit in self.units:
            if self.read[unit] != self.kept[unit] + dropped[unit] + self.removed[unit]:
                raise CorruptArtifact(
                    f"{self.kept[unit]} kept, {dropped[unit]} dropped and {self.removed[unit]} "
                    f"removed of {self.read[unit]} {unit} read"
                )
        return dropped

    def waterfall_steps(self, unit: str, removed_by: str) -> list[tuple[str, float]]:
        """Return the steps from read to kept, the largest loss first.

        Args:
            unit: one of `units`.
            removed_by: name of the step of what was removed from kept records.
        """
        losses = sorted(self.by_rule.items(), key=lambda item: -item[1][unit])
        steps = [("read", self.read[unit]), *((rule, -counts[unit]) for rule, counts in losses)]
        if self.removed[unit]:
            steps.append((removed_by, -self.removed[unit]))
        return [*steps, ("kept", self.kept[unit])]

    def broken_panels(self) -> Iterator[panels.Panel]:
        """Yield a table of broken records, if there are any."""
        if self.broken:
            places = [(place,) for place in self.broken_places]
            title = f"Broken records and files: {self.broken}"
            yield panels.table(title, ("place and reason",), places)

    def report_broken(self, max_broken: int | None, ctx: Context) -> None:
        """Log broken records.

        Raises:
            InputError: there are more than `max_broken`.
        """
        logged = self.broken_places[: SHOWN_BROKEN // 2]
        for place in logged:
            ctx.log(f"broken: {place}")
        if self.broken > len(logged):
            ctx.log(f"broken: {self.broken - len(logged)} more, in dropped/")
        if max_broken is not None and self.broken > max_broken:
            raise InputError(
                f"{self.broken} records or files are broken, more than max_broken allows "
                f"({max_broken})",
                where="; ".join(self.broken_places[:3]),
                remedy="repair or remove the files that the stage's log names, or raise max_broken",
            )

    def no_records_message(self) -> str:
        """Return the message of an empty result, with the rules that dropped most."""
        unit = self.units[0]
        worst = sorted(self.by_rule.items(), key=lambda item: -item[1][unit])[:3]
        causes = ", ".join(f"{counts[unit]} by {rule}" for rule, counts in worst)
        return f"none of {self.records_read} {self.record_noun} is kept: dropped {causes or 'none'}"
