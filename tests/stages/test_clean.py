"""Cleaning: counts add up, nothing depends on how the work was cut, and mistakes are explained."""

import gzip
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opencc import OpenCC

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean
from stages.data.documents import Documents, read_stats
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.text.cleaning_stats import CleaningStats
from stages.text.sources import source_listing
from stages.text.token_counter import TokenCounter
from stages.text.words.word_borders import word_spans
from stages.tokenize import TokenizerTrainParams, train_tokenizer

SENTENCE = """the of and to that have with be library function returns value object file names
when given each every path string number result error reads writes opens closes before after
between other first last while until because through"""
WORDS = SENTENCE.split()
LAX = {
    "length": {"characters": [1, None]},
    "gopher_quality": {"words": None, "stop_words": None, "word_length": [0, 10]},
}


def prose(seed, words=90):
    """English-looking text without a repeated line."""
    chance = random.Random(seed)
    picked = [
        chance.choice(WORDS) + (chance.choice("abcdefgh") * (i % 5 == 0)) for i in range(words)
    ]
    return ". ".join(" ".join(picked[i : i + 9]).capitalize() for i in range(0, words, 9)) + "."


def write_jsonl(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def run(folder, *names, dedup_against=(), tokenizer=None, **options):
    """Clean these sources in a fresh context of `folder`."""
    ctx = Context.local(folder)
    edges = {"dedup_against": [SimpleNamespace(path=earlier.out) for earlier in dedup_against]}
    if tokenizer is not None:
        edges["tokenizer"] = SimpleNamespace(path=tokenizer)
    params = CleanParams(sources=tuple(map(str, names)), **options)
    clean(params, Inputs(edges), ctx.out, ctx)
    return ctx


def bytes_of(ctx):
    files = sorted(path for path in ctx.out.rglob("*") if path.is_file())
    return {path.relative_to(ctx.out).as_posix(): path.read_bytes() for path in files}


def dropped_rows(ctx):
    return pq.read_table(ctx.out / "dropped").to_pylist()


@pytest.fixture
def corpus(tmp_path):
    """Good texts, copies of some, near-copies of others, and one for each common fault."""
    good = [prose(i) for i in range(40)]
    near = [good[i].replace("library", "module", 1) + " Indeed." for i in (3, 4)]
    bad = [
        "",
        "short",
        "# # # " * 100,
        "und die der das ist nicht ein eine mit von auf für " * 20,
        prose(77) + ("\nagain and again the same line" * 60),
        " ".join(str(n) for n in range(300)),
    ]
    folder = tmp_path / "corpus"
    write_jsonl(folder / "a.jsonl", [*good[:20], *bad, good[5]])
    write_jsonl(folder / "b.jsonl", [*good[20:], good[5], *near])
    (folder / "c.jsonl").write_text('{"text": "cut')
    (folder / "d.txt").write_text(prose(500))
    return folder


def test_every_document_ends_in_one_place_with_its_reason(corpus, tmp_path):
    ctx = run(tmp_path / "w", corpus, languages=("en",))
    kept, dropped = list(Documents(ctx.out)), dropped_rows(ctx)
    stats = read_stats(ctx.out)
    assert stats["read"]["documents"] == len(kept) + len(dropped) == 40 + 6 + 1 + 3 + 1 + 1
    characters = sum(len(d.text) for d in kept) + sum(len(d["text"]) for d in dropped)
    assert stats["read"]["characters"] == characters
    assert len({d.id for d in kept} | {d["id"] for d in dropped}) == 52
    reasons = {}
    for row in dropped:
        reasons.setdefault(row["rule"], []).append(row)
    assert {rule: len(rows) for rule, rows in reasons.items()} == {
        rule: counts["documents"] for rule, counts in stats["by_rule"].items()
    }
    assert len(reasons["exact_duplicate"]) == 2 and len(reasons["near_duplicate"]) == 2
    assert len(reasons["broken.json"]) == len(reasons["empty"]) == 1
    assert "language" in reasons and "gopher_repetition.duplicate_lines" in reasons
    assert all(d.lang == "en" and d.source == "corpus" for d in kept)
    places = [json.loads(d.meta) for d in kept]
    assert places[0] == {"line": 1, "place": "a.jsonl"} and places[-1] == {"place": "d.txt"}


def test_texts_that_differ_in_numbers_alone_are_kept_on_request(tmp_path):
    texts = [
        f"A tank holds {7 * i + 40} litres and loses {i + 3} litres in {i + 5} hours: after "
        f"{2 * i + 9} hours some {5 * i + 11} of {7 * i + 40} litres are left in the tank."
        for i in range(9)
    ]
    write_jsonl(tmp_path / "a.jsonl", texts)
    equal = run(tmp_path / "x", tmp_path / "a.jsonl", rules=())
    exact = run(tmp_path / "y", tmp_path / "a.jsonl", rules=(), dedup={"normalize_digits": False})
    assert len(list(Documents(equal.out))) == 1
    assert [document.text for document in Documents(exact.out)] == texts
    with pytest.raises(InputError, match="numbers compared"):
        run(tmp_path / "z", tmp_path / "a.jsonl", rules=(), dedup_against=[exact])


def test_of_copies_the_first_stays_and_of_near_copies_the_longest(corpus, tmp_path):
    ctx = run(tmp_path / "w", corpus)
    kept = [d.text for d in Documents(ctx.out)]
    assert kept.count(prose(5)) == 1
    assert prose(3) not in kept and any(text.endswith("Indeed.") for text in kept)
    scores = [r["score"] for r in dropped_rows(ctx) if r["rule"] == "near_duplicate"]
    assert all(0 < score < 1 for score in scores)
    loose = run(tmp_path / "x", corpus, dedup={"exact": False, "near": False})
    assert [d.text for d in Documents(loose.out)].count(prose(5)) == 3


def test_the_survivor_is_the_preferred_copy(tmp_path):
    longer, shorter = prose(1) + " Indeed.", prose(1)
    write_jsonl(tmp_path / "a" / "a.jsonl", [prose(9), shorter])
    write_jsonl(tmp_path / "b" / "b.jsonl", [longer, prose(9)])
    a, b = tmp_path / "a", tmp_path / "b"
    for number, (sources_, preferences, places) in enumerate(
        [
            ((a, b), ("length",), [("a", 0), ("b", 0)]),
            ((a, b), (), [("a", 0), ("a", 1)]),
            ((b, a), ("source", "length"), [("b", 0), ("b", 1)]),
            ((a, b), ("source", "length"), [("a", 0), ("a", 1)]),
        ]
    ):
        ctx = run(tmp_path / str(number), *sources_, dedup={"prefer": preferences})
        found = [(d.source, json.loads(d.meta)["line"] - 1) for d in Documents(ctx.out)]
        assert found == places


def test_the_most_confident_language_can_be_preferred(tmp_path):
    mixed = prose(1, 400) + " Und das ist das Ende."
    write_jsonl(tmp_path / "a.jsonl", [mixed, prose(1, 400)])
    kept = {}
    for preference in ("length", "language"):
        ctx = run(tmp_path / preference, tmp_path / "a.jsonl", dedup={"prefer": [preference]})
        (kept[preference],) = [d.text for d in Documents(ctx.out)]
    assert kept == {"length": mixed, "language": prose(1, 400)}


def test_a_score_or_a_field_can_be_preferred(tmp_path):
    texts = [prose(1), prose(1) + " Indeed.", prose(1) + " And and that."]
    quality = ["0.2", 0.9, None]
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps({"text": text, "quality": value}) + "\n"
            for text, value in zip(texts, quality, strict=True)
        )
    )
    for preferences, stays in (
        (("meta.quality",), 1),
        (("-meta.quality",), 0),
        (("gopher_quality.words",), 2),
        (("-gopher_quality.words", "length"), 0),
        (("gopher_quality.bullet_lines", "length"), 2),
    ):
        ctx = run(
            tmp_path / "+".join(preferences),
            tmp_path / "a.jsonl",
            meta_columns=("quality",),
            dedup={"prefer": preferences},
        )
        assert [d.text for d in Documents(ctx.out)] == [texts[stays]]


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ("meta.quality", "'quality' is not in `meta_columns`"),
        ("-c4.sentences", "the rule set 'c4' is not in `rules`"),
        ("lenght", "'lenght' is not one of source, length, language, a score or a field"),
        ("gopher_quality.wordz", "gopher_quality has no rule 'wordz'"),
    ],
)
def test_an_unknown_preference_is_refused(preference, message):
    (problem,) = CleanParams(sources=("x",), dedup={"prefer": [preference]}).check({})
    assert problem.key == "dedup.prefer" and problem.message == message


