"""Quality, repetition and C4 filters against datatrove's: speed and agreement.

    python tests/benchmarks/bench_filters.py [--source SOURCE] [--documents N] [--repeats N]
                                             [--agree N]

Texts are those of SOURCE (any source of `clean`; default: the documentation of this Python
installation), unchanged: without Unicode repair, in their order, in eight jsonl files. Both sides
have two processes, read the files, and count what each filter leaves; ours takes every score of
every document, the peer stops at the first filter that drops one. Our processes are started before,
with an empty cache of words; the cost of the peer's start is shown (one document per file). The
whole stage `clean` with the same rules, which also repairs, detects languages, hashes and writes,
is shown next to them.

Decisions are compared filter by filter on the same texts, ours once with the peer's words and
sentences (spaCy's) and once with our own splitter. The peer is skipped where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from footprint import peak

from pipeline.context import Context
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean
from stages.data.documents import read_stats
from stages.text.rules.catalogue import default_limits
from stages.text.rules.document_view import DocumentView
from stages.text.rules.rule_scorer import RuleScorer
from stages.text.sources.readers import read
from stages.text.sources.source_listing import SourceFile, list_files
from stages.text.words.word_table import shared_word_table

FILES, WORKERS = 8, 2
VARIANTS = ("gopher_quality:datatrove", "gopher_repetition:datatrove", "c4:datatrove")
Run = Callable[[Path], tuple[Counter[str], float]]
OWN = ("gopher_quality", "gopher_repetition", "c4")
LIMITS = default_limits((*VARIANTS, *OWN))


def texts_of(source: str) -> Iterator[str]:
    for file in list_files([source]):
        for raw in read(file):
            if not raw.broken and raw.text.strip():
                yield raw.text


def write(texts: Sequence[str], folder: Path) -> float:
    """Spread texts over the files of a folder; megabytes of text."""
    folder.mkdir(parents=True)
    for number in range(FILES):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[number::FILES])
        (folder / f"{number}.jsonl").write_text(lines)
    return sum(len(text.encode("utf-8", "replace")) for text in texts) / 1e6


def failures(scorer: RuleScorer, view: DocumentView) -> list[str]:
    """The rules that a text breaks."""
    scores = zip(scorer.rules, scorer.scores(view), strict=True)
    return [rule for rule, score in scores if not LIMITS[rule].allows(score)]


def filter_file(work: tuple[SourceFile, Sequence[str]]) -> Counter[str]:
    file, rules = work
    scorer = RuleScorer(rules)
    counts: Counter[str] = Counter()
    for raw in read(file):
        broken = failures(scorer, DocumentView(raw.text, "en", shared_word_table()))
        counts["kept" if not broken else broken[0].rpartition(".")[0]] += 1
    return counts


def ours(rules: Sequence[str]) -> Run:
    def run(corpus: Path) -> tuple[Counter[str], float]:
        with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
            list(pool.map(time.sleep, [1.0] * WORKERS))  # both are there
            started = time.perf_counter()
            works = [(file, rules) for file in list_files([str(corpus)])]
            counts = sum(pool.map(filter_file, works), Counter[str]())
            return counts, time.perf_counter() - started

    return run


def timed(call: Callable[[Path], Counter[str]]) -> Run:
    def run(corpus: Path) -> tuple[Counter[str], float]:
        started = time.perf_counter()
        return call(corpus), time.perf_counter() - started

    return run


def whole(corpus: Path) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context.local(Path(folder))
        params = CleanParams(sources=(str(corpus),), rules=VARIANTS, workers={"num": WORKERS})
        clean(params, Inputs({}), ctx.out, ctx)
        return Counter(kept=read_stats(ctx.out)["kept"]["documents"])


def filters() -> list[Any]:
    """The peer's, in the order of `VARIANTS`."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    return [GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter()]


def theirs(corpus: Path) -> Counter[str]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader

    with tempfile.TemporaryDirectory() as logs:
        executor = LocalPipelineExecutor(
            [JsonlReader(str(corpus)), *filters()], tasks=FILES, workers=WORKERS, logging_dir=logs
        )
        stats = executor.run().stats
    counts: Counter[str] = Counter(kept=int(stats[-1].stats["forwarded"].total))
    for name, stat in zip(VARIANTS, stats[1:], strict=True):
        counts[name] = int(stat.stats["dropped"].total)
    return counts


