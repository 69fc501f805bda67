"""Decontamination against brute force on strings; counts add up; nothing passes silently."""

import json
import random
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from pipeline.stage import Inputs
from stages.data import documents, parquet_parts
from stages.data.documents import Documents, read_stats
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.decontaminate import DecontaminateParams, decontaminate
from stages.text.char_spans import complement_spans, merge_spans
from stages.text.decontamination.contamination_detector import SpanRemoval
from stages.text.words.word_borders import word_spans
from stages.text.words.word_table import WordTable
from stages.tokenize import TokenizerTrainParams, train_tokenizer

WORDS = [a + b + c for a in "bdgkl" for b in "aeiou" for c in "mnrst"]


def sentence(seed, words=30):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def write_documents(folder, texts):
    """A Documents artifact of these texts."""
    with documents.documents_writer(folder) as kept:
        for number, text in enumerate(texts):
            row = {"id": f"d{number}", "text": text, "source": "s", "lang": "en", "meta": "{}"}
            kept.write(row)
    return folder


def write_set(path, texts, field="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


def run(folder, corpus, *sets, **options):
    ctx = Context.local(folder)
    inputs = Inputs({"documents": SimpleNamespace(path=corpus)})
    decontaminate(DecontaminateParams(eval_sets=sets, **options), inputs, ctx.out, ctx)
    return ctx


def kept(ctx):
    return {document.id: document.text for document in Documents(ctx.out)}


def dropped(ctx):
    return {row["id"]: row["score"] for row in pq.read_table(ctx.out / "dropped").to_pylist()}


def panels(ctx):
    return {p["title"]: p for p in json.loads((ctx.observed / "panels.json").read_text())}


def ngrams(text, n):
    words = text.split()
    n = min(n, len(words))
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def holds(document, ngram):
    return f" {ngram} " in f" {document} "


def brute_overlap(document, items, n, most, corpus):
    """The largest share of any item's n-grams in the document, by looking for strings."""
    best = 0.0
    for item in items:
        if len(item.split()) < 8:
            continue
        counted = [
            g for g in ngrams(item, n) if most is None or sum(holds(t, g) for t in corpus) <= most
        ]
        if holds(document, item):
            best = 1.0
        elif counted:
            best = max(best, sum(holds(document, g) for g in counted) / len(counted))
    return best


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([8, 10, 13]), st.sampled_from([None, 2, 10]))
def test_overlaps_are_those_of_brute_force(tmp_path_factory, seed, n, most):
    chance, folder = random.Random(seed), tmp_path_factory.mktemp("brute")
    items = [sentence(seed + i, chance.choice([3, 8, 11, 13, 20, 30])) for i in range(6)]
    items.append(sentence(seed, 30))  # at least one is long enough
    texts = []
    for number in range(20):
        words = sentence(seed + 100 + number, 60).split()
        if chance.random() < 0.6:
            item = chance.choice(items).split()
            start = chance.randrange(len(item))
            words[20:20] = item[start : start + chance.randrange(1, 30)]
        texts.append(" ".join(words))
    limit = chance.choice([0.0, 0.2, 0.5])
    corpus = write_documents(folder / "c", texts)
    name = write_set(folder / "e" / "a.jsonl", items)
    ctx = run(
        folder / "w", corpus, name, ngram_size=n, max_document_frequency=most, max_overlap=limit
    )
    expected = [brute_overlap(text, items, n, most, texts) for text in texts]
    scores = dropped(ctx)
    for number, overlap in enumerate(expected):
        assert scores.get(f"d{number}", 0.0) == pytest.approx(overlap if overlap > limit else 0.0)
    assert kept(ctx) == {f"d{i}": texts[i] for i, o in enumerate(expected) if o <= limit}
    stats = read_stats(ctx.out)
    assert stats["read"]["documents"] == 20 == stats["kept"]["documents"] + len(scores)
    for row in pq.read_table(ctx.out / "matches").to_pylist():
        matched = texts[int(row["document"][1:])][row["start"] : row["end"]]
        item = items[int(row["item"].split()[1]) - 1]
        assert holds(item, matched) and len(matched.split()) == min(n, len(item.split()))


def test_case_punctuation_and_accents_hide_nothing(tmp_path):
    item = "The cafe opened in 1998 and serves, each day, fresh tea with a biscuit to all guests"
    hidden = "Yes: the CAFÉ opened in 2021 and serves each day “fresh” tea with a biscuit to all."
    corpus = write_documents(tmp_path / "c", [hidden, sentence(1)])
    ctx = run(tmp_path / "w", corpus, write_set(tmp_path / "a.jsonl", [item]))
    assert list(dropped(ctx)) == ["d0"]


