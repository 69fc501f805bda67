"""Phase 4 of `clean`: the documents in order -> documents/, dropped/, stats.json."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.curation.decisions import Decisions
from stages.data import documents
from stages.text.cleaning_stats import CleaningStats
from stages.text.dedup.duplicates import Duplicates
from stages.text.filter_decisions import FilterDecisions
from stages.text.filter_report import FilterReport


def write_documents(
    rows: Iterator[dict[str, Any]],
    unit: str,
    filtered: FilterDecisions,
    duplicates: Duplicates,
    report: FilterReport,
    out: Path,
) -> CleaningStats:
    """Write kept and dropped documents in order, with their counts.

    Args:
        rows: annotated rows, after removal of repeated text.
        unit: what is counted besides documents and characters: `words` or `tokens`.
        filtered: the rule that each document failed.
        duplicates: which documents are copies.
        report: observes every document.
        out: the artifact's folder.
    """
    for table in ("documents", "dropped"):
        shutil.rmtree(out / table, ignore_errors=True)
    stats = CleaningStats(unit=unit)
    rules = filtered.rules
    decisions = Decisions(
        np.where(filtered.passed, duplicates.reason, filtered.failed),
        np.where(filtered.passed, duplicates.score, filtered.failing_score),
        duplicates.survivor,
    )
    outcomes = zip(decisions.rule.tolist(), decisions.score.tolist(), strict=True)
    with (
        documents.documents_writer(out, rules) as kept,
        documents.dropped_writer(out, rules) as dropped,
    ):
        # Rows past the read limits were annotated, and are not part of the corpus.
        for number, (row, (rule, score), scores) in enumerate(
            zip(rows, outcomes, filtered.scores.tolist(), strict=False)
        ):
            report.observe(number, row, rule, score)
            stats.record(row, rule)
            document = {name: row[name] for name in documents.COLUMNS}
            if rules:
                values = (None if value != value else value for value in scores)
                document["scores"] = dict(zip(rules, values, strict=True))
            if rule:
                dropped.write({**document, "rule": rule, "score": score})
            else:
                kept.write(document)
    documents.write_stats(out, stats.as_dict())
    return stats