def test_a_text_in_traditional_characters_is_a_copy_of_the_simplified_one(tmp_path):
    simplified = (
        "汉语是世界上使用人数最多的语言之一。学习汉语需要时间和耐心，也需要经常练习听说读写。" * 6
    )
    traditional = OpenCC("s2t").convert(simplified)
    other = "天气预报说明天会下雨，请大家出门的时候带好雨伞，注意安全，早一点回家吃晚饭。" * 6
    write_jsonl(tmp_path / "a.jsonl", [traditional, other, simplified])
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", rules=("length",))
    assert [d.text for d in Documents(ctx.out)] == [traditional, other]  # written as they were
    (row,) = dropped_rows(ctx)
    assert (row["rule"], row["score"]) == ("near_duplicate", 1.0)


def test_verified_copies_are_as_similar_as_asked(tmp_path):
    words = prose(1, 300).split()
    altered = " ".join([*words[:270], *prose(2, 30).split()])
    write_jsonl(tmp_path / "a.jsonl", [" ".join(words), altered, " ".join(words) + " Indeed."])
    loose = {"num_bands": 28, "rows_per_band": 2}
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", dedup=loose)
    assert len(list(Documents(ctx.out))) == 1
    ctx = run(
        tmp_path / "x", tmp_path / "a.jsonl", dedup={**loose, "verify": True, "threshold": 0.95}
    )
    assert [row["text"] for row in dropped_rows(ctx)] == [" ".join(words)]


