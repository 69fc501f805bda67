"""Ten thousand hostile documents, from the sources to packed tokens."""

import json
import random
import re
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.context import Context
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean
from stages.data.documents import Documents, read_stats
from stages.data.token_store import TokenStore
from stages.data.tokenizers.sentencepiece_tokenizer import (
    CONTROL_TOKENS,
    EOS,
    FIRST_BYTE,
    Tokenizer,
)
from stages.text.pii import PiiEntity
from stages.text.rules.catalogue import RULE_SETS
from stages.text.rules.rule_params import EditName
from stages.tokenize import TokenizerTrainParams, TokenPackParams, pack_tokens, train_tokenizer

DOCUMENTS = 10_000
RAW = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
PHRASE = (
    "the library function returns a value of the object that it was called with and when the file "
    "cannot be read an error names the path 库 函数 返回 对象 значение función 値"
)
WORDS = PHRASE.split()


def sentences(chance):
    return " ".join(chance.choices(WORDS, k=chance.randint(1, 120))) + "."


def noise(chance, characters):
    return "".join(chance.choice(characters) for _ in range(chance.randint(1, 400)))


def among(chance, *strange):
    """Sentences with strange strings at any place."""
    words = sentences(chance).split(" ")
    for _ in range(chance.randint(1, 12)):
        words.insert(chance.randrange(len(words) + 1), chance.choice(strange))
    return chance.choice(["", " ", "\n"]).join(words)


CONTROL = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))]
BIDI = [
    *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x206A)),
    "\u200f",
    "אבג",
    "مرحبا",
]
SURROGATES = ["\ud800", "\udfff", "\udc80\ud83d", "\ud83d\ude00", "\udbff x"]
SPECIAL = [
    *CONTROL_TOKENS,
    "<|endoftext|>",
    "[INST]",
    "<0x00>",
    "\u2581",
    "\u2581\u2581",
    "{{prompt}}",
    "%s%n",
]
PLANES = [
    chr(code) for code in (0xFFFE, 0xFFFF, 0x1F468, 0x200D, 0xFE0F, 0x10FFFF, 0xE0001, 0x3400)
]
ANYWHERE = [*map(chr, range(0, 0x110000, 0x9E3))]
KINDS = [
    lambda chance: noise(chance, CONTROL),
    lambda chance: among(chance, *CONTROL),
    lambda chance: among(chance, *BIDI),
    lambda chance: among(chance, *SURROGATES),
    lambda chance: among(chance, *SPECIAL),
    lambda chance: among(chance, *PLANES),
    lambda chance: noise(chance, [chr(code) for code in range(0x300, 0x370)]),
    lambda chance: noise(chance, ANYWHERE),
    lambda chance: sentences(chance).encode(chance.choice(CODECS)).decode("latin-1"),
    lambda chance: chance.choice(["\0", "\n", " ", "\u3000", "�", "e\u0301", "…"]) * 3_000,
    lambda chance: chance.choice(["x", "漢", "\u0e01", "-"]) * chance.randint(1, 20_000),
    sentences,
]
CODECS = ["utf-8", "utf-16", "utf-16-be", "utf-7", "gb18030"]


