"""Counts add up in every unit; broken records and empty results are reported with their causes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from pipeline.context import Context
from pipeline.errors import CorruptArtifact, InputError
from stages.curation.curation_stats import SHOWN_BROKEN, CurationStats
from stages.curation.decisions import Decisions


@dataclass
class PageStats(CurationStats):
    record_noun: ClassVar[str] = "books"

    @property
    def units(self):
        return "books", "pages"


def counted():
    stats = PageStats()
    stats.count("a", "", {"books": 1, "pages": 10})
    stats.count_removed({"pages": 2})
    stats.count("a", "short", {"books": 1, "pages": 3})
    stats.count("b", "exact_duplicate", {"books": 1, "pages": 7})
    return stats


def test_counts_add_up_and_their_steps_too():
    stats = counted()
    assert (stats.records_read, stats.records_kept, stats.duplicates) == (3, 1, 1)
    assert stats.dropped() == {"books": 2, "pages": 10}
    steps = stats.waterfall_steps("pages", "torn out")
    assert steps == [
        *(("read", 22), ("exact_duplicate", -7), ("short", -3)),
        *(("torn out", -2), ("kept", 10)),
    ]
    assert dict(stats.by_source["a"]) == {"read": 2, "kept": 1}
    stats.kept["pages"] += 1
    with pytest.raises(CorruptArtifact, match="11 kept, 10 dropped and 2 removed of 22 pages read"):
        stats.dropped()


def test_an_empty_result_names_the_rules_that_dropped_most():
    stats = PageStats()
    assert stats.no_records_message() == "none of 0 books is kept: dropped none"
    for rule in ("thin", "old", "old", "torn", "torn", "torn", "wet", "wet"):
        stats.count("a", rule, {"books": 1, "pages": 1})
    assert stats.no_records_message().endswith("dropped 3 by torn, 2 by old, 2 by wet")


def test_broken_records_are_logged_and_limited(tmp_path):
    ctx, stats = Context.local(tmp_path), PageStats()
    assert not list(stats.broken_panels())
    for number in range(SHOWN_BROKEN + 5):
        stats.count_broken(f"a/{number}", "torn")
    (panel,) = stats.broken_panels()
    assert panel["title"].endswith(f": {SHOWN_BROKEN + 5}") and len(panel["rows"]) == SHOWN_BROKEN
    stats.report_broken(None, ctx)
    log = (ctx.attempt_dir / "log.txt").read_text()
    assert "broken: a/0: torn" in log and f"broken: {SHOWN_BROKEN // 2 + 5} more" in log
    with pytest.raises(InputError, match="more than max_broken allows") as caught:
        stats.report_broken(3, ctx)
    assert caught.value.where == "a/0: torn; a/1: torn; a/2: torn"


def test_decisions_keep_what_no_rule_dropped():
    decisions = Decisions(np.array(["", "", ""], object), np.zeros(3), np.arange(3))
    decisions.drop(np.array([1]), "short", np.array([0.5]))
    assert decisions.kept.tolist() == [0, 2] and decisions.score.tolist() == [0, 0.5, 0]