def test_scripts_without_spaces_are_searched_by_characters(tmp_path):
    item = "床前明月光疑是地上霜举头望明月低头思故乡"
    texts = [f"有人说：{item}。", "举头望明月低头思故乡", "床前，明月光。" * 3]
    corpus = write_documents(tmp_path / "c", texts)
    name = write_set(tmp_path / "a.jsonl", [item])
    assert list(dropped(run(tmp_path / "w", corpus, name))) == ["d0"]
    assert list(dropped(run(tmp_path / "x", corpus, name, ngram_size=8))) == ["d0", "d1"]


@given(st.text(alphabet="ab \n\u00a0\u3000床前\u0e01.", max_size=40))
def test_spans_are_those_of_the_words(text):
    assert len(word_spans(text)) == len(WordTable().words(text))
    joined = "".join(text[start:end] for start, end in word_spans(text))
    assert joined == "".join(text.split())


def test_cutting_leaves_the_pieces_away_from_the_match(tmp_path):
    item, before, after = sentence(1, 13), sentence(2, 150), sentence(3, 150)
    corpus = write_documents(tmp_path / "c", [f"{before} {item} {after}", item, sentence(4)])
    name = write_set(tmp_path / "a.jsonl", [item])
    ctx = run(tmp_path / "w", corpus, name, action="cut")
    text = kept(ctx)["d0"]
    head, tail = text.split("\n\n")
    assert before.startswith(head) and len(before) - 202 <= len(head) <= len(before) - 198
    assert after.endswith(tail) and len(after) - 202 <= len(tail) <= len(after) - 198
    assert list(dropped(ctx)) == ["d1"]  # nothing of it is left
    stats = read_stats(ctx.out)
    assert stats["removed"]["characters"] == len(f"{before} {item} {after}") - len(text)
    assert stats["removed"]["words"] == 313 - len(text.split())
    assert stats["read"] == {"documents": 3, "characters": ANY, "words": 313 + 13 + 30}
    for unit in stats["read"]:
        parts = [stats[state][unit] for state in ("kept", "dropped", "removed")]
        assert stats["read"][unit] == sum(parts), unit


def test_short_pieces_and_much_cut_documents_go():
    text = "a" * 300 + "#" * 10 + "b" * 300 + "#" * 10 + "c" * 900
    places = np.array([[300, 310], [610, 620]])
    assert SpanRemoval(200, 200, 10).apply(text, places) == "c" * 700
    assert SpanRemoval(0, 200, 10).apply(text, places) == "\n\n".join(
        ["a" * 300, "b" * 300, "c" * 900]
    )
    assert SpanRemoval(0, 200, 1).apply(text, places) is None
    assert SpanRemoval(0, 1000, 10).apply(text, places) is None


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=8))
def test_merged_spans_cover_the_same_ground(spans):
    starts, lengths = np.array(spans or np.empty((0, 2)), np.int64).reshape(-1, 2).T
    joined = merge_spans(starts, starts + lengths)
    covered = {at for start, end in joined for at in range(start, end)}
    assert covered == {at for start, length in spans for at in range(start, start + length)}
    assert all(a[1] < b[0] for a, b in pairwise(joined))
    rest = {
        at
        for start, end in complement_spans(starts, starts + lengths, 40)
        for at in range(start, end)
    }
    assert rest == set(range(40)) - covered


def test_common_ngrams_count_for_nothing(tmp_path):
    licence = sentence(70, 20)
    texts = [f"{sentence(i)} {licence}" for i in range(12)]
    corpus = write_documents(tmp_path / "c", texts)
    name = write_set(tmp_path / "a.jsonl", [f"{licence} {sentence(50)}"])
    assert dropped(run(tmp_path / "w", corpus, name)) == {}
    alone = write_set(tmp_path / "b.jsonl", [licence])
    leaked = write_documents(tmp_path / "l", [" ".join([licence] * 12), sentence(3)])
    assert list(dropped(run(tmp_path / "z", leaked, alone))) == ["d0"], "one document, not common"
    with pytest.raises(InputError, match="all 12 documents are contaminated"):
        run(tmp_path / "y", corpus, name, max_document_frequency=12)


def test_many_whole_copies_of_an_item_are_found(tmp_path):
    question = sentence(60, 24)
    texts = [f"{sentence(i)} {question}" for i in range(14)]
    texts += [sentence(20), " ".join(question.split()[2:])]
    corpus = write_documents(tmp_path / "c", texts)
    ctx = run(tmp_path / "w", corpus, write_set(tmp_path / "a.jsonl", [question, sentence(61)]))
    assert dropped(ctx) == {f"d{i}": 1.0 for i in range(14)}
    assert json.loads((ctx.observed / "results.json").read_text())["items_common"] == 1
    short = sentence(62, 9)  # one n-gram
    corpus = write_documents(tmp_path / "d", [*[f"{sentence(i)} {short}" for i in range(12)], "x"])
    ctx = run(tmp_path / "v", corpus, write_set(tmp_path / "b.jsonl", [short]), action="cut")
    assert len(pq.read_table(ctx.out / "matches")) == 12
    assert all(short not in text for text in kept(ctx).values())


