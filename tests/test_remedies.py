"""Errors name only keys, commands and options that exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from remedy_law import GAP, KnownNames, known_names, messages, parse, unknown_names

ROOT = Path(__file__).parents[1]
FILES = [p for d in ("pipeline", "stages", "launch") for p in sorted((ROOT / d).rglob("*.py"))]
EXAMPLES = {"gpt.train.lr", "evaluate.perplexity", "reward.accuracy"}
CODE = {"cli.main", "load_clip", "torch.compile", "out", "str"}
DATA_FIELDS = {"templates", "eval", "unlabelled"}
TOKENIZER_FILES = {"added_tokens", "eos_token", "eos_token_id"}
OTHER_PROGRAMS = {"cached", "shm-size"}
OTHERS = frozenset({"extends"} | EXAMPLES | CODE | DATA_FIELDS | TOKENIZER_FILES | OTHER_PROGRAMS)


@pytest.fixture(scope="module")
def known() -> KnownNames:
    return known_names(ROOT)


def test_messages_name_what_exists(known: KnownNames) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} in {text.replace(GAP, '…')!r}"
        for path in FILES
        for line, text in messages(parse(path))
        for name in unknown_names(text, known, OTHERS)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('InputError("no text", remedy="raise max_textlength")', "max_textlength"),
        ('InputError("no text", where="train.learning_rate")', "train.learning_rate"),
        ('Problem("dedup.nearest", "is odd")', "dedup.nearest"),
        ('UserError(f"{n} runs", remedy=f"`headwater purge {n}` removes them")', "headwater purge"),
        ('remedy = "run it --forever"', "--forever"),
        ('f(1, remedy="set `loosely`" if x else "")', "loosely"),
        ('Failure("x", remedy=("loosen `limits`, " + f"or `rulez`"))', "rulez"),
    ],
)
def test_the_law_finds(source: str, name: str, known: KnownNames) -> None:
    texts = [text for _, text in messages(ast.parse(source))]
    assert [found for text in texts for found in unknown_names(text, known, OTHERS)] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "set `languages`, dedup.near or train.micro_batch_size in clean_up/file_name.yaml",
        "headwater cluster up my_cluster, or `headwater gc` and `headwater run --only x_y=3`",
        "model.experts.num_experts and model.context_length of tokenize.train",
    ],
)
def test_the_law_accepts_what_exists(text: str, known: KnownNames) -> None:
    assert unknown_names(text.replace("my_cluster", GAP), known, OTHERS) == []
