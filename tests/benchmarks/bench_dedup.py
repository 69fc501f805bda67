"""Near-duplicate search end to end against datatrove's four stages; its recall; time by size.

    python tests/benchmarks/bench_dedup.py [--source SOURCE] [--sizes MB…] [--repeats N]
                                           [--documents N] [--peer-mb MB]

Texts are those of SOURCE (any source of `clean`; default: the documentation of this Python
installation), grown by mutation: every fifth document is a near copy of an earlier one, all others
have half of their words exchanged. Both sides have the same eight files, 5-gram shingles, 14 bands
of 8 and two workers, and write the kept documents. The whole stage `clean`, which also repairs
Unicode, detects languages and applies rules, is shown next to them. The peer is skipped where it is
not installed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from footprint import peak

from pipeline.atomic_io import write_atomic
from pipeline.context import Context
from pipeline.stage import Inputs, Workers
from stages.clean import CleanParams, clean
from stages.data import parquet_parts
from stages.data.documents import read_stats
from stages.text.dedup.components import survivors
from stages.text.dedup.dedup_params import DedupParams
from stages.text.dedup.duplicates import commit_band_hashes, group_tables
from stages.text.dedup.hash_join import TaskScope, join_equal_hashes, write_array
from stages.text.dedup.minhash import MinHash
from stages.text.sources.readers import read
from stages.text.sources.source_listing import SourceFile, list_files
from stages.text.words.word_table import shared_word_table

FILES, WORKERS = 8, 2
HASHED = pa.schema([("id", pa.string()), ("text", pa.string()), ("bands", pa.binary())])
NEAR, FAR = 0.02, 0.5  # of the words of a copy, and of a new document, are exchanged
SIMILAR = 0.8


def texts_of(source: str, megabytes: float) -> list[str]:
    """The first texts of a source, up to so many megabytes."""
    found: list[str] = []
    scope = megabytes * 1e6
    for file in list_files([source]):
        for raw in read(file):
            if not raw.broken and len(raw.text.split()) >= 50:
                found.append(raw.text)
                scope -= len(raw.text)
        if scope < 0:
            break
    return found


def grown(texts: Sequence[str], megabytes: float) -> Iterator[str]:
    """Documents made of these texts by exchanging words, of so many megabytes in all."""
    chance = random.Random(0)
    vocabulary = " ".join(texts[:500]).split()
    scope, before = megabytes * 1e6, ""
    for number in range(10**9):
        if scope <= 0:
            return
        base, share = chance.choice(texts), FAR
        if number % 5 == 4:
            base, share = before, NEAR
        before = mutated(base, share, vocabulary, chance)
        scope -= len(before)
        yield before


def mutated(text: str, share: float, vocabulary: Sequence[str], chance: random.Random) -> str:
    """The text with a share of its words exchanged."""
    lines = [line.split(" ") for line in text.split("\n")]
    for words in lines:
        for at in range(len(words)):
            if words[at] and chance.random() < share:
                words[at] = chance.choice(vocabulary)
    return "\n".join(" ".join(words) for words in lines)


def write(texts: Iterator[str], folder: Path) -> float:
    """Spread texts over the files of a folder; megabytes of text."""
    folder.mkdir(parents=True)
    size = 0
    streams = [(folder / f"{number}.jsonl").open("w") for number in range(FILES)]
    for number, text in enumerate(texts):
        streams[number % FILES].write(json.dumps({"text": text, "id": str(number)}) + "\n")
        size += len(text.encode())
    for stream in streams:
        stream.close()
    return size / 1e6


def hash_file(file: SourceFile, commit: Path) -> None:
    """Commit a file's texts with their hashes."""
    minhash, rows = MinHash(), []
    for number, raw in enumerate(read(file)):
        signature = minhash.text_signature(shared_word_table().words(raw.text))
        bands = None if signature is None else minhash.band_hashes(signature)
        hashes = None if bands is None else bands.tobytes()
        rows.append({"id": f"{file.place}-{number}", "text": raw.text, "bands": hashes})
    write_atomic(commit, parquet_parts.encode_part(rows, HASHED), durable=False)


