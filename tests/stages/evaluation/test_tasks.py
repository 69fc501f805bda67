"""Task files, prompts, tokenization, and scores against a brute-force reference."""

from __future__ import annotations

import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_alignment
from transformers import AutoModelForCausalLM

from pipeline.errors import InputError
from stages.data.tokenizers.sentencepiece_tokenizer import EOS, PAD, Tokenizer
from stages.evaluation.loglikelihood import (
    LoglikelihoodRequest,
    LoglikelihoodResult,
    encode_requests,
    score_requests,
    truncate_left,
)
from stages.evaluation.task_metrics import (
    ItemResult,
    aggregate_metrics,
    compute_task_metrics,
    result_panels,
)
from stages.evaluation.task_runner import TaskRunner
from stages.evaluation.tasks import Item, Task, TaskConfig, TaskType, load_task, load_tasks
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.model_io import load_language_model, save_language_model
from stages.models.registry import build_model

CONTEXT = 48
CAPITALS = [
    {"question": "what does the cat do?", "choices": ["sleeps here", "runs"], "answer": 0},
    {"question": "what does the dog do?", "choices": ["runs there", "waits", "sings"], "answer": 2},
    {"question": "and the owl?", "choices": ["helps nearby", "turns inside"], "answer": 1},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts a space before every text, which is SentencePiece's own way."""
    root = tmp_path_factory.mktemp("model")
    toy_alignment.write_tokenizer(root / "tokenizer")
    return root


def saved(root: Path, name: str, config: GPTConfig | LlamaConfig) -> Path:
    """The folder of a random model."""
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_language_model(model, root / name, root / "tokenizer")
    return root / name


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    vocabulary = len(Tokenizer(root / "tokenizer"))
    return saved(
        root, "gpt2", GPTConfig(vocabulary, CONTEXT, num_layers=2, hidden_size=32, num_heads=4)
    )


@pytest.fixture(scope="module")
def switch(root: Path) -> Path:
    """Rotary positions, grouped queries and experts."""
    config = LlamaConfig(
        len(Tokenizer(root / "tokenizer")), CONTEXT, num_layers=2, hidden_size=32, num_heads=4,
        num_kv_heads=2, intermediate_size=48, head_size=8, qk_norm=True,
        experts=ExpertsConfig(num_experts=4, capacity_factor=None),
    )  # fmt: skip
    return saved(root, "switch", config)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def task_runner(folder: Path, **more: object) -> TaskRunner:
    found = {"context_length": CONTEXT, "document_start_id": EOS, "pad_id": PAD, **more}
    return TaskRunner(load_language_model(folder), Tokenizer(folder), **found)  # type: ignore[arg-type]


def write_items(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- files ---------------------------------------------------------------------------------------


def test_a_yaml_file_configures_a_task(tmp_path: Path) -> None:
    rows = [{**CAPITALS[0], "place": 7, "split": "train"}, CAPITALS[1] | {"place": "8"}]
    write_items(tmp_path / "items.jsonl", rows)
    (tmp_path / "farm.yaml").write_text(
        'items: items.jsonl\ntemplate: "{place}. Q: {question}\\nA:"\nnum_fewshot: 1\n'
        'target_delimiter: "\\t"\nfewshot_delimiter: "\\n"\ndescription: "Animals. "\n'
    )
    task = load_task(str(tmp_path / "farm.yaml"))
    (item,) = task.scored_items
    assert (task.name, task.task_type, item.line, item.answer) == ("farm", "multiple_choice", 2, 2)
    shots = task.fewshot_examples(item, task.config.num_fewshot, seed=0)
    assert task.prompt(item, shots) == (
        "Animals. 7. Q: what does the cat do?\nA:\tsleeps here\n8. Q: what does the dog do?\nA:"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
def test_a_task_may_be_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    question = "河边那座古老的磨坊里住着什么动物？"
    row = {"question": question, "choices": ["猫", "狗"], "answer": 0}
    path = tmp_path / "farm.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding=encoding)
    (item,) = load_task(str(path)).items
    assert question in item.context
    path.write_bytes((json.dumps(row, ensure_ascii=False) + "\n").encode() + b'{"question": "\xff')
    with pytest.raises(InputError, match=r"byte 0xff at \d+ is not UTF-8") as caught:
        load_task(str(path))
    assert caught.value.where == f"{path}:2"


def test_a_jsonl_file_is_a_task_by_itself(tmp_path: Path) -> None:
    rows = [{"context": "A cat.", **CAPITALS[0]}, {"question": "so?", "choices": ["a", "b"],
             "answer": 0}]  # fmt: skip
    task = load_task(write_items(tmp_path / "farm.jsonl", rows))
    assert [item.context for item in task.items] == ["A cat.\nwhat does the cat do?", "so?"]
    assert task.items[0].text_with_answer == "A cat.\nwhat does the cat do? sleeps here"


def test_the_target_of_a_cloze_is_the_end_of_its_text(tmp_path: Path) -> None:
    rows = [{"text": "the cat  sleeps here "}, {"text": "我爱北京", "target": "北京"}]
    task = load_task(write_items(tmp_path / "words.jsonl", rows))
    assert task.task_type == "cloze"
    assert [(i.context, i.target_delimiter, i.choices) for i in task.items] == [
        ("the cat  sleeps", " ", ("here",)), ("我爱", "", ("北京",)),
    ]  # fmt: skip
    assert [item.text_with_answer for item in task.items] == ["the cat  sleeps here", "我爱北京"]


GOOD = '{"question": "q", "choices": ["a", "b"], "answer": 0}\n'


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", "", "no items"),
        (GOOD + '{"question": "q"', ":2", "invalid JSON"),
        (GOOD + "\n[1]\n", ":3", "an item must be an object"),
        (
            '{"question": "q", "choices": ["a"], "answer": 0}',
            ":1",
            "`choices` must be a list of two",
        ),
        ('{"question": "q", "choices": ["a", " "], "answer": 0}', ":1", "`choices` has an element"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', ":1", "`answer` is 2, with 2"),
        (
            '{"question": "q", "choices": ["a", "b"], "answer": true}',
            ":1",
            "`answer` must be an integer",
        ),
        ('{"choices": ["a", "b"], "answer": 1}', ":1", "`question` is missing"),
        ('{"question": [1], "choices": ["a", "b"], "answer": 1}', ":1", "`question` is used by"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 1, "split": "x"}', ":1", "`split`"),
        (GOOD.replace("}", ', "split": "train"}'), "", "all have the split"),
        ('{"text": "word"}', ":1", "`text` has nothing before"),
        ('{"text": " "}', ":1", "`text` is not text, or empty"),
        ('{"text": "a word", "target": "verb"}', ":1", "does not end with it"),
    ],
)
def test_broken_items_are_located(tmp_path: Path, text: str, line: str, said: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as found:
        load_task(str(path))
    assert found.value.where == f"{path}{line}"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("items: x.jsonl\nshoots: 3\n", 2, "shoots: unknown key"),
        ("items: x.jsonl\nnum_fewshot: -1\n", 2, "num_fewshot: "),
        ("items: x.jsonl\nshots: 1\n", 2, "renamed to 'num_fewshot'"),
        ("items: x.jsonl\ntask_type: guess\n", 2, "task_type: "),
        ("name: x\n", 1, "items: "),
        ("items: x.jsonl\n  name: y: z\n", 2, "not YAML"),
        ("items: gone.jsonl\n", None, "no such task file"),
        ("- items\n", None, "a task file must be a mapping"),
        ('items: x.jsonl\ntemplate: "{gone}"\n', None, "`gone` is used by the template"),
        ("items: x.jsonl\nitems: x.jsonl\n", None, "items"),
    ],
)
def test_broken_task_files_are_located(
    tmp_path: Path, text: str, line: int | None, said: str
) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    (tmp_path / "x.jsonl").write_text(GOOD)
    with pytest.raises(InputError, match=said) as found:
        load_task(str(path))
    if line:
        assert f"{path}:{line}" in str(found.value)
    assert str(tmp_path) in str(found.value)


def test_the_digest_covers_both_files(tmp_path: Path) -> None:
    write_items(tmp_path / "x.jsonl", CAPITALS)
    digests = set()
    for header in ("items: x.jsonl\n", "items: x.jsonl\nnum_fewshot: 1\n"):
        (tmp_path / "x.yaml").write_text(header)
        digests.add(load_task(str(tmp_path / "x.yaml")).digest)
    write_items(tmp_path / "x.jsonl", CAPITALS[:2])
    digests |= {load_task(str(tmp_path / name)).digest for name in ("x.yaml", "x.jsonl")}
    assert len(digests) == 4


# --- few-shot examples ---------------------------------------------------------------------------


def many(tmp_path: Path, train: int = 0) -> Task:
    rows = [
        {"question": f"q{n % 20}", "choices": ["a", "b"], "answer": n % 2,
         "split": "train" if n < train else "test"}
        for n in range(40)
    ]  # fmt: skip
    return load_task(write_items(tmp_path / "many.jsonl", rows))


def test_few_shot_examples_depend_on_seed_and_item(tmp_path: Path) -> None:
    task = many(tmp_path)
    again = many(tmp_path)
    drawn = [task.fewshot_examples(item, 5, seed=0) for item in task.scored_items]
    assert drawn == [again.fewshot_examples(item, 5, seed=0) for item in again.scored_items]
    assert drawn != [task.fewshot_examples(item, 5, seed=1) for item in task.scored_items]
    assert drawn[0] != drawn[1]


def test_few_shot_examples_exclude_equal_questions(tmp_path: Path) -> None:
    """q3 is there twice: the other one would give its answer away."""
    task = many(tmp_path)
    for item in task.scored_items:
        shots = task.fewshot_examples(item, 38, seed=3)
        assert len(shots) == 38
        assert item.context not in {shot.context for shot in shots}


def test_few_shot_examples_exclude_reordered_questions(tmp_path: Path) -> None:
    """It would give the answer away; and a shot shows the answer by its own order."""
    colours = ["red", "green", "blue"]
    rows = [
        {"question": f"q{n // 2}", "choices": colours[n % 2 :] + colours[: n % 2],
         "answer": (1 - n) % 2 * 2}
        for n in range(6)
    ]  # fmt: skip
    task = load_task(write_items(tmp_path / "turned.jsonl", rows))
    for item in task.scored_items:
        assert item.choices[item.answer] == ("blue" if item.line % 2 else "green")
        shots = task.fewshot_examples(item, 4, seed=0)
        assert item.context not in {shot.context for shot in shots}
        for shot in shots:
            right = "blue" if shot.line % 2 else "green"
            assert shot.text_with_answer == f"{shot.context} {right}"
            assert f"{shot.context} {right}" in task.prompt(item, shots)
    with pytest.raises(InputError, match="num_fewshot is 5, but only 4 other items"):
        task.fewshot_examples(task.scored_items[0], 5, seed=0)


def test_few_shot_examples_come_from_the_train_split(tmp_path: Path) -> None:
    task = many(tmp_path, train=6)
    assert len(task.scored_items) == 34
    for item in task.scored_items:
        assert all(shot.in_train_split for shot in task.fewshot_examples(item, 5, seed=0))
    with pytest.raises(InputError, match=r"num_fewshot is 7, but only [56] other items"):
        task.fewshot_examples(task.scored_items[0], 7, seed=0)


# --- tokens --------------------------------------------------------------------------------------


def test_a_pair_is_encoded_as_one_text(tokenizer: Tokenizer) -> None:
    """SentencePiece's space before a text is no part of a continuation."""
    (asked,) = encode_requests(tokenizer, [("the cat", " sleeps here")], start_id=EOS)
    assert [*asked.context, *asked.continuation] == tokenizer.encode("the cat sleeps here")
    assert list(asked.context) == tokenizer.encode("the cat")
    assert list(asked.continuation) == tokenizer.encode("sleeps here")


def test_space_at_the_end_of_a_context_moves_to_the_continuation(tokenizer: Tokenizer) -> None:
    apart, early = encode_requests(
        tokenizer, [("the cat", " runs"), ("the cat ", "runs")], start_id=EOS
    )
    assert apart == early


def test_a_token_across_the_border_belongs_to_the_continuation(tokenizer: Tokenizer) -> None:
    """Parted by number as elsewhere, `sleeps` would have no token left to score."""
    whole, context = tokenizer.encode("the cat sleeps"), tokenizer.encode("the cat sle")
    assert context[: len(whole)] != whole and len(context) >= len(whole)
    (asked,) = encode_requests(tokenizer, [("the cat sle", "eps")], start_id=EOS)
    assert [*asked.context, *asked.continuation] == whole
    assert asked.continuation == tuple(tokenizer.encode("sleeps"))


def test_an_empty_context_is_the_start_of_a_document(tokenizer: Tokenizer) -> None:
    pairs = [("", "the cat"), ("the", " cat")]
    empty, _ = encode_requests(tokenizer, pairs, start_id=EOS)
    assert empty == ((EOS,), tuple(tokenizer.encode("the cat")))
    begun = encode_requests(tokenizer, pairs, start_id=EOS, add_bos=True)
    assert [one.context for one in begun] == [(EOS,), (EOS, *tokenizer.encode("the"))]


def test_a_long_context_is_truncated_on_the_left() -> None:
    asked = LoglikelihoodRequest(tuple(range(10)), (20, 21, 22))
    assert truncate_left(asked, 12).context == tuple(range(10))
    assert truncate_left(asked, 11).context == tuple(range(1, 10))
    assert truncate_left(asked, 3).context == (9,)
    with pytest.raises(InputError, match="continuation of 3 tokens does not fit"):
        truncate_left(asked, 2)


# --- scores --------------------------------------------------------------------------------------


@cache
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def brute_force(folder: Path, context: list[int], rest: list[int]) -> LoglikelihoodResult:
    """Each continuation by itself, without padding or cache, by `transformers`."""
    ids = torch.tensor([[*context, *rest]])
    with torch.inference_mode():
        logits = reference(folder)(ids[:, :-1]).logits[0, -len(rest) :]
    targets = torch.tensor(rest)
    total = logits.double().log_softmax(-1).gather(1, targets[:, None]).sum().item()
    return LoglikelihoodResult(total, bool((logits.argmax(-1) == targets).all()))


def greedy(model: Any, context: list[int], count: int) -> list[int]:
    ids = list(context)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(context) :]


