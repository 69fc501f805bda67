"""The evaluate stage without its processes: which tasks, and what each measures."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from toy_alignment import another_tokenizer

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from pipeline.fingerprint import identity_fields
from pipeline.stage import Inputs
from stages.data.conversation_dataset import Conversation, Message, write_conversations
from stages.data.token_store import TokenStore
from stages.data.tokenizers.chat_template import encode_conversation
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.distributed.cancellation_point import CancellationPoint
from stages.evaluate import (
    TASKS,
    Bench,
    EvaluateParams,
    TasksParams,
    answer_tasks,
    carry_out,
    evaluate,
    tasks,
)
from stages.evaluation.perplexity import (
    answer_likelihoods,
    document_loss,
    mean_loss,
    paired_gain,
)
from stages.evaluation.task_metrics import compute_task_metrics, merge_rank_results
from stages.generation.likelihood import Likelihood
from stages.models.gpt2.modeling_gpt2 import GPT, GPTConfig
from stages.models.hf_export import load_language_model
from stages.training.ranks.rank import Rank

PARAMS = EvaluateParams(max_new_tokens=10, prompts=8)


@pytest.fixture
def paths(world, scorer):
    return {
        "tokens": world / "tokens",
        "base": world / "speaker",
        "sft": world / "policy",
        "augmented": world / "speaker",
        "policy": world / "speaker",
        "reward": scorer,
        "conversations": world / "conversations",
        "preferences": world / "preferences",
    }


def test_what_can_be_measured_is(paths):
    assert list(tasks(paths)) == [
        "documents:base", "documents:sft", "documents:policy", "answers", "preferences", "policy",
    ]  # fmt: skip
    assert list(tasks({k: paths[k] for k in ("reward", "preferences")})) == ["preferences"]
    assert list(tasks({k: paths[k] for k in ("sft", "conversations")})) == ["answers"]
    assert list(tasks({k: paths[k] for k in ("base", "preferences")})) == []


def test_every_task_is_done_by_one_rank(paths):
    planned = list(tasks(paths))
    parts = [carry_out(Rank(index=i, world=2), planned, paths, PARAMS) for i in range(2)]
    assert sorted([*parts[0], *parts[1]]) == sorted(planned)
    figures = {k: v for part in parts for f in part.values() for k, v in f.figures.items()}
    assert all(math.isfinite(value) for value in figures.values())
    assert {"perplexity", "bits_per_byte", "sft_perplexity", "policy_loss", "answer_loss",
            "answer_loss_augmented", "augmentation_gain", "reward_accuracy", "reward_before",
            "reward_after", "kl"} <= set(figures)  # fmt: skip
    assert figures["augmentation_gain"] == pytest.approx(
        figures["answer_loss"] - figures["answer_loss_augmented"]
    )
    # The speaker answers with questions: it must be the worse one here, and measurably so.
    assert figures["augmentation_gain"] < -5 * figures["augmentation_gain_error"]
    assert figures["sft_loss"] == pytest.approx(math.log(figures["sft_perplexity"]))


def test_the_perplexity_is_that_of_the_windows(world):
    model, tokenizer = load_language_model(world / "policy"), Tokenizer(world / "policy")
    found = document_loss(model, world / "tokens", tokenizer, batch=3)
    samples = TokenStore(world / "tokens", "eval").samples(40)
    rows = torch.tensor([samples[i].tolist() for i in range(len(samples))])
    expected = torch.nn.functional.cross_entropy(
        model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()
    ).item()
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    # Bytes by decoding each token behind another one, for a text's first space is not decoded.
    before = tokenizer.encode("the")
    decoded = {
        i: tokenizer.decode([*before, i]).removeprefix("the") for i in set(rows.flatten().tolist())
    }
    assert all("\ufffd" not in text for text in decoded.values()), "no broken character here"
    size = sum(len(decoded[i].encode()) for i in rows[:, 1:].flatten().tolist())
    bits = expected * rows[:, 1:].numel() / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / size, rel=1e-6)


def test_tokens_of_another_vocabulary_are_refused(world, tmp_path):
    model, tokenizer = load_language_model(world / "policy"), Tokenizer(world / "policy")
    shutil.copytree(world / "tokens", tmp_path / "tokens")
    index = tmp_path / "tokens" / "index.json"
    nameless = {**json.loads(index.read_text()), "vocab_size": 999, "tokenizer": None}
    index.write_text(json.dumps(nameless))
    with pytest.raises(InputError, match="packed with a tokenizer of 999 ids, not with"):
        document_loss(model, tmp_path / "tokens", tokenizer)
    small = GPT(
        GPTConfig(vocab_size=300, context_length=40, num_layers=1, hidden_size=16, num_heads=1)
    )
    with pytest.raises(InputError, match="the model knows 300 ids, its tokenizer 340"):
        document_loss(small, world / "tokens", tokenizer)


def test_tokens_of_another_tokenizer_of_the_same_size_are_refused(world, tmp_path):
    model = load_language_model(world / "policy")
    other = Tokenizer(another_tokenizer(world / "policy", tmp_path / "other"))
    assert len(other) == model.config.vocab_size
    with pytest.raises(InputError) as caught:
        document_loss(model, world / "tokens", other)
    made_by = Tokenizer(world / "policy").digest
    for named in (made_by[:12], other.digest[:12], str(world / "tokens"), str(other.path)):
        assert named in str(caught.value)
    paths = {"sft": world / "policy", "augmented": other.path, "reward": other.path,
             "conversations": world / "conversations", "policy": world / "speaker"}  # fmt: skip
    for task in ("answers", "policy"):
        with pytest.raises(InputError, match="the tokenizers differ"):
            carry_out(Rank(), [task], paths, PARAMS)


def test_a_paired_gain_has_the_error_of_its_pairs():
    first = [Likelihood(-10.0, 5), Likelihood(-20.0, 10)]
    better = [Likelihood(-9.0, 5), Likelihood(-18.0, 10)]
    gain, error = paired_gain(first, better)
    assert gain == pytest.approx(0.2) and error == pytest.approx(0)
    assert mean_loss(first) == 2
    assert paired_gain(first, [Likelihood(-9.0, 5), Likelihood(-20.0, 10)])[1] > 0.03


def test_models_that_read_other_answers_are_not_compared():
    first = [Likelihood(-10.0, 5), Likelihood(-20.0, 10)]
    for other in (first[:1], [Likelihood(-9.0, 5), Likelihood(-18.0, 11)]):
        with pytest.raises(InputError, match="do not read the same answers"):
            paired_gain(first, other)


def talk(key, answer, split):
    return Conversation(key, (Message("user", "why?"), Message("assistant", answer)), split)


def test_no_answer_that_was_held_out_passes_no_gate(world, tmp_path):
    """An empty mean would be a loss of 0: better than any model."""
    write_conversations(tmp_path, [talk("a", "so", "train"), talk("b", "so it is " * 40, "eval")])
    paths = {"sft": world / "policy", "conversations": tmp_path}
    with pytest.raises(InputError, match="no held-out answer fits a context of 40"):
        carry_out(Rank(), ["answers"], paths, PARAMS)


def test_what_can_be_trained_on_can_be_evaluated(world, tmp_path):
    """An answer's last token is predicted and not read: the longest is one over the context."""
    model, tokenizer = load_language_model(world / "policy"), Tokenizer(world / "policy")
    texts = [" ".join(["here"] * count) for count in range(1, 80)]
    lengths = {len(encode_conversation(tokenizer, talk("", t, "eval"))): t for t in texts}
    assert {41, 42} <= set(lengths)
    rows = [talk(str(n), lengths[n], "eval") for n in (41, 42)]
    write_conversations(tmp_path, rows)
    (longest,) = answer_likelihoods(model, tmp_path, tokenizer)
    ids = torch.tensor(encode_conversation(tokenizer, rows[0]).ids)
    expected = model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None])
    assert longest.log_prob == pytest.approx(expected[-longest.tokens :].sum().item(), abs=1e-3)


