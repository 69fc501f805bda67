"""The evaluate stage without its processes: which tasks, and what each measures."""

import math

import pytest
import torch

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from pipeline.stage import Inputs
from stages.data.chat import encode_conversation
from stages.data.conversations import Conversation, Message, write_conversations
from stages.data.tokenizer import Tokenizer
from stages.data.tokens import TokenStore
from stages.evaluate import TASKS, Bench, EvaluateParams, carry_out, evaluate, tasks
from stages.generation.likelihood import Likelihood
from stages.generation.pause import Pause
from stages.generation.perplexity import (
    answer_likelihoods,
    document_loss,
    mean_loss,
    paired_gain,
)
from stages.models.huggingface import load_language_model
from stages.training.rank import Rank

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
    text = "".join(tokenizer.decode(row[1:].tolist()) for row in rows)
    bits = expected * rows[:, 1:].numel() / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / len(text.encode()), rel=0.2)


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
    bench = Bench(paths, PARAMS, torch.device("cpu"), Pause(Rank(), ctx.cancel_file))
    kind, _, model = task.partition(":")
    with pytest.raises(Interrupted):
        TASKS[kind](bench, *([model] if model else []))
    with pytest.raises(Interrupted):
        carry_out(Rank(), [task], paths, PARAMS, ctx.cancel_file)


def test_nothing_to_measure_is_an_error(tmp_path):
    ctx = Context.local(tmp_path)
    with pytest.raises(InputError, match="nothing can be measured"):
        evaluate(EvaluateParams(), Inputs({}), ctx.out, ctx)