@pytest.mark.parametrize("dedup", [{}, {"verify": True}])
def test_earlier_documents_always_win(tmp_path, dedup):
    old, new = [prose(i) for i in range(6)], [prose(i) for i in range(10, 16)]
    near_old, near_new = (
        prose(1).replace("library", "module", 1) + " Indeed.",
        prose(10) + " Indeed.",
    )
    write_jsonl(tmp_path / "old.jsonl", [*old, old[2]])
    write_jsonl(tmp_path / "new.jsonl", [old[0], *new, near_old, near_new, old[0], old[5]])
    before = run(tmp_path / "before", tmp_path / "old.jsonl", dedup=dedup)
    index = pq.read_table(before.out / "index")
    assert index.num_rows == 6 and "text" not in index.column_names
    ctx = run(tmp_path / "after", tmp_path / "new.jsonl", dedup_against=[before], dedup=dedup)
    assert [d.text for d in Documents(ctx.out)] == [*new[1:], near_new]
    reasons = [(row["rule"], row["text"]) for row in dropped_rows(ctx)]
    assert reasons == [
        ("exact_duplicate_earlier", old[0]),
        ("near_duplicate", new[0]),
        ("near_duplicate_earlier", near_old),
        ("exact_duplicate_earlier", old[0]),
        ("exact_duplicate_earlier", old[5]),
    ]
    assert all(row["score"] > 0.5 for row in dropped_rows(ctx))
    assert json.loads((ctx.observed / "results.json").read_text())["duplicates"] == 5
    # Two earlier artifacts count together: nothing of either comes in again.
    write_jsonl(tmp_path / "third.jsonl", [old[3], new[3], prose(99)])
    last = run(
        tmp_path / "last", tmp_path / "third.jsonl", dedup_against=[before, ctx], dedup=dedup
    )
    assert [d.text for d in Documents(last.out)] == [prose(99)]


def test_earlier_documents_must_be_comparable(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [prose(1)])
    source = tmp_path / "a.jsonl"
    plain = run(tmp_path / "plain", source, dedup={"save_index": False})
    assert not (plain.out / "index").exists()
    with pytest.raises(InputError, match="have no index"):
        run(tmp_path / "w", source, dedup_against=[plain])
    other = run(tmp_path / "other", source, dedup={"ngram_size": 4})
    with pytest.raises(InputError, match=r"hashed as 4-grams of words .* these as 5-grams"):
        run(tmp_path / "x", source, dedup_against=[other])
    ours = CleanParams(sources=("a",))
    for dedup, message in (
        ({"ngram_size": 4}, "has hashes of 4-grams"),
        ({"save_index": False}, "no index"),
    ):
        (problem,) = ours.check({"dedup_against[0]": CleanParams(sources=("b",), dedup=dedup)})
        assert problem.key == "dedup_against[0]" and message in problem.message
    assert not list(ours.check({"dedup_against[0]": CleanParams(sources=("b",))}))


