"""Repeated text against brute force on strings, however the work is cut."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.context import Context
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean
from stages.data.documents import Documents, read_stats
from stages.text.dedup import hash_join
from stages.text.dedup.rolling_hash import RollingHash, sliding_extremum, winnow
from stages.text.sources import source_listing


def run(folder, files, **dedup):
    """Clean each list of texts as a file, without rules or copies."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, texts in enumerate(files):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (corpus / f"{number:03d}.jsonl").write_text(lines)
    ctx = Context.local(folder / "w")
    dedup = {"exact": False, "near": False, "min_remaining": 1, **dedup}
    clean(CleanParams(sources=(str(corpus),), rules=(), dedup=dedup), Inputs({}), ctx.out, ctx)
    return ctx


def left(ctx):
    return [document.text for document in Documents(ctx.out)]


def brute(texts, least):
    """Without every character in a run of `least` that occurred before."""
    seen, results = set(), []
    for text in texts:
        stays = [True] * len(text)
        for start in range(len(text) - least + 1):
            if text[start : start + least] in seen:
                stays[start : start + least] = [False] * least
            seen.add(text[start : start + least])
        results.append("".join(c for c, kept in zip(text, stays, strict=True) if kept))
    return results


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([20, 21, 33]), st.integers(1, 4))
def test_substrings_are_those_of_brute_force(tmp_path_factory, seed, least, shards):
    chance = random.Random(seed)
    alphabet = chance.choice(["ab", "abcdefgh 床é\U00020000"])
    pool = ["".join(chance.choices(alphabet, k=chance.randrange(1, 90))) for _ in range(6)]
    texts = ["x" + "".join(chance.choices(pool, k=chance.randrange(1, 5))) + "y" for _ in range(8)]
    texts = [" ".join(text.split()) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_listing, "SHARD_BYTES", 1)
        patch.setattr(hash_join, "RECORDS_PER_TASK", chance.choice([5, 100, 10**6]))
        files = [texts[at::shards] for at in range(shards)]
        ctx = run(tmp_path_factory.mktemp("s"), files, min_repeated_substring=least)
    order = [text for file in files for text in file]
    expected = brute(order, least)
    assert left(ctx) == [text for text in expected if text]
    stats = read_stats(ctx.out)
    assert (
        stats["read"]["characters"]
        == sum(map(len, texts))
        == sum(stats[state]["characters"] for state in ("kept", "dropped", "removed"))
    )


def test_the_first_document_keeps_the_line(tmp_path):
    first = "The same line stands here.\nOnly the first has this.\nshort"
    second = "Another beginning\nthe SAME line  stands here.\nshort\nAnd an end."
    third = "The same line stands here.\nThe same line stands here."
    ctx = run(tmp_path, [[first], [second, third]], min_repeated_line=10)
    assert left(ctx) == [first, "Another beginning\nshort\nAnd an end."]
    (row,) = pq.read_table(ctx.out / "dropped").to_pylist()
    assert (row["rule"], row["score"], row["text"]) == ("repeated_text", 1.0, third)
    stats = read_stats(ctx.out)
    lost = "the SAME line  stands here.\n"
    assert stats["removed"] == {"documents": 0, "characters": len(lost), "words": 5}
    results = json.loads((ctx.observed / "results.json").read_text())
    assert results["characters_removed"] == stats["removed"]["characters"]
    panels = {p["title"]: p for p in json.loads((ctx.observed / "panels.json").read_text())}
    steps = panels["Cleaning: characters"]["steps"]
    assert ["repeated text", -28] in steps
    assert sum(count for _, count in steps[:-1]) == steps[-1][1]


def test_the_first_document_keeps_the_paragraph(tmp_path):
    shared = "A paragraph of two lines\nthat others quote."
    texts = [f"One.\n\n{shared}", f"{shared}\n\nTwo.\n\n{shared.upper()}", "that others quote."]
    ctx = run(tmp_path, [texts], min_repeated_paragraph=12)
    assert left(ctx) == [texts[0], "Two.", texts[2]]


def test_too_little_left_drops_the_document_as_it_was(tmp_path):
    shared = "".join(random.Random(0).choices("abcdefgh", k=300))
    tail = "".join(random.Random(1).choices("abcdefgh", k=200))
    texts = [shared, f"{shared} and a bit", f"{shared}{tail}"]
    ctx = run(tmp_path, [texts], min_repeated_substring=50, min_remaining=100)
    assert left(ctx) == [shared, tail]
    (row,) = pq.read_table(ctx.out / "dropped").to_pylist()
    assert row["text"] == texts[1] and row["score"] == pytest.approx(300 / 310)


def test_copies_that_are_dropped_repeat_nothing(tmp_path):
    """The survivor, read later than the copy that goes, keeps its text."""
    text = ". ".join("".join(random.Random(at).choices("abcdefgh ", k=60)) for at in range(20))
    ctx = run(
        tmp_path, [[text, f"{text} It is the longer one."]], near=True, min_repeated_substring=50
    )
    assert left(ctx) == [f"{text} It is the longer one."]


@given(st.text(alphabet="ab床\ud800", max_size=60), st.integers(1, 9))
def test_runs_are_equal_where_their_hashes_are(text, width):
    hashes = RollingHash(text).hashes(width).tolist()
    runs = [text[at : at + width] for at in range(len(text) - width + 1)]
    assert len(hashes) == len(runs) and len(set(hashes)) == len(set(runs))
    assert dict(zip(runs, hashes, strict=True)) == dict(zip(runs[::-1], hashes[::-1], strict=True))


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 12))
def test_anchors_are_the_least_of_some_window(values, width):
    hashes = np.array(values, np.uint64)
    windows = [range(at, at + width) for at in range(len(values) - width + 1)]
    least = [min(values[at] for at in window) for window in windows]
    chosen = {at for w, low in zip(windows, least, strict=True) for at in w if values[at] == low}
    assert set(winnow(hashes, width).tolist()) == chosen
    if windows:
        assert sliding_extremum(hashes, width, np.minimum).tolist() == least