def ours(corpus: Path, folder: Path) -> int:
    """Documents that near-duplicate search keeps: read, hashed, linked and written."""
    ctx = Context.local(folder)
    scope = TaskScope(ctx.scratch, Workers(num=WORKERS), ctx)
    commits = scope.run("hashed", hash_file, list_files([str(corpus)]))
    lengths = np.concatenate([lengths_of(commit) for commit in commits])
    kept_mask = ctx.scratch / "alive.npy"
    write_array(kept_mask, np.ones(len(lengths), np.bool_))
    groups = group_tables(commits, 0, len(lengths), earlier=False)
    spread = scope.run(
        "spread", commit_band_hashes, [(group, kept_mask, DedupParams()) for group in groups]
    )
    roots = np.arange(len(lengths))
    forest = join_equal_hashes(spread, None, scope)
    roots[forest[:, 0]] = forest[:, 1]
    stays = iter((survivors(roots, lengths) == np.arange(len(lengths))).tolist())
    with parquet_parts.PartWriter(ctx.out / "kept", HASHED, "text") as kept:
        for commit in commits:
            for batch in pq.ParquetFile(commit).iter_batches(256):
                for row in batch.to_pylist():
                    if next(stays):
                        kept.write(row)
    return kept.rows


def lengths_of(commit: Path) -> npt.NDArray[np.int64]:
    """Characters of a file's texts."""
    column = pq.read_table(commit, columns=["text"])["text"]
    return pc.utf8_length(column).to_numpy().astype(np.int64)


def whole(corpus: Path, folder: Path) -> int:
    """Documents that the stage keeps as it stands."""
    ctx = Context.local(folder)
    clean(CleanParams(sources=(str(corpus),), workers={"num": WORKERS}), Inputs({}), ctx.out, ctx)
    return int(read_stats(ctx.out)["kept"]["documents"])


def theirs(corpus: Path, folder: Path) -> int:
    """Documents that datatrove's pipeline keeps."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    reader, place = JsonlReader(str(corpus)), {name: str(folder / name) for name in "abcd"}
    steps = [
        ([reader, MinhashDedupSignature(place["a"], config=config)], FILES),
        ([MinhashDedupBuckets(place["a"], place["b"], config=config)], config.num_buckets),
        ([MinhashDedupCluster(place["b"], place["c"], config=config)], 1),
        (
            [reader, MinhashDedupFilter(place["c"]), JsonlWriter(place["d"], compression=None)],
            FILES,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        logs = str(folder / f"logs-{number}")
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=min(tasks, WORKERS), logging_dir=logs
        ).run()
    return sum(len(file.read_text().splitlines()) for file in (folder / "d").iterdir())


def seconds(run: Callable[[Path, Path], int], corpus: Path) -> tuple[float, int]:
    """Wall seconds of a run in a folder of its own, and what it kept."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        kept = run(corpus, Path(folder) / "work")
        return time.perf_counter() - started, kept


def race(texts: Sequence[str], megabytes: float, repeats: int, place: Path) -> None:
    """Ours and the peer, taking turns."""
    runs = {"ours": ours, "clean": whole}
    try:
        import datatrove  # noqa: F401

        runs["datatrove"] = theirs
    except ImportError as error:
        print(f"datatrove is left out: {error}")
    size = write(grown(texts, megabytes), place / "race")
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(seconds(run, place / "race"))
    rates = {name: size / statistics.median(s for s, _ in times) for name, times in found.items()}
    for name, rate in rates.items():
        share = f"{rates['ours'] / rate:5.1f}x as long as ours"
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder) / "work"
            call = partial(runs[name], place / "race", work)
            most = peak(call, newcomers=name == "datatrove")[1]
        kept = found[name][0][1]
        print(
            f"{name:10s} {rate:7.2f} MB/s of {size:.1f} MB, {share}, {most:.0f} MiB, keeps {kept}"
        )


def growth(texts: Sequence[str], sizes: Sequence[float], repeats: int, place: Path) -> None:
    """Time by size, and the exponent of the power that fits it."""
    measured = []
    for megabytes in sizes:
        size = write(grown(texts, megabytes), place / f"{megabytes:g}")
        times = [seconds(ours, place / f"{megabytes:g}")[0] for _ in range(repeats)]
        measured.append((size, statistics.median(times)))
        print(f"{size:7.1f} MB {measured[-1][1]:7.2f} s {size / measured[-1][1]:6.2f} MB/s")
    if len(measured) > 1:
        exponent = np.polyfit(*np.log(np.array(measured)).T, 1)[0]
        print(f"time grows with the size to the power of {exponent:.3f}")