@pytest.mark.parametrize("task", ["documents:sft", "answers", "preferences", "policy"])
def test_every_measurement_stops_between_batches(paths, task, tmp_path):
    """A rank without a context too, which has the file: rank 0 may have done its share."""
    ctx = Context.local(tmp_path)
    ctx.cancel_file.touch()
    bench = Bench(paths, PARAMS, torch.device("cpu"), CancellationPoint(Rank(), ctx.cancel_file))
    kind, _, model = task.partition(":")
    with pytest.raises(Interrupted):
        TASKS[kind](bench, *([model] if model else []))
    with pytest.raises(Interrupted):
        carry_out(Rank(), [task], paths, PARAMS, ctx.cancel_file)


def test_nothing_to_measure_is_an_error(tmp_path):
    ctx = Context.local(tmp_path)
    with pytest.raises(InputError, match="nothing can be measured"):
        evaluate(EvaluateParams(), Inputs({}), ctx.out, ctx)


FARM = [
    {"question": f"what does the {thing} do?",
     "choices": [wrong, f"the {thing} runs here"], "answer": 1}
    for thing in ("cat", "dog", "owl", "saw", "axe")
    for wrong in (f"here {thing} the runs", f"runs the here {thing}")
]  # fmt: skip


@pytest.fixture
def farm(tmp_path):
    (tmp_path / "farm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FARM))
    (tmp_path / "words.jsonl").write_text('{"text": "the cat runs here"}\n' * 3)
    return TasksParams(tasks=[str(tmp_path / n) for n in ("farm.jsonl", "words.jsonl")], limit=7)


def test_the_items_of_tasks_are_shared_by_the_ranks(world, farm, tmp_path):
    """What two ranks find is what one finds, each item once, in the order of the file."""
    files = farm.load()
    alone = answer_tasks(Rank(), files, world / "policy", farm)
    parts = [answer_tasks(Rank(index=i, world=2), files, world / "policy", farm) for i in range(2)]
    for task in files:
        together = merge_rank_results([part[task.name] for part in parts])
        assert [one.item for one in together] == farm.chosen(task)
        for one, two in zip(alone[task.name], together, strict=True):
            assert [s.log_prob for s in one.scores] == pytest.approx(
                [s.log_prob for s in two.scores], abs=1e-4
            )
    # The policy was taught to say sentences.
    assert compute_task_metrics(files[0], alone["farm"], 0).figures["acc"] == 1
    (tmp_path / "cancel").touch()
    with pytest.raises(Interrupted):
        answer_tasks(Rank(), files, world / "policy", farm, tmp_path / "cancel")


def test_the_content_of_tasks_identifies_them_and_not_their_place(farm, tmp_path):
    before = farm.externals()
    assert set(before) == {"tasks.farm", "tasks.words"}
    (tmp_path / "there").mkdir()
    moved = [Path(path).rename(tmp_path / "there" / Path(path).name) for path in farm.tasks]
    there = farm.model_copy(update={"tasks": tuple(map(str, moved))})
    assert there.externals() == before
    assert identity_fields(there) == identity_fields(farm)
    moved[1].write_text('{"text": "the cat runs there"}\n')
    assert {k for k, v in there.externals().items() if v != before[k]} == {"tasks.words"}


def test_what_cannot_work_in_tasks_is_known_before_they_run(farm, tmp_path):
    with pytest.raises(InputError, match="2 shots are asked for, 0 items"):
        farm.model_copy(update={"shots": 2}).externals()  # the cloze says one thing three times
    twice = farm.model_copy(update={"tasks": (farm.tasks[0], farm.tasks[0])})
    with pytest.raises(InputError, match="two tasks have the name 'farm'"):
        twice.externals()
    with pytest.raises(InputError, match="there is no such task file"):
        TasksParams(tasks=[str(tmp_path / "gone.jsonl")]).externals()