def test_the_share_is_of_the_ngrams_that_count(tmp_path):
    licence, question = sentence(70, 20), sentence(50, 25)
    texts = [f"{sentence(i)} {licence}" for i in range(12)] + [f"{sentence(20)} {question}"]
    corpus = write_documents(tmp_path / "c", texts)
    item = f"{licence} {question}"  # 33 n-grams; the corpus has 8 of them twelve times
    ctx = run(tmp_path / "w", corpus, write_set(tmp_path / "a.jsonl", [item]))
    assert dropped(ctx) == {"d12": pytest.approx(13 / (33 - 8))}


def test_the_cut_into_parts_changes_no_byte(tmp_path, monkeypatch):
    texts = [sentence(i) for i in range(40)]
    name = write_set(tmp_path / "a.jsonl", [texts[3], texts[30] + " " + sentence(99)])

    def bytes_of(ctx):
        files = sorted(path for path in ctx.out.rglob("*") if path.is_file())
        return {path.relative_to(ctx.out).as_posix(): path.read_bytes() for path in files}

    whole = bytes_of(run(tmp_path / "w", write_documents(tmp_path / "one", texts), name))
    with monkeypatch.context() as patch:
        patch.setattr(parquet_parts, "ROWS_PER_PART", 7)
        corpus = write_documents(tmp_path / "many", texts)
    assert len(Documents(corpus).files) == 6
    assert bytes_of(run(tmp_path / "x", corpus, name)) == whole
    stopped = Context.local(tmp_path / "y")
    stopped.cancel_file.touch()
    with pytest.raises(Interrupted):
        run(tmp_path / "y", corpus, name)
    stopped.cancel_file.unlink()
    (stopped.out / "documents").mkdir()
    (stopped.out / "documents" / "part-00009.parquet").write_text("left by a kill")
    assert bytes_of(run(tmp_path / "y", corpus, name)) == whole


def test_tokens_are_counted_where_there_is_a_tokenizer(tmp_path):
    item = sentence(1, 13)
    texts = [f"{sentence(2, 150)} {item} {sentence(3, 150)}", item, sentence(4)]
    corpus = write_documents(tmp_path / "c", texts)
    name = write_set(tmp_path / "a.jsonl", [item])
    trained = Context.local(tmp_path / "t")
    first = run(tmp_path / "f", corpus, name, action="cut")
    edge = Inputs({"documents": [SimpleNamespace(path=first.out)]})
    train_tokenizer(TokenizerTrainParams(vocab_size=330), edge, trained.out, trained)
    tokenizer = Tokenizer(trained.out)
    ctx = Context.local(tmp_path / "w")
    edges = {"documents": corpus, "tokenizer": trained.out}
    inputs = Inputs({key: SimpleNamespace(path=path) for key, path in edges.items()})
    decontaminate(DecontaminateParams(eval_sets=(name,), action="cut"), inputs, ctx.out, ctx)
    stats = read_stats(ctx.out)
    count = {
        "read": sum(len(tokenizer.encode(text)) for text in texts),
        "kept": sum(len(tokenizer.encode(text)) for text in kept(ctx).values()),
        "dropped": len(tokenizer.encode(item)),
    }
    count["removed"] = count["read"] - count["kept"] - count["dropped"]
    assert {state: stats[state]["tokens"] for state in count} == count
    assert count["removed"] > 0


def test_the_report_shows_matches_and_counts(tmp_path):
    item = sentence(1, 14)
    texts = [f"{sentence(2)} {item} {sentence(3)}", sentence(4)]
    corpus = write_documents(tmp_path / "c", texts)
    write_set(tmp_path / "evals" / "quiz.jsonl", [item, "too short", sentence(5)], "question")
    other = write_set(tmp_path / "other" / "b.jsonl", [sentence(6)], "answer")
    folder = str(tmp_path / "evals")
    ctx = run(tmp_path / "w", corpus, folder, other, text_columns=("question", "answer"))
    shown = panels(ctx)
    assert shown["Evaluation sets"]["rows"] == [["evals", 3, 2, 1, 1], ["other", 1, 1, 0, 0]]
    (card,) = shown["Matches"]["items"]
    assert card["evaluation item"] == "evals: quiz.jsonl 1 question" and card["document"] == "s: d0"
    first = " ".join(item.split()[:13])
    assert f"»{first}«" in card["matched"] and card["overlap"] == "100%"
    for unit in ("documents", "characters", "words"):
        steps = shown[f"Decontamination: {unit}"]["steps"]
        assert sum(count for _, count in steps[:-1]) == steps[-1][1]
    results = json.loads((ctx.observed / "results.json").read_text())
    assert (results["contaminated"], results["items_too_short"], results["items_found"]) == (
        1,
        1,
        1,
    )
    assert read_stats(ctx.out)["by_set"]["evals"]["documents"] == 1


