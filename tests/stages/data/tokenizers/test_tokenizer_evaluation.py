"""Counts by language over every document, and documents that do not come back."""

import json

import pytest

from pipeline.errors import Failure
from stages.data.documents import documents_writer
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.data.tokenizers.tokenizer_evaluation import (
    TokenCounts,
    check_shard,
    check_tasks,
    is_unspaced,
    merge_counts,
)
from stages.data.tokenizers.tokenizer_training import export_tokenizer

TEXTS = {
    "en": ["The list is sorted.", "", "naïve \u2581 text", "a \0 b"],
    "zh-TW": ["中文沒有空格", "</s><|user|>"],
}


@pytest.fixture
def documents(tmp_path):
    with documents_writer(tmp_path / "d") as writer:
        for lang, texts in TEXTS.items():
            for k, text in enumerate(texts):
                row = {"id": f"{lang} {k}", "text": text, "source": "s", "meta": "{}"}
                writer.write(row | {"lang": lang})
    return tmp_path / "d"


def test_the_counts_are_those_of_the_texts(documents, tokenizer, tmp_path):
    (work,) = check_tasks(documents, tokenizer.path, 1.0)
    check_shard(work, tmp_path / "0")
    found = merge_counts([tmp_path / "0"])
    assert set(found) == set(TEXTS)
    for lang, texts in TEXTS.items():
        ids = [tokenizer.encode(text) for text in texts]
        assert found[lang] == TokenCounts(
            documents=len(texts),
            characters=sum(map(len, texts)),
            words=sum(len(text.split()) for text in texts),
            bytes=sum(len(text.encode()) for text in texts),
            tokens=sum(map(len, ids)),
            byte_tokens=sum(token < 272 for each in ids for token in each),
        )
    english, chinese = found["en"], found["zh-TW"]
    assert english.fertility("en") == english.tokens / english.words
    assert chinese.fertility("zh-TW") == chinese.tokens / chinese.characters
    assert chinese.bytes_per_token == chinese.bytes / chinese.tokens
    twice = merge_counts([tmp_path / "0", tmp_path / "0"])
    assert twice["en"].tokens == 2 * english.tokens


def test_codes_of_languages_without_spaces():
    assert is_unspaced("zh") and is_unspaced("ZH_Hant") and is_unspaced("ja")
    assert not is_unspaced("en") and not is_unspaced("ko") and not is_unspaced("?")


def test_a_lossy_document_is_an_error(documents, tokenizer, tmp_path, monkeypatch):
    (work,) = check_tasks(documents, tokenizer.path, 0.0)
    real = Tokenizer.decode_batch
    broken = lambda self, ids: [text.replace("沒", "没") for text in real(self, ids)]  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(Failure, match="does not restore") as said:
        patch.setattr(Tokenizer, "decode_batch", broken)
        check_shard(work, tmp_path / "0")
    assert said.value.where == "document zh-TW 0"
    real_encode = Tokenizer.encode_batch
    yielding = lambda self, texts: [[3, *ids] for ids in real_encode(self, texts)]  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(Failure):
        patch.setattr(Tokenizer, "encode_batch", yielding)
        check_shard(work, tmp_path / "0")
    assert not (tmp_path / "0").exists()


def test_a_document_with_other_ids_is_an_error(documents, tokenizer, tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    export_tokenizer((tokenizer.path / "tokenizer.model").read_bytes(), folder)
    fast = json.loads((folder / "tokenizer.json").read_text())
    fast["model"]["merges"] = fast["model"]["merges"][500:]
    (folder / "tokenizer.json").write_text(json.dumps(fast))
    check_shard(check_tasks(documents, folder, 0.0)[0], tmp_path / "0")
    with pytest.raises(Failure, match="differ at token"):
        check_shard(check_tasks(documents, folder, 1.0)[0], tmp_path / "0")