@pytest.mark.parametrize("family", ["folder", "switch"])
def test_scores_equal_single_forward_passes(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    rng = random.Random(0)
    model = load_language_model(folder)
    tokens = lambda count: [rng.randrange(16, 300) for _ in range(count)]  # noqa: E731
    shared = [tokens(size) for size in (1, 5, 12, CONTEXT - 3)]
    asked = [
        LoglikelihoodRequest(tuple(context), tuple(tokens(size)))
        for context in shared
        for size in (1, 4, 2)
    ]
    asked += [LoglikelihoodRequest(tuple(c), tuple(greedy(model, c, 3))) for c in shared[:2]]
    rng.shuffle(asked)
    expected = [brute_force(folder, *map(list, one)) for one in asked]
    assert sum(one.is_greedy for one in expected) >= 2
    for batch in (1, 3, 16):
        found = score_requests(model, asked, pad_id=PAD, batch_size=batch)
        assert [one.is_greedy for one in found] == [one.is_greedy for one in expected]
        assert [one.log_prob for one in found] == pytest.approx(
            [one.log_prob for one in expected], abs=1e-4
        )


def test_a_task_is_scored_as_by_brute_force(folder: Path, tmp_path: Path) -> None:
    write_items(tmp_path / "farm.jsonl", CAPITALS)
    tokenizer = Tokenizer(folder)
    (task,) = load_tasks([str(tmp_path / "farm.jsonl")], num_fewshot=1)
    answers = list(task_runner(folder, pmi=True).run(task, task.scored_items))
    assert not any(answer.truncated for answer in answers)
    for answer in answers:
        item = answer.item
        context = tokenizer.encode(task.prompt(item, task.fewshot_examples(item, 1, 0)))
        expected = []
        for choice, made, free in zip(
            item.choices, answer.scores, answer.unconditional, strict=True
        ):
            whole = tokenizer.encode(tokenizer.decode(context) + " " + choice)
            alone = brute_force(folder, context, rest := whole[len(context) :])
            assert made.log_prob == pytest.approx(alone.log_prob, abs=1e-4)
            assert free == pytest.approx(brute_force(folder, [EOS], rest).log_prob, abs=1e-4)
            expected.append(alone.log_prob)
        assert answer.predict() == expected.index(max(expected))


def test_truncated_contexts_are_counted(folder: Path, tmp_path: Path) -> None:
    long = {**CAPITALS[0], "question": "what does the cat do? " * 12}
    task = load_task(write_items(tmp_path / "farm.jsonl", [*CAPITALS, long]))
    answers = list(task_runner(folder).run(task, task.scored_items))
    assert [answer.truncated for answer in answers] == [False, False, False, True]
    assert compute_task_metrics(task, answers).metrics["truncated"] == 1
    endless = {**CAPITALS[0], "choices": ["no", "sleeps here " * 40]}
    task = load_task(write_items(tmp_path / "farm.jsonl", [CAPITALS[1], endless]))
    with pytest.raises(InputError, match="does not fit the context") as found:
        list(task_runner(folder).run(task, task.scored_items))
    assert found.value.where.endswith("farm.jsonl:2")


# --- metrics -------------------------------------------------------------------------------------


def answer(
    choices: tuple[str, ...], right: int, log_probs: list[float], free: list[float]
) -> ItemResult:
    item = Item(1, "q", choices, right, " ")
    return ItemResult(
        item, tuple(LoglikelihoodResult(value, False) for value in log_probs), tuple(free)
    )


def test_predictions_by_metric() -> None:
    """By the sum: the short one. By bytes: "北京" has six, "abcd" four. Without what the choices
    are worth by themselves: the last."""
    found = answer(("北京", "abcd", "abcdefgh"), 0, [-5.0, -4.0, -6.9], [-4.0, -3.5, -9.0])
    assert [found.predict(how) for how in ("acc", "acc_norm", "acc_pmi")] == [1, 0, 2]
    assert [found.is_correct(how) for how in ("acc", "acc_norm", "acc_pmi")] == [False, True, False]


def task_of(task_type: TaskType, name: str = "t", num_fewshot: int = 0) -> Task:
    config = TaskConfig(items="x", name=name)
    return Task(name, task_type, (), config, "x", "", num_fewshot)


def test_metrics_of_multiple_choice() -> None:
    right = answer(("a", "b"), 0, [-1.0, -2.0], [])
    wrong = answer(("a", "b", "c", "d"), 0, [-2.0, -1.0, -3.0, -3.0], [])
    metrics = compute_task_metrics(task_of("multiple_choice"), [right, right, right, wrong]).metrics
    assert metrics["acc"] == 0.75
    assert metrics["acc_stderr"] == pytest.approx(torch.tensor([1.0, 1, 1, 0]).std().item() / 2)
    assert metrics["chance"] == pytest.approx((3 / 2 + 1 / 4) / 4)
    assert metrics["centered"] == pytest.approx((0.75 - 0.4375) / (1 - 0.4375))
    assert "acc_pmi" not in metrics
    assert "acc_stderr" not in compute_task_metrics(task_of("multiple_choice"), [right]).metrics


def test_metrics_of_cloze() -> None:
    item = Item(1, "q", ("x",), 0, " ")
    said = [
        ItemResult(item, (LoglikelihoodResult(value, value > -1),)) for value in (-0.5, -2.0, -3.5)
    ]
    metrics = compute_task_metrics(task_of("cloze"), said).metrics
    assert metrics["acc"] == metrics["centered"] == pytest.approx(1 / 3)
    assert metrics["perplexity"] == pytest.approx(math.exp(2.0))
    assert metrics["perplexity_stderr"] == pytest.approx(math.exp(2.0) * 1.5 / math.sqrt(3))


def test_means_weight_tasks_equally() -> None:
    right = answer(("a", "b"), 0, [-1.0, -2.0], [])
    wrong = answer(("a", "b"), 1, [-1.0, -2.0], [])
    scored = [
        compute_task_metrics(task_of("multiple_choice", "easy"), [right] * 9),
        compute_task_metrics(task_of("multiple_choice", "hard", 2), [wrong]),
    ]
    metrics = aggregate_metrics(scored)
    assert (metrics["easy_centered"], metrics["hard_centered"]) == (1, -1)
    assert (metrics["centered"], metrics["acc"]) == (0, 0.5)
    table, easy, hard = result_panels(scored)
    assert table["columns"][:5] == ["task", "few-shot", "items", "acc", "±"]
    assert [row[:4] for row in table["rows"]] == [["easy", 0, 9, 1.0], ["hard", 2, 1, 0.0]]
    assert {shown[""] for shown in easy["items"]} == {"correct"}
    assert hard["items"][0]["prediction"] == "a" and hard["items"][0]["answer"] == "b"
