"""The two stages of `tokenize`: what they write is what the text says, however it was cut."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from pipeline.stage import Inputs
from stages.clean import CleanParams
from stages.data import parquet_parts, token_packing, token_store
from stages.data.documents import Documents, documents_writer, write_stats
from stages.data.hashing import hash64, hash_fraction
from stages.data.token_packing import count_tokens, encode_shard, encoding_tasks
from stages.data.token_store import TokenStore
from stages.data.tokenizers.sentencepiece_tokenizer import EOS, FILES, Tokenizer
from stages.data.tokenizers.tokenizer_sampling import sample_lines
from stages.tokenize import TokenizerTrainParams, TokenPackParams, pack_tokens, train_tokenizer

SUBJECTS = ("The reader", "A writer", "This function", "The parser", "Every method", "An iterator")
VERBS = ("returns", "opens", "copies", "closes", "compares", "collects", "sorts", "formats")
OBJECTS = ("the file", "a string", "each line", "two paths", "some bytes", "the 10 values")


def texts(count=120):
    """Small documents that differ; one of them empty but for a mark, one of another script."""
    found = [
        "\n".join(
            f"{SUBJECTS[(i + k) % 6]} {VERBS[(i * k) % 8]} {OBJECTS[(i // 6 + k) % 6]} ({i}, {k})."
            for k in range(1 + i % 17)
        )
        for i in range(count - 2)
    ]
    return [*found, "!", "日本語の文書 </s><|user|>"]


def write_documents(folder, found):
    with documents_writer(folder) as writer:
        for i, text in enumerate(found):
            writer.write(
                {"id": f"doc-{i}", "text": text, "source": "s", "lang": "en", "meta": "{}"}
            )
    size = {"documents": len(found), "characters": sum(map(len, found))}
    nothing = {"documents": 0, "characters": 0}
    write_stats(folder, {"read": size, "kept": size, "dropped": nothing})
    return folder


def artifact(path):
    return SimpleNamespace(path=path)


def run(stage, folder, params, **inputs):
    ctx = Context.local(folder)
    stage(params, Inputs({name: artifact(path) for name, path in inputs.items()}), ctx.out, ctx)
    return ctx


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def results(ctx):
    return json.loads((ctx.observed / "results.json").read_text())


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"), texts())


@pytest.fixture(scope="module")
def tokenizer(documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return run(
        train_tokenizer, folder, TokenizerTrainParams(vocab_size=400), documents=documents
    ).out


def test_training_writes_a_tokenizer_and_reports_its_compression(documents, tokenizer, tmp_path):
    ctx = run(
        train_tokenizer, tmp_path / "w", TokenizerTrainParams(vocab_size=400), documents=documents
    )
    assert set(bytes_of(ctx.out)) == set(FILES) and bytes_of(ctx.out) == bytes_of(tokenizer)
    found = results(ctx)
    assert found["vocab_size"] == 400
    assert 1 < found["characters_per_token"] <= found["bytes_per_token"]
    assert found["tokens_per_word"] == found["fertility_en"]
    panels = json.loads((ctx.observed / "panels.json").read_text())
    titles = {"Sample encodings", "Longest pieces", "Tokens by language"}
    assert {p["title"] for p in panels} == titles
    encoder = Tokenizer(tokenizer)
    tokens = sum(len(encoder.encode(text)) for text in texts())
    (table,) = (p for p in panels if p["title"] == "Tokens by language")
    assert table["rows"][0][:4] == ["en", 120, sum(map(len, texts())), tokens]


def test_every_option_reaches_the_tokenizer(documents, tmp_path):
    options = {"model_type": "unigram", "split_digits": False, "whitespace_runs": 4}
    params = TokenizerTrainParams.model_validate(
        options
        | {"vocab_size": 380, "additional_special_tokens": ("<|tool|>",), "language_alpha": 0.5}
    )
    assert not list(params.check({}))
    made = Tokenizer(run(train_tokenizer, tmp_path / "w", params, documents=documents).out)
    assert made.piece(7) == "<|tool|>" and made.piece(8) == "<|reserved_1|>"
    assert [made.piece(i) for i in made.encode("\t    x")][:2] == ["\t", "\u2581" * 4]
    plain = TokenPackParams(eval_fraction=0.2)
    packed = run(pack_tokens, tmp_path / "p", plain, documents=documents, tokenizer=made.path).out
    assert TokenStore(packed).vocab_size == 380


def test_a_tokenizer_of_several_documents_is_that_of_all_of_them(documents, tokenizer, tmp_path):
    halves = [write_documents(tmp_path / str(k), texts()[k * 60 :][:60]) for k in range(2)]
    ctx = Context.local(tmp_path / "w")
    edges = Inputs({"documents": tuple(map(artifact, halves))})
    train_tokenizer(TokenizerTrainParams(vocab_size=400), edges, ctx.out, ctx)
    assert bytes_of(ctx.out) == bytes_of(tokenizer)
    shown = json.loads((ctx.observed / "panels.json").read_text())
    (table,) = (p for p in shown if p["title"] == "Tokens by language")
    assert table["rows"][0][1:3] == [120, sum(map(len, texts()))]


def test_invalid_tokenizer_params_are_reported_before_the_run():
    def said(**fields):
        return [str(problem) for problem in TokenizerTrainParams(**fields).check({})]

    assert said(additional_special_tokens=("<|a|>", "<|a|>")) == [
        "additional_special_tokens: <|a|> names two tokens (choose another name)"
    ]
    assert "<|user|> names two tokens" in said(additional_special_tokens=("<|user|>",))[0]
    assert said(whitespace_runs=1) == [
        "whitespace_runs: a run has at least 2 spaces (set 0, or 2 or more)"
    ]
    assert "would take 64" in said(vocab_size=300, whitespace_runs=32)[0]
    for name in ("x", "<>", "< a>", "<0x41>", "<|>", "<a", "<我>"):
        with pytest.raises(ValueError, match="additional_special_tokens"):
            TokenizerTrainParams(additional_special_tokens=(name,))


def test_a_vocabulary_too_large_for_the_text_is_rejected(documents, tmp_path):
    with pytest.raises(InputError, match="too small for a vocabulary of 50000: at most"):
        run(train_tokenizer, tmp_path, TokenizerTrainParams(vocab_size=50_000), documents=documents)


def test_training_without_documents_fails(tmp_path):
    empty = write_documents(tmp_path / "d", [])
    with pytest.raises(InputError, match="no documents"):
        run(train_tokenizer, tmp_path / "w", TokenizerTrainParams(), documents=empty)


def test_the_sample_is_a_share_of_the_documents_by_hash(documents):
    everything = list(Documents(documents))
    total = sum(len(d.text) for d in everything)
    whole = "".join(sample_lines(everything, 2 * total, total))
    assert whole == "".join(d.text for d in everything)
    some = list(sample_lines(everything, total // 4, total))
    assert 0.05 < sum(map(len, some)) / total < 0.5
    backwards = list(sample_lines(reversed(everything), total // 4, total))
    assert sorted(some) == sorted(backwards)


def test_the_store_holds_the_shuffled_documents_with_end_tokens(documents, tokenizer, tmp_path):
    params = TokenPackParams(eval_fraction=0.2, seed=7, shard_tokens=2_000)
    ctx = run(pack_tokens, tmp_path, params, documents=documents, tokenizer=tokenizer)
    encoder = Tokenizer(tokenizer)
    found = list(Documents(documents))
    for split in ("train", "eval"):
        chosen = [
            d for d in found if (hash_fraction(f"held out {d.id}") < 0.2) == (split == "eval")
        ]
        chosen.sort(key=lambda d: hash64(f"7 {d.id}"))
        expected = [[*encoder.encode(d.text), EOS] for d in chosen]
        store = TokenStore(ctx.out, split)
        assert store.documents == len(chosen) > 5
        assert store.window(0, store.tokens).tolist() == [i for ids in expected for i in ids]
        assert [store.document(i).tolist() for i in range(len(chosen))] == expected
    assert store.vocab_size == 400 and store.dtype == np.uint16 and store.eos_id == EOS
    store.require_tokenizer(encoder)
    assert store.tokenizer == encoder.digest
    assert len(list(ctx.out.glob("train-*.bin"))) > 1
    tokens = {s: TokenStore(ctx.out, s).tokens for s in ("train", "eval")}
    assert results(ctx)["train_tokens"] == tokens["train"]
    assert results(ctx)["eval_tokens"] == tokens["eval"]


def test_the_report_lists_packing_costs_per_context_length(documents, tokenizer, tmp_path):
    ctx = run(pack_tokens, tmp_path, TokenPackParams(), documents=documents, tokenizer=tokenizer)
    shown = json.loads((ctx.observed / "panels.json").read_text())
    store = TokenStore(ctx.out)
    (table,) = (p for p in shown if p["title"] == f"Packing of {store.documents} documents")
    lengths = [len(store.document(k)) for k in range(store.documents)]
    for context, samples, padding, windows, cut in table["rows"]:
        assert samples >= store.tokens / context
        assert padding == round(100 * (1 - store.tokens / samples / context), 3)
        assert cut == round(100 * sum(n > context for n in lengths) / len(lengths), 2) <= windows


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_tokens_are_counted_whatever_their_type(documents, tokenizer, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(token_store, "token_dtype", lambda vocab_size: np.dtype(dtype))
    (work,) = encoding_tasks(documents, tokenizer, seed=0)
    encode_shard(work, tmp_path / "000000")
    expected = sum(len(Tokenizer(tokenizer).encode(d.text)) + 1 for d in Documents(documents))
    assert count_tokens(tmp_path / "000000") == expected
    assert (tmp_path / "000000.bin").stat().st_size == expected * np.dtype(dtype).itemsize


def test_neither_slicing_nor_a_kill_changes_the_store(documents, tokenizer, tmp_path, monkeypatch):
    inputs = {"documents": documents, "tokenizer": tokenizer}
    params = TokenPackParams(shard_tokens=3_000)
    expected = bytes_of(run(pack_tokens, tmp_path / "one", params, **inputs).out)
    monkeypatch.setattr(parquet_parts, "ROWS_PER_GROUP", 16)
    monkeypatch.setattr(parquet_parts, "ROWS_PER_PART", 50)
    finer = write_documents(tmp_path / "documents", texts())
    inputs["documents"] = finer
    assert bytes_of(run(pack_tokens, tmp_path / "two", params, **inputs).out) == expected
    monkeypatch.setattr(token_packing, "SLICE_BYTES", (300, 1000))
    works = encoding_tasks(finer, tokenizer, seed=0)
    assert len(works) > 2 * -(-120 // 16)
    assert bytes_of(run(pack_tokens, tmp_path / "sliced", params, **inputs).out) == expected
    for stop in (1, 3):
        folder = tmp_path / f"stopped-{stop}"
        ctx, real = Context.local(folder), Context.check_cancelled

        def check(self, stop=stop, real=real):
            if len(list(self.scratch.glob("encodings/*.bin"))) > stop:
                self.cancel_file.touch()
            real(self)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(Context, "check_cancelled", check)
            run(pack_tokens, folder, params, **inputs)
        ctx.cancel_file.unlink()
        (ctx.out / "train-00099.bin").write_bytes(b"left by a kill")
        assert bytes_of(run(pack_tokens, folder, params, **inputs).out) == expected


def test_the_seed_changes_the_order_but_not_the_split(documents, tokenizer, tmp_path):
    inputs = {"documents": documents, "tokenizer": tokenizer}
    one, two = (
        run(
            pack_tokens,
            tmp_path / str(seed),
            TokenPackParams(seed=seed, eval_fraction=0.2),
            **inputs,
        ).out
        for seed in (0, 1)
    )
    orders = [[TokenStore(p, "eval").document(i).tolist() for i in range(9)] for p in (one, two)]
    assert orders[0] != orders[1]
    held = [
        sorted(TokenStore(p, "eval").window(0, TokenStore(p, "eval").tokens)) for p in (one, two)
    ]
    assert held[0] == held[1]


def test_at_least_one_of_few_documents_is_held_out(tokenizer, tmp_path):
    three = write_documents(tmp_path / "three", texts()[3:6])
    params = TokenPackParams(eval_fraction=1e-9)
    ctx = run(pack_tokens, tmp_path / "w", params, documents=three, tokenizer=tokenizer)
    assert (TokenStore(ctx.out, "train").documents, TokenStore(ctx.out, "eval").documents) == (2, 1)
    none = run(
        pack_tokens,
        tmp_path / "x",
        TokenPackParams(eval_fraction=0),
        documents=three,
        tokenizer=tokenizer,
    )
    assert TokenStore(none.out, "eval").tokens == 0


def test_an_empty_train_split_is_an_error(tokenizer, tmp_path):
    for name, found in (("none", []), ("one", ["x"])):
        folder = write_documents(tmp_path / name, found)
        with pytest.raises(InputError, match="no document remains"):
            params = TokenPackParams(eval_fraction=0.99999)
            run(pack_tokens, tmp_path / f"w{name}", params, documents=folder, tokenizer=tokenizer)


def test_estimates_follow_max_characters():
    upstream = {"documents": CleanParams(sources=("a",), max_characters=7_000_000)}
    assert TokenPackParams().estimate(upstream)["tokens"] == 2_000_000
    assert TokenPackParams().estimate({}) == {}
    assert TokenizerTrainParams().estimate({})["seconds"] > 1