def quality(texts: Sequence[str], documents: int) -> None:
    """Recall and precision of bands, and of verified ones, against brute-force Jaccard."""
    corpus = list(variants(texts, documents))
    minhash = MinHash()
    words = [shared_word_table().words(text) for text in corpus]
    shingles = [minhash.shingles(text) for text in words]
    signatures = np.array([minhash.signature(found) for found in shingles])
    bands = np.array([minhash.band_hashes(signature) for signature in signatures])
    exact = similarities([set(found.tolist()) for found in shingles])
    candidates = {pair for band in bands.T for pair in meeting(band.tolist())}
    verified = {
        pair
        for pair in candidates
        if (signatures[pair[0]] == signatures[pair[1]]).mean() >= SIMILAR
    }
    similar = {pair for pair, share in exact.items() if share >= SIMILAR}
    promised = statistics.fmean(minhash.match_probability(exact[pair]) for pair in similar)
    print(f"{len(corpus)} documents, {len(similar)} pairs of Jaccard {SIMILAR} and more")
    print(f"the formula promises a recall of {promised:.4f}")
    for name, found in (("bands", candidates), ("verified", verified)):
        recall = len(found & similar) / len(similar)
        precision = len(found & similar) / max(1, len(found))
        print(f"{name:9s} recall {recall:.4f}, precision {precision:.4f}")
    for low in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
        inside = [pair for pair, share in exact.items() if low <= share < low + 0.1]
        if inside:
            share = sum(pair in candidates for pair in inside) / len(inside)
            expected = statistics.fmean(minhash.match_probability(exact[pair]) for pair in inside)
            counts = f"{len(inside):6d} pairs"
            print(f"Jaccard {low:.1f}: {counts}, found {share:.3f}, promised {expected:.3f}")


def variants(texts: Sequence[str], documents: int) -> Iterator[str]:
    """Groups of six texts of every similarity: a base with more and more words exchanged."""
    chance = random.Random(1)
    vocabulary = " ".join(texts[:500]).split()
    for _ in range(documents // 6):
        words = chance.choice(texts).split()
        start = chance.randrange(max(1, len(words) - 300))
        base = " ".join(words[start : start + 300])
        for share in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08):
            yield mutated(base, share, vocabulary, chance)


def similarities(sets: Sequence[set[int]]) -> dict[tuple[int, int], float]:
    """The Jaccard similarity of every pair that has any."""
    holders: dict[int, list[int]] = {}
    for number, members in enumerate(sets):
        for member in members:
            holders.setdefault(member, []).append(number)
    shared = Counter(pair for rows in holders.values() for pair in combinations(rows, 2))
    return {
        (a, b): common / (len(sets[a]) + len(sets[b]) - common) for (a, b), common in shared.items()
    }


def meeting(band: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of documents with the same hash."""
    rows: dict[int, list[int]] = {}
    for number, value in enumerate(band):
        rows.setdefault(value, []).append(number)
    for together in rows.values():
        yield from combinations(together, 2)


def main() -> None:
    import ray

    asked = argparse.ArgumentParser()
    asked.add_argument("--source", default="python:docs")
    asked.add_argument("--sizes", type=float, nargs="+", default=[5, 25, 50, 100])
    asked.add_argument("--repeats", type=int, default=5)
    asked.add_argument("--documents", type=int, default=3000)
    asked.add_argument("--peer-mb", type=float, default=20)
    options = asked.parse_args()
    texts = texts_of(options.source, 20)
    quality(texts, options.documents)
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as place:
        write(grown(texts, 0.2), Path(place) / "warm")
        for run in (whole, ours):  # workers import once
            seconds(run, Path(place) / "warm")
        race(texts, options.peer_mb, options.repeats, Path(place))
        growth(texts, options.sizes, options.repeats, Path(place))
    ray.shutdown()


if __name__ == "__main__":
    main()