def write_hostile(folder, longest):
    """Files of records, files of bytes, a line as long as asked for, words of a fiftieth of it."""
    chance = random.Random(7)
    folder.mkdir()
    texts = [chance.choice(KINDS)(chance) for _ in range(DOCUMENTS - 300)]
    for number in range(8):
        path = folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[number::8]))
    words = " ".join(chance.choices(PHRASE.split("库")[0].split(), k=longest // 4))[:longest]
    giants = [words, *(letter * (longest // 50) for letter in "w漢\u0301")]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in giants]
    (folder / "giants.jsonl").write_text("\n".join(lines))
    for number in range(300):
        text = sentences(chance).encode(chance.choice(CODECS))
        junk = chance.randbytes(chance.randint(0, 60))
        (folder / f"{number}.txt").write_bytes(text + junk)
    for number in range(96):
        extension = chance.choice(["html", "csv", "parquet", "jsonl.gz", "warc", "jsonl.zst"])
        (folder / f"{number}.{extension}").write_bytes(chance.randbytes(chance.randint(400, 4000)))


def local(folder):
    ctx = Context.local(folder)
    ctx.out.mkdir(parents=True, exist_ok=True)
    return ctx


def edges(**folders):
    return Inputs({name: SimpleNamespace(path=path) for name, path in folders.items()})


SETS = tuple(name for name in RULE_SETS if name not in ("lists", "languages"))
HARSH = ("languages", "c4", "c4:datatrove", "chinese_paragraphs")  # would leave nothing to look at
DEFAULT = ("length", "gopher_quality", "gopher_repetition")
NO_LIMITS = {name: dict.fromkeys(RULE_SETS[name].rules) for name in SETS}
CUTS = {
    "min_repeated_line": 40,
    "min_repeated_paragraph": 60,
    "min_repeated_substring": 100,
    "min_remaining": 1,
}


def adds_up(stats):
    for unit in ("documents", "characters", "words"):
        parts = [stats[part][unit] for part in ("kept", "dropped", "removed")]
        assert stats["read"][unit] == sum(parts)


@pytest.mark.parametrize(
    "longest",
    [
        pytest.param(1_000_000, marks=pytest.mark.integration),
        pytest.param(50_000_000, marks=pytest.mark.long),
    ],
)
def test_nothing_crashes_and_all_counts_add_up(tmp_path, capfd, longest):
    write_hostile(tmp_path / "hostile", longest)
    _every_limit_on_some_of_it(tmp_path / "hostile", tmp_path / "harsh")
    _from_text_to_tokens(tmp_path / "hostile", tmp_path, longest)
    shown = list(capfd.readouterr())
    for written in (*tmp_path.glob("*/attempt*/*"), *tmp_path.glob("*/observed/*")):
        shown += [written.read_text()] if written.is_file() else []
    assert len(shown) > 6
    for text in filter(None, shown):
        assert RAW.search(text) is None
        if text.startswith(("[", "{")):
            assert RAW.search(json.dumps(json.loads(text), ensure_ascii=False)) is None


def _every_limit_on_some_of_it(hostile, folder):
    ctx = local(folder)
    edits = tuple(name for name in get_args(EditName) if name != "languages")
    limits = {**NO_LIMITS, "length": {"characters": (1, None)}}
    params = CleanParams(sources=(str(hostile / "[01].*"),), rules=SETS, edits=edits, limits=limits)
    clean(params, Inputs({"dedup_against": []}), ctx.out, ctx)
    adds_up(read_stats(ctx.out))


def _from_text_to_tokens(hostile, folder, longest):
    cleaned, trained, packed = (local(folder / name) for name in ("clean", "train", "pack"))
    params = CleanParams(
        sources=(str(hostile),),
        limits={name: dict.fromkeys(RULE_SETS[name].rules) for name in DEFAULT},
        edits=tuple(name for name in get_args(EditName) if name not in HARSH),
        pii={"entities": get_args(PiiEntity)},
        dedup=CUTS,
    )
    clean(params, Inputs({"dedup_against": []}), cleaned.out, cleaned)
    stats = read_stats(cleaned.out)
    assert stats["read"]["documents"] >= DOCUMENTS
    adds_up(stats)
    kept = list(Documents(cleaned.out))
    dropped = pq.read_table(cleaned.out / "dropped").to_pylist()
    assert len(kept) == stats["kept"]["documents"] > 3_000
    assert len(dropped) == stats["dropped"]["documents"]
    assert max(len(document.text) for document in kept) > 0.9 * longest

    train_tokenizer(
        TokenizerTrainParams(vocab_size=3_000), edges(documents=cleaned.out), trained.out, trained
    )
    inputs = edges(documents=cleaned.out, tokenizer=trained.out)
    pack_tokens(TokenPackParams(eval_fraction=0.0), inputs, packed.out, packed)
    store, tokenizer = TokenStore(packed.out), Tokenizer(trained.out)
    ids, counts = np.unique(store.window(0, store.tokens), return_counts=True)
    controls = {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i < FIRST_BYTE}
    assert controls == {EOS: len(kept)}
    texts = {document.text for document in kept}
    assert all(tokenizer.decode(store.document(at)[:-1]) in texts for at in range(200))