def test_the_score_is_the_measure_that_failed(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [prose(1), "the of and " * 3])
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", limits={"length": {"characters": [50, None]}})
    (row,) = dropped_rows(ctx)
    assert (row["rule"], row["score"]) == ("length.characters", 32.0)  # trailing blank trimmed


def test_the_cut_into_shards_changes_no_byte(corpus, tmp_path, monkeypatch):
    table = pa.table({"text": [prose(i) for i in range(600, 620)]})
    pq.write_table(table, corpus / "e.parquet", row_group_size=3)
    with (corpus / "b.jsonl").open("a") as lines:
        lines.write('\n \n{"te\n' + json.dumps({"text": prose(901)}))
    whole = bytes_of(run(tmp_path / "one", corpus))
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 1)
    assert len(source_listing.make_shards(source_listing.list_files([str(corpus)]))) > 55
    assert bytes_of(run(tmp_path / "two", corpus)) == whole
    tables = {f"{name}/part-00000.parquet" for name in ("documents", "dropped", "index")}
    assert {"stats.json", *tables} == set(whole)


def test_where_the_corpus_lies_changes_no_byte(corpus, tmp_path):
    before = bytes_of(run(tmp_path / "one", corpus))
    digest = CleanParams(sources=(str(corpus),)).externals()
    moved = tmp_path / "other" / "corpus"
    moved.parent.mkdir()
    corpus.rename(moved)
    assert bytes_of(run(tmp_path / "two", moved)) == before
    assert CleanParams(sources=(str(moved),)).externals() == digest


def test_stopped_anywhere_it_goes_on_to_the_same_bytes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 1)
    expected = bytes_of(run(tmp_path / "whole", corpus))
    for stop in range(4):
        folder = tmp_path / f"stopped-{stop}"
        annotated = folder / "scratch" / "annotated"
        ctx = Context.local(folder)
        real = Context.check_cancelled

        def check(self, annotated=annotated, stop=stop, real=real):
            if len(list(annotated.glob("*.seal"))) > stop:
                self.cancel_file.touch()
            real(self)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(Context, "check_cancelled", check)
            run(folder, corpus)
        ctx.cancel_file.unlink()
        (ctx.out / "documents").mkdir(exist_ok=True)
        (ctx.out / "documents" / "part-00007.parquet").write_text("left by a kill while writing")
        assert bytes_of(run(folder, corpus)) == expected


@pytest.mark.parametrize(("cap", "read"), [(1, 1), (7, 7), (45, 45), (1000, 52)])
def test_a_cap_reads_the_first_documents(corpus, tmp_path, cap, read, monkeypatch):
    everything = run(tmp_path / "all", corpus, dedup={"exact": False, "near": False})
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 1)
    ctx = run(tmp_path / "w", corpus, max_documents=cap, dedup={"exact": False, "near": False})
    assert read_stats(ctx.out)["read"]["documents"] == read
    kept = [d.id for d in Documents(ctx.out)]
    assert kept == [d.id for d in Documents(everything.out)][: len(kept)]


def test_a_cap_on_characters_is_never_passed(corpus, tmp_path):
    ctx = run(tmp_path / "w", corpus, max_characters=5_000)
    assert 4_000 < read_stats(ctx.out)["read"]["characters"] <= 5_000


