"""Tokenizers of the hub: their ids, marks and bytes, against `transformers` and against ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from former_tokenizers import REPLACE_SPACE, rewrite_as_former
from hf_model_folders import END, TEXTS, write_tokenizer
from transformers import AutoTokenizer

from pipeline.errors import InputError
from stages.data.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer, open_tokenizer
from stages.data.tokenizers.sentencepiece_tokenizer import BOS, EOS, SPACE, Tokenizer
from stages.data.tokenizers.tokenizer_training import export_tokenizer, train_sentencepiece

END_ID = 286
PAD_ID = END_ID + 1
STRANGE = [*TEXTS, "", "  two\n\ttabs", f"a {END} is text", "né \udcff 北京 🙂"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("foreign")
    write_tokenizer(found)
    return found


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**said, **changes}))


def test_ids_equal_transformers_and_are_never_special(folder: Path) -> None:
    tokenizer = open_tokenizer(folder)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    auto = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert tokenizer.encode(text) == auto(text)["input_ids"]
    assert len(tokenizer) == len(auto)
    assert tokenizer.encode_batch(STRANGE) == [tokenizer.encode(text) for text in STRANGE]
    for text in STRANGE:
        ids = tokenizer.encode(text)
        assert not {END_ID, END_ID + 1} & set(ids)
        assert tokenizer.decode(ids) == text.replace("\udcff", "\ufffd")
        assert tokenizer.document(text) == [*ids, END_ID]
    assert tokenizer.decode([END_ID, *tokenizer.encode("cat"), END_ID]) == "cat"


def test_bytes_of_ids_are_those_of_the_text(folder: Path) -> None:
    tokenizer = open_tokenizer(folder)
    for text in STRANGE:
        size = sum(tokenizer.byte_counts[i] for i in tokenizer.document(text))
        assert size == len(text.replace("\udcff", "\ufffd").encode())


def test_documents_start_with_the_start_token_if_there_is_one(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, begin=True)
    tokenizer = open_tokenizer(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.document("the cat") == [*auto("the cat")["input_ids"], END_ID]
    assert (tokenizer.eos_id, tokenizer.bos_id) == (END_ID, END_ID + 1)
    assert (tokenizer.document_start_id, tokenizer.pad_id, tokenizer.padding_id) == (
        END_ID + 1,
        None,
        END_ID,
    )


def test_sentencepiece_from_the_hub_equals_our_tokenizer(tmp_path: Path) -> None:
    """What we export, without what marks it as ours."""
    export_tokenizer(train_sentencepiece(TEXTS * 3, 320), tmp_path)
    ours = open_tokenizer(tmp_path)
    assert isinstance(ours, Tokenizer)
    (tmp_path / "tokenizer.model").unlink()
    foreign = open_tokenizer(tmp_path)
    assert isinstance(foreign, HuggingFaceTokenizer)
    assert (foreign.eos_id, foreign.bos_id, len(foreign)) == (EOS, BOS, len(ours))
    assert foreign.byte_counts == ours.byte_counts
    for text in TEXTS:
        assert foreign.encode(text) == ours.encode(text)
        assert foreign.decode(ours.encode(text)) == text
    assert foreign.digest != ours.digest


def test_special_tokens_may_come_from_config_json(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="no end-of-document token is defined"):
        open_tokenizer(tmp_path)
    edit(tmp_path, "config.json", eos_token_id=[END_ID, 7], pad_token_id=PAD_ID, bos_token_id=-1)
    found = open_tokenizer(tmp_path)
    assert (found.eos_id, found.bos_id, found.pad_id) == (END_ID, None, PAD_ID)
    assert found.document_start_id == END_ID
    assert found.digest == open_tokenizer(folder).digest
    edit(tmp_path, "config.json", eos_token_id=PAD_ID)
    assert open_tokenizer(tmp_path).digest != found.digest, "documents end otherwise"


def test_contradictory_or_unknown_special_tokens_are_rejected(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    edit(tmp_path, "config.json", eos_token_id=1)
    with pytest.raises(InputError, match=rf"is id {END_ID}, eos_token_id of config\.json is 1"):
        open_tokenizer(tmp_path)
    edit(tmp_path, "config.json", eos_token_id=[1, END_ID])
    assert open_tokenizer(tmp_path).eos_id == END_ID
    for name in ("pad", "bos", "eos"):
        for said in ("<nowhere>", {}, 7):
            write_tokenizer(tmp_path)
            edit(tmp_path, "tokenizer_config.json", **{f"{name}_token": said})
            with pytest.raises(InputError, match=f"the {name} token {said!r} .* is not in"):
                open_tokenizer(tmp_path)


def test_an_ordinary_token_is_rejected_as_special(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, begin=True)
    edit(tmp_path, "config.json", pad_token_id=1)
    with pytest.raises(InputError, match=r"the pad token .* is not a special token"):
        open_tokenizer(tmp_path)
    edit(tmp_path, "config.json", pad_token_id=None)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    for at, name in enumerate(("eos", "bos")):
        plain = [{**token, "special": i != at} for i, token in enumerate(added)]
        edit(tmp_path, "tokenizer.json", added_tokens=plain)
        with pytest.raises(InputError, match=rf"the {name} token '<.*>' is not a special token"):
            open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Lowercase"},
        {"type": "NFKC"},
        {"type": "Replace", "pattern": {"String": "é"}, "content": "e"},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "StripAccents"}]},
        {"type": "Strip", "strip_left": True, "strip_right": False},
        {"type": "Prepend", "prepend": "x"},
    ],
)
def test_a_lossy_normalizer_is_rejected(normalizer: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    edit(tmp_path, "tokenizer.json", normalizer=normalizer)
    with pytest.raises(InputError, match="not lossless: its normalizer"):
        open_tokenizer(tmp_path)


def test_texts_are_restored_as_nfc_with_an_nfc_normalizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    edit(tmp_path, "tokenizer.json", normalizer={"type": "NFC"})
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("ne\u0301 A")) == "n\u00e9 A"


def test_the_space_that_llama_2_adds_is_removed(tmp_path: Path) -> None:
    """As its own `tokenizer.json` says it."""
    export_tokenizer(train_sentencepiece(TEXTS * 3, 320), tmp_path)
    rewrite_as_former(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    parts = [{"type": "Prepend", "prepend": SPACE}, REPLACE_SPACE]
    edit(tmp_path, "tokenizer.json", normalizer={"type": "Sequence", "normalizers": parts})
    decoders = json.loads((tmp_path / "tokenizer.json").read_text())["decoder"]["decoders"]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoder = {"type": "Sequence", "decoders": [*decoders, strip]}
    edit(tmp_path, "tokenizer.json", decoder=decoder)
    tokenizer = open_tokenizer(tmp_path)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lossy_or_broken_tokenizers_are_rejected(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    edit(tmp_path, "tokenizer.json", decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})
    with pytest.raises(InputError, match=r"its decoder \(WordPiece\) does not restore"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        open_tokenizer(tmp_path)
    with pytest.raises(InputError, match="the folder holds neither"):
        open_tokenizer(tmp_path / "nothing")


def test_chat_models_require_a_tokenizer_of_tokenize_train(
    folder: Path, world: Path, tmp_path: Path
) -> None:
    """Also where a SentencePiece model lies beside, as in Llama 2: 3 is no `</s>` there."""
    with pytest.raises(InputError, match="was not made by"):
        Tokenizer(folder)
    write_tokenizer(tmp_path)
    model = (world / "tokenizer" / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model.replace(b"<|assistant|>", b"<|somebody_|>"))
    with pytest.raises(InputError, match="was not made by"):
        Tokenizer(tmp_path)
    assert isinstance(open_tokenizer(tmp_path), HuggingFaceTokenizer)