def race(texts: Sequence[str], repeats: int, peer: bool, place: Path) -> None:
    """Both, taking turns."""
    runs: dict[str, Run] = {
        "ours, own words": ours(OWN),
        "ours, datatrove's rules": ours(VARIANTS),
        "clean, datatrove's rules": timed(whole),
    }
    if peer:
        runs["datatrove"] = timed(theirs)
    size = write(texts, place)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    left: dict[str, Counter[str]] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            left[name], seconds = run(place)
            spent[name].append(seconds)
    slowest = max(statistics.median(times) for times in spent.values())
    for name, times in spent.items():
        took = statistics.median(times)
        rate = f"{len(texts) / took:8.1f} documents/s {size / took:6.2f} MB/s"
        most = peak(
            lambda run=runs[name]: run(place), newcomers=name != "clean, datatrove's rules"
        )[1]
        ratio = f"{slowest / took:6.1f}x the slowest, {most:.0f} MiB"
        print(f"{name:26s} {rate} {ratio}, {dict(left[name])}")
    if peer:
        write(texts[:FILES], place.with_name("few"))
        print(f"datatrove, one document per file: {timed(theirs)(place.with_name('few'))[1]:.1f} s")


def decisions(texts: Iterable[str]) -> Counter[str]:
    """How often each filter decides alike, and on what it differs."""
    from datatrove.data import Document
    from datatrove.utils.text import split_into_sentences, split_into_words

    peers, scorer = filters(), RuleScorer(VARIANTS)
    counts: Counter[str] = Counter()
    for text in texts:
        views = {
            "their words": DocumentView(
                text,
                "en",
                shared_word_table(),
                sentences=lambda line: len(split_into_sentences(line)),
                split=lambda text: list(split_into_words(text)),
            ),
            "own words": DocumentView(text, "en", shared_word_table()),
        }
        broken = {name: failures(scorer, view) for name, view in views.items()}
        for name, peer_filter in zip(VARIANTS, peers, strict=True):
            verdict = peer_filter.filter(Document(text=text, id="0"))
            keeps = verdict is True or (isinstance(verdict, tuple) and verdict[0])
            counts[f"{name}: texts"] += 1
            for splitter, rules in broken.items():
                ours_keeps = not any(rule.startswith(name + ".") for rule in rules)
                counts[f"{name}: {splitter}"] += keeps == ours_keeps
                if keeps != ours_keeps:
                    said = [rule for rule in rules if rule.startswith(name + ".")] or ["keeps"]
                    counts[f"  {splitter}: {verdict} against {said[0]}"] += 1
    return counts


def agreement(texts: Sequence[str]) -> None:
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        parts = [texts[at::WORKERS] for at in range(WORKERS)]
        counts = sum(pool.map(decisions, parts), Counter[str]())
    for name in VARIANTS:
        total = counts[f"{name}: texts"]
        for splitter in ("their words", "own words"):
            alike = counts[f"{name}: {splitter}"]
            print(f"{name:30s} {splitter:12s} {alike}/{total} alike, {alike / total:.2%}")
    for what, times in sorted(counts.items()):
        if what.startswith("  "):
            print(f"{times:6d}{what}")


def main() -> None:
    import ray

    asked = argparse.ArgumentParser()
    asked.add_argument("--source", default="python:docs")
    asked.add_argument("--documents", type=int, default=2400)
    asked.add_argument("--repeats", type=int, default=5)
    asked.add_argument("--agree", type=int, default=600)
    options = asked.parse_args()
    try:
        import datatrove  # noqa: F401

        peer = True
    except ImportError as error:
        peer = False
        print(f"datatrove is left out: {error}")
    texts = list(texts_of(options.source))
    spread = max(1, len(texts) // max(1, options.documents))
    if options.repeats:
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        with tempfile.TemporaryDirectory() as place:
            race(texts[::spread][: options.documents], options.repeats, peer, Path(place) / "race")
        ray.shutdown()
    if peer and options.agree:
        spread = max(1, len(texts) // options.agree)
        agreement(texts[::spread][: options.agree])


if __name__ == "__main__":
    main()