TEXTS = st.text(max_size=80) | st.sampled_from(
    [prose(1), prose(2), f"{prose(1)}\n{prose(4)}", f"{prose(4)}\n\n{prose(2)}", "x", "汉语" * 40]
)
CUTS = {
    "min_repeated_line": 20,
    "min_repeated_paragraph": 40,
    "min_repeated_substring": 60,
    "min_remaining": 1,
}
SETS = ("length", "gopher_quality", "gopher_repetition")
EDITS = ("boilerplate", "c4", "simplified_chinese", "whole_sentences")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(TEXTS, min_size=1),
    st.sampled_from([{}, {"near": False}, CUTS, {"exact": False, **CUTS}, {"verify": True}]),
    st.sets(st.sampled_from(EDITS)),
    st.integers(1, 300),
)
def test_counts_add_up_for_any_texts(tmp_path_factory, texts, dedup, edits, shard_bytes):
    """Documents, characters and words, at every step, however the work was cut."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*texts, prose(3)])
    )
    options = {"limits": LAX, "dedup": dedup, "edits": sorted(edits), "rules": SETS}
    ctx = run(folder / "w", folder / "a.jsonl", **options)
    stats = read_stats(ctx.out)
    assert stats["read"]["documents"] == len(texts) + 1
    for unit in ("documents", "characters", "words"):
        total = stats["kept"][unit] + stats["dropped"][unit] + stats["removed"][unit]
        assert stats["read"][unit] == total
        assert stats["dropped"][unit] == sum(c[unit] for c in stats["by_rule"].values())
        if unit != "documents":
            for table in ("by_source", "by_language"):
                assert stats["kept"][unit] == sum(c[unit] for c in stats[table].values())
    took = stats["taken_out"]
    assert stats["source_characters"] == stats["read"]["characters"] + sum(took.values())
    assert stats["kept"]["words"] == sum(len(word_spans(d.text)) for d in Documents(ctx.out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_listing, "SHARD_BYTES", shard_bytes)
        assert bytes_of(run(folder / "x", folder / "a.jsonl", **options)) == bytes_of(ctx)


@pytest.mark.parametrize("dedup", [{}, CUTS])
def test_tokens_are_counted_where_there_is_a_tokenizer(corpus, tmp_path, dedup):
    write_jsonl(corpus / "r.jsonl", [f"{prose(20)}\n{prose(950)}"])
    trained = run(tmp_path / "w", corpus)
    ctx = Context.local(tmp_path / "t")
    inputs = Inputs({"documents": [SimpleNamespace(path=trained.out)]})
    train_tokenizer(TokenizerTrainParams(vocab_size=400), inputs, ctx.out, ctx)
    counted = run(tmp_path / "x", corpus, tokenizer=ctx.out, dedup=dedup)
    tokenizer, stats = Tokenizer(ctx.out), read_stats(counted.out)

    def tokens(texts):
        return sum(len(tokenizer.encode(text)) for text in texts)

    assert stats["kept"]["tokens"] == tokens(d.text for d in Documents(counted.out)) > 1000
    assert stats["dropped"]["tokens"] == tokens(row["text"] for row in dropped_rows(counted))
    parts = [stats[part]["tokens"] for part in ("kept", "dropped", "removed")]
    assert stats["read"]["tokens"] == sum(parts) and (parts[2] > 0) == bool(dedup)
    panels = {p["title"]: p for p in json.loads((counted.observed / "panels.json").read_text())}
    assert panels["Cleaning: tokens"]["steps"][-1] == ["kept", parts[0]]
    results = json.loads((counted.observed / "results.json").read_text())
    assert results["tokens"] == parts[0]


def test_hostile_text_stops_nothing(tmp_path):
    hostile = [
        "".join(map(chr, range(1, 256))) * 4,
        "\u202e" + prose(1) + "\u2066",
        "\ud800\udfff lone " + prose(2),
        "</s><|user|> " + prose(3),
        "w" * 1_000_000,
        "\0" * 10_000,
        ("e" + "\u0301" * 50) * 2_000,
        "\n" * 100_000 + "x",
        "日本語" * 5_000,
        "…" * 20_000,
    ]
    write_jsonl(tmp_path / "a.jsonl", [*hostile, prose(9)])
    (tmp_path / "b.txt").write_bytes(bytes(range(256)) * 200)
    ctx = run(tmp_path / "w", tmp_path / "*.*")
    stats = read_stats(ctx.out)
    assert stats["read"]["documents"] == 12
    kept = [d.text for d in Documents(ctx.out)]
    assert prose(9) in kept and prose(1) in kept and "</s><|user|> " + prose(3) in kept
    shown = (ctx.observed / "panels.json").read_text()
    assert "\\u202e" not in shown and "\\u0000" not in shown


def test_broken_records_are_reported_and_stop_nothing(tmp_path):
    lines = b"".join(json.dumps({"text": prose(i)}).encode() + b"\n" for i in range(300))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-2000])
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": prose(900)}) + '\n{"te\n{"body": "x"}\n')
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    ctx = run(tmp_path / "w", tmp_path / "*.*")
    stats = read_stats(ctx.out)
    assert stats["kept"]["documents"] > 100
    broken = {name: n["documents"] for name, n in stats["by_rule"].items() if "broken" in name}
    assert broken == {"broken.file": 2, "broken.json": 1, "broken.text_column": 1}
    log = (ctx.attempt_dir / "log.txt").read_text()
    assert "a.jsonl.gz: cannot read the source: Compressed file ended" in log
    assert "b.jsonl line 2: not JSON" in log and "c.parquet: not a parquet file" in log
    assert json.loads((ctx.observed / "results.json").read_text())["broken"] == 4
    with pytest.raises(InputError, match=r"4 records or files are broken, more than .* \(3\)"):
        run(tmp_path / "x", tmp_path / "*.*", max_broken=3)
    assert run(tmp_path / "y", tmp_path / "*.*", max_broken=4)


def test_a_column_that_no_file_has_is_the_users_mistake(tmp_path):
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    with pytest.raises(InputError, match="no column 'text'"):
        run(tmp_path / "w", tmp_path / "a.csv")


def test_an_empty_result_is_explained(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["Das ist ein deutscher Satz über nichts."] * 3)
    with pytest.raises(
        InputError, match="none of 3 documents is kept: dropped 3 by language"
    ) as error:
        run(tmp_path / "w", tmp_path / "a.jsonl", languages=("en",))
    assert "languages" in error.value.remedy and error.value.exit_code == 2
    with pytest.raises(InputError, match=r"3 by length\.characters") as error:
        run(tmp_path / "x", tmp_path / "a.jsonl")
    assert "`limits.length.characters`" in error.value.remedy


@pytest.mark.parametrize(
    ("content", "place", "remedy"),
    [
        ('{"text": "one\n{"text": "two\n', "a.jsonl line 1", "one JSON object per line"),
        ('{"body": "one"}\n{"body": "two"}', "a.jsonl line 1", "set `text_column`"),
        ('{"text": " "}\n', "sources", "name sources of text"),
    ],
)
def test_the_remedy_of_an_empty_result_fits_its_reason(tmp_path, content, place, remedy):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match="is kept: dropped") as error:
        run(tmp_path / "w", tmp_path / "a.jsonl", rules=())
    assert place in error.value.where and remedy in error.value.remedy


def test_copies_of_earlier_documents_alone_are_explained(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [prose(1)])
    earlier = run(tmp_path / "w", tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="1 by exact_duplicate_earlier") as error:
        run(tmp_path / "x", tmp_path / "a.jsonl", dedup_against=[earlier])
    assert "`dedup_against`" in error.value.remedy


def test_remedies_name_a_limit_where_there_is_one():
    code = "".join(path.read_text() for path in Path("stages/text").rglob("*.py"))
    reasons = set(re.findall(r'"(broken\.\w+|\w+_duplicate|repeated_text|language|empty)"', code))
    assert len(reasons) > 8
    for reason in reasons - {"exact_duplicate", "near_duplicate"}:  # of these, one is kept
        stats = CleaningStats()
        stats.count("s", reason, {"documents": 1})
        assert "limits" not in stats.empty_remedy()
    stats.count("s", "length.characters", {"documents": 2})
    assert stats.empty_remedy().startswith("loosen `limits.length.characters`")


def test_sources_without_documents_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="no documents within the limits"):
        run(tmp_path / "w", tmp_path / "a.jsonl")


def test_an_unreadable_source_is_named_before_anything_runs(tmp_path):
    missing = CleanParams(sources=(str(tmp_path / "none.txt"),))
    with pytest.raises(InputError, match="does not exist"):
        missing.externals()


def test_people_are_masked_in_what_is_kept_and_in_what_is_dropped(tmp_path):
    original = f"{prose(1)} Write to ada@example.org or bob@example.org at 8.8.8.8."
    texts = [original, original.replace("ada", "eve"), "call bob@example.org"]
    write_jsonl(tmp_path / "a.jsonl", texts)
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", pii={"entities": ["email", "ip"]})
    rows = [d.text for d in Documents(ctx.out)] + [row["text"] for row in dropped_rows(ctx)]
    assert rows[0].endswith("Write to [EMAIL] or [EMAIL] at [IP].")
    # Alike once masked, the second is a copy.
    assert [row["rule"] for row in dropped_rows(ctx)] == ["exact_duplicate", "length.characters"]
    assert not any("@" in text for text in rows)
    stats = read_stats(ctx.out)
    assert stats["masked"] == {"email": 5, "ip": 2}
    assert stats["read"]["characters"] == sum(map(len, rows))
    panels = {p["title"]: p for p in json.loads((ctx.observed / "panels.json").read_text())}
    assert panels["Masked"]["rows"] == [["email", 5], ["ip", 2]]
    plain = run(tmp_path / "x", tmp_path / "a.jsonl")
    assert "ada@example.org" in next(iter(Documents(plain.out))).text
    assert read_stats(plain.out)["masked"] == {}


def test_the_report_shows_counts_scores_and_documents(corpus, tmp_path):
    ctx = run(tmp_path / "w", corpus)
    panels = {p["title"]: p for p in json.loads((ctx.observed / "panels.json").read_text())}
    for unit in ("documents", "characters", "words"):
        steps = panels[f"Cleaning: {unit}"]["steps"]
        assert steps[0][0] == "read" and steps[-1][0] == "kept"
        assert sum(count for _, count in steps[:-1]) == steps[-1][1]
    assert panels["Sources"]["rows"][0][0] == "corpus"
    clusters = panels["Largest groups of copies"]["items"]
    assert clusters[0]["copies"] == "3" and clusters[0]["kept"].startswith("a.jsonl: ")
    kept = read_stats(ctx.out)["kept"]["documents"]
    assert sum(panels["Characters per kept document"]["counts"]) == kept
    results = json.loads((ctx.observed / "results.json").read_text())
    assert results["documents"] == kept and results["duplicates"] == 4
    words = panels["gopher_quality.words"]
    assert words["thresholds"] == [50, 100_000] and sum(words["counts"]) == 50
    (side,) = [
        item
        for item in panels["On either side of a limit"]["items"]
        if item["rule"] == "length.characters, from 200 to 1,000,000"
    ]
    assert side["the best dropped document"] == "5: short"
    assert float(side["the worst kept document"].split(":")[0]) >= 200
    browsed = panels["Documents, kept and dropped: a sample"]["items"]
    assert len(browsed) == 52 and {"kept", "exact_duplicate"} < {i["outcome"] for i in browsed}


def test_of_the_copies_that_are_shown_the_survivor_stays(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [prose(1), prose(1) + " Indeed.", prose(1)])
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", dedup={"prefer": ["length"], "exact": False})
    assert [d.text for d in Documents(ctx.out)] == [prose(1) + " Indeed."]
    panels = {p["title"]: p for p in json.loads((ctx.observed / "panels.json").read_text())}
    (group,) = panels["Largest groups of copies"]["items"]
    stays, goes = prose(1) + " Indeed.", prose(1)
    assert group["copies"] == "3" and len(stays) > 200
    for shown, text in ((group["kept"], stays), (group["dropped"], goes)):
        assert shown.startswith("a.jsonl: " + text[:100])
    ends = run(tmp_path / "x", tmp_path / "a.jsonl", dedup={"prefer": ["-gopher_quality.words"]})
    assert [d.text for d in Documents(ends.out)] == [prose(1)]


def test_every_score_is_recorded_with_every_document(corpus, tmp_path):
    ctx = run(tmp_path / "w", corpus, rules=("length", "gopher_quality", "chinese"))
    kept = pq.read_table(ctx.out / "documents").to_pylist()
    dropped = dropped_rows(ctx)
    for row in kept + dropped:
        scores = row["scores"]
        assert len(scores) == 1 + 8 + 3 and scores["chinese.share"] is None
        if row.get("rule", "").startswith("broken") or row.get("rule") == "empty":
            assert set(scores.values()) == {None}
        else:
            assert scores["length.characters"] == len(row["text"])
        if "." in row.get("rule", "") and not row["rule"].startswith("broken"):
            assert row["score"] == scores[row["rule"]]
    short = next(row for row in dropped if row["rule"] == "length.characters")
    assert short["scores"]["gopher_quality.words"] == 1  # not only the first that failed


def test_other_limits_need_no_second_reading(corpus, tmp_path, monkeypatch):
    """The same cache, another stage: only the scores decide, and the bytes are the same."""
    from stages.curation import annotation

    narrow = {"limits": {"length": {"characters": [400, None]}}, "languages": ("en",)}
    expected = bytes_of(run(tmp_path / "fresh", corpus, **narrow))
    first = run(tmp_path / "one", corpus)

    def read_again(*_):
        raise AssertionError("a text was read again")

    monkeypatch.setattr(annotation, "annotate_pieces", read_again)
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "cache").rename(tmp_path / "two" / "cache")
    assert bytes_of(run(tmp_path / "two", corpus, **narrow)) == expected != bytes_of(first)
    (tmp_path / "three").mkdir()
    (tmp_path / "two" / "cache").rename(tmp_path / "three" / "cache")
    with pytest.raises(AssertionError, match="read again"):
        run(tmp_path / "three", corpus, rules=("length",))


@pytest.mark.parametrize(
    "change",
    [
        {"rules": ("length",)},
        {"edits": ("boilerplate",)},
        {"pii": {"entities": ["email"]}},
        {"dedup": {"ngram_size": 4}},
        {"text_column": "body"},
        {"meta_columns": ("url",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_measured_otherwise_is_read_again(corpus, tmp_path, change):
    from stages.clean import _annotation_key

    def key(params, shards=(), counter=TokenCounter()):  # noqa: B008
        return _annotation_key(params, params.externals(), list(shards), counter)

    plain = CleanParams(sources=(str(corpus),))
    before = key(plain)
    assert key(CleanParams(sources=(str(corpus),), **change)) != before
    shards = source_listing.make_shards(source_listing.list_files(plain.sources))
    assert key(plain, shards) != before
    assert key(plain, counter=TokenCounter(SimpleNamespace(digest="a tokenizer"))) != before
    (corpus / "d.txt").write_text(prose(501))
    assert key(plain) != before


def test_what_edits_take_out_is_counted(tmp_path):
    page = f"Skip to main content\n{prose(1)}\n\ntoo short\n{prose(2)}"
    write_jsonl(tmp_path / "a.jsonl", ["\ufeff" + page])
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", edits=("boilerplate", "c4"))
    (document,) = Documents(ctx.out)
    assert document.text == f"{prose(1)}\n{prose(2)}"
    stats = read_stats(ctx.out)
    taken = stats["taken_out"]
    assert taken == {"repair": 1, "boilerplate": 21, "c4": len("\n\ntoo short\n") - 1}
    assert stats["source_characters"] == len(page) + 1
    assert stats["read"]["characters"] == len(document.text)
    panels = {p["title"]: p for p in json.loads((ctx.observed / "panels.json").read_text())}
    steps = panels["Cleaning: characters"]["steps"]
    assert ["boilerplate", -21] in steps and sum(n for _, n in steps[:-1]) == steps[-1][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": {"c4": {"sentences": 2}}}, "the rule set 'c4' is not in `rules`"),
        ({"rules": ("length", "length")}, "rules: lists a value twice"),
        ({"rules": ("lists",)}, "lists: the rule set and its files go together"),
        ({"lists": {"words": "x.txt"}}, "lists: the rule set and its files go together"),
        ({"edits": ("languages",)}, "edits: `languages` needs the languages to keep"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, message):
    problems = CleanParams(sources=("x",), **options).check({})
    assert any(message in str(problem) for problem in problems)


def test_lists_are_read_and_belong_to_the_fingerprint(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [prose(1), f"{prose(2)} Gamble now."])
    (tmp_path / "words.txt").write_text("gamble now\n")
    options = {"rules": ("length", "lists"), "lists": {"words": str(tmp_path / "words.txt")}}
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", **options)
    assert [row["rule"] for row in dropped_rows(ctx)] == ["lists.words"]
    before = CleanParams(sources=(str(tmp_path / "a.jsonl"),), **options).externals()
    (tmp_path / "words.txt").write_text("gamble\n")
    after = CleanParams(sources=(str(tmp_path / "a.jsonl"),), **options).externals()
    assert before["lists.words"] != after["lists.words"]


def test_the_documentation_of_this_python_is_english_prose(tmp_path, monkeypatch):
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 500_000)
    ctx = run(tmp_path / "w", "python:docs", languages=("en",), max_characters=150_000)
    stats = read_stats(ctx.out)
    assert stats["kept"]["characters"] > 0.5 * stats["read"]["characters"] > 60_000
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 300_000)
    again = run(tmp_path / "x", "python:docs", languages=("en",), max_characters=150_000)
    assert bytes_of(ctx) == bytes_of(again)


def test_parameters_that_cannot_work_are_named():
    params = CleanParams(sources=("a", "a"), languages=("English", "en"))
    assert [p.key for p in params.check({})] == ["languages", "sources"]
    assert list(CleanParams(sources=("a",), languages=("en", "deu")).check({})) == []
    assert CleanParams(sources=("a",)).estimate({}) == {}
    assert CleanParams(sources=("a",), max_characters=10**6).estimate({})["seconds"] > 1