def test_a_set_that_cannot_be_searched_is_an_error(tmp_path):
    corpus = write_documents(tmp_path / "c", [sentence(1)])
    name = write_set(tmp_path / "a.jsonl", [sentence(2)], "question")
    with pytest.raises(InputError, match="no record has a text in text") as error:
        run(tmp_path / "w", corpus, name)
    assert "text_columns" in error.value.remedy
    short = write_set(tmp_path / "b.jsonl", ["one two three"])
    with pytest.raises(InputError, match="has no item of at least 8 words"):
        run(tmp_path / "w", corpus, short)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": sentence(2)}) + '\n{"te')
    with pytest.raises(InputError, match=r"record 2 .* cannot be read"):
        run(tmp_path / "w", corpus, str(tmp_path / "c.jsonl"))


def test_content_decides_not_where_the_sets_lie(tmp_path):
    one = write_set(tmp_path / "a" / "q.jsonl", [sentence(1)])
    params = DecontaminateParams(eval_sets=(one,))
    moved = write_set(tmp_path / "b" / "a" / "q.jsonl", [sentence(1)])
    assert params.externals() == DecontaminateParams(eval_sets=(moved,)).externals()
    write_set(tmp_path / "a" / "q.jsonl", [sentence(2)])
    assert params.externals() != DecontaminateParams(eval_sets=(moved,)).externals()
    doubled = DecontaminateParams(eval_sets=(one, one), text_columns=("a", "a"))
    assert [problem.key for problem in doubled.check({})] == ["eval_sets", "text_columns"]
    problems = DecontaminateParams(eval_sets=("https://me:pass@host/a.jsonl",)).check({})
    assert [problem.key for problem in problems] == ["eval_sets"]


def test_every_text_in_a_list_or_object_is_an_item(tmp_path):
    choices = [sentence(seed, 14) for seed in (1, 2, 3)]
    rows = [
        {"question": sentence(4, 20), "choices": choices[:2], "answer": 0},
        {
            "question": sentence(5, 20),
            "choices": {"text": choices[2:], "label": ["A"]},
            "answer": 1,
        },
    ]
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [f"{sentence(10 + n)} {choice} {sentence(20 + n)}" for n, choice in enumerate(choices)]
    corpus = write_documents(tmp_path / "c", [*texts, sentence(6)])
    columns = ("question", "choices")
    ctx = run(tmp_path / "w", corpus, str(path), text_columns=columns)
    assert set(kept(ctx)) == {"d3"}
    found = {row["item"] for row in pq.read_table(ctx.out / "matches").to_pylist()}
    assert found == {
        "quiz.jsonl 1 choices[0]",
        "quiz.jsonl 1 choices[1]",
        "quiz.jsonl 2 choices[text][0]",
    }
    results = json.loads((ctx.observed / "results.json").read_text())
    assert results["left_out"] == results["left_out_contaminated"] == 3
    with pytest.raises(InputError, match="no evaluation set has a text in answer") as error:
        run(tmp_path / "x", corpus, str(path), text_columns=(*columns, "answer"))
    assert error.value.where == "text_columns"


@pytest.mark.parametrize("kind", ["bytes", "nested"])
def test_an_item_that_cannot_be_read_is_an_error_with_its_place(tmp_path, kind):
    if kind == "bytes":
        path = tmp_path / "quiz.parquet"
        pq.write_table(pa.table({"text": pa.array([b"caf\xe9"], pa.binary())}), path)
    else:
        path = tmp_path / "quiz.jsonl"
        path.write_text(f'{{"text": {"[" * 1000}"a"{"]" * 1000}}}')
    corpus = write_documents(tmp_path / "corpus", [sentence(1)])
    with pytest.raises(InputError, match="record 1 of an evaluation set cannot be read") as caught:
        run(tmp_path / "run", corpus, str(path))
    assert path.name in str(caught.value)


def test_files_of_a_set_that_are_not_read_are_counted(tmp_path):
    corpus = write_documents(tmp_path / "corpus", [sentence(1), sentence(2)])
    write_set(tmp_path / "sets" / "a.jsonl", [sentence(3)])
    (tmp_path / "sets" / "b.pickle").write_bytes(b"")
    ctx = run(tmp_path / "run", corpus, str(tmp_path / "sets"))
    (warning,) = json.loads((ctx.observed / "warnings.json").read_text())
    assert "files .pickle: 1" in warning["message"]
