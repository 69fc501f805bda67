"""Measurements of the models of a pipeline: which ones run, and their values."""

import json
import math
import shutil

import pytest
import torch
from toy_alignment import another_tokenizer

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Conversation, Message, write_conversations
from stages.data.token_store import TokenStore
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.distributed.cancellation_point import CancellationPoint
from stages.evaluate import EvaluateParams
from stages.evaluation.model_measurements import (
    MEASUREMENTS,
    MeasurementContext,
    applicable_measurements,
    run_measurements,
)
from stages.evaluation.perplexity import answer_likelihoods, document_loss, mean_loss, paired_gain
from stages.generation.likelihood import Likelihood
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.model_io import load_language_model
from stages.training.ranks.rank import Rank

SETTINGS = EvaluateParams(max_new_tokens=10, num_prompts=8).settings()


def names(paths):
    return [measurement.name for measurement in applicable_measurements(paths)]


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


def test_applicable_measurements_follow_the_inputs(paths):
    assert names(paths) == [
        "documents:base", "documents:sft", "documents:policy", "answers", "preferences", "policy",
    ]  # fmt: skip
    assert names({k: paths[k] for k in ("reward", "preferences")}) == ["preferences"]
    assert names({k: paths[k] for k in ("sft", "conversations")}) == ["answers"]
    assert names({k: paths[k] for k in ("base", "preferences")}) == []


def test_every_measurement_runs_on_one_rank(paths):
    planned = names(paths)
    parts = [run_measurements(Rank(index=i, world=2), planned, paths, SETTINGS) for i in range(2)]
    assert sorted([*parts[0], *parts[1]]) == sorted(planned)
    metrics = {k: v for part in parts for f in part.values() for k, v in f.metrics.items()}
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"perplexity", "bits_per_byte", "sft_perplexity", "policy_loss", "answer_loss",
            "answer_loss_augmented", "augmentation_gain", "reward_accuracy", "reward_before",
            "reward_after", "kl"} <= set(metrics)  # fmt: skip
    assert metrics["augmentation_gain"] == pytest.approx(
        metrics["answer_loss"] - metrics["answer_loss_augmented"]
    )
    # The speaker answers with questions: it must be the worse one here, and measurably so.
    assert metrics["augmentation_gain"] < -5 * metrics["augmentation_gain_stderr"]
    assert metrics["sft_loss"] == pytest.approx(math.log(metrics["sft_perplexity"]))


def test_the_perplexity_is_that_of_the_windows(world):
    model, tokenizer = load_language_model(world / "policy"), Tokenizer(world / "policy")
    found = document_loss(model, world / "tokens", tokenizer, batch_size=3)
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


def test_tokens_of_another_vocabulary_are_rejected(world, tmp_path):
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
    with pytest.raises(InputError, match="the tokenizer has 340 ids, the model only 300"):
        document_loss(small, world / "tokens", tokenizer)


def test_tokens_of_another_tokenizer_of_the_same_size_are_rejected(world, tmp_path):
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
            run_measurements(Rank(), [task], paths, SETTINGS)


def test_the_standard_error_of_a_paired_gain():
    first = [Likelihood(-10.0, 5), Likelihood(-20.0, 10)]
    better = [Likelihood(-9.0, 5), Likelihood(-18.0, 10)]
    gain, error = paired_gain(first, better)
    assert gain == pytest.approx(0.2) and error == pytest.approx(0)
    assert mean_loss(first) == 2
    assert paired_gain(first, [Likelihood(-9.0, 5), Likelihood(-20.0, 10)])[1] > 0.03


def test_models_with_different_answers_are_not_compared():
    first = [Likelihood(-10.0, 5), Likelihood(-20.0, 10)]
    for other in (first[:1], [Likelihood(-9.0, 5), Likelihood(-18.0, 11)]):
        with pytest.raises(InputError, match="scored different answers"):
            paired_gain(first, other)


def talk(key, answer, split):
    return Conversation(key, (Message("user", "why?"), Message("assistant", answer)), split)


def test_an_empty_set_of_answers_is_an_error(world, tmp_path):
    """An empty mean would be a loss of 0: better than any model."""
    write_conversations(tmp_path, [talk("a", "so", "train"), talk("b", "so it is " * 40, "eval")])
    paths = {"sft": world / "policy", "conversations": tmp_path}
    with pytest.raises(InputError, match="no held-out answer fits a context of 40"):
        run_measurements(Rank(), ["answers"], paths, SETTINGS)


def test_what_can_be_trained_on_can_be_evaluated(world, tmp_path):
    """An answer's last token is predicted and not read: the longest is one over the context."""
    model, chat = load_language_model(world / "policy"), ChatFormat.open(world / "policy")
    texts = [" ".join(["here"] * count) for count in range(1, 80)]
    lengths = {len(chat.encode(talk("", t, "eval").messages)): t for t in texts}
    assert {41, 42} <= set(lengths)
    rows = [talk(str(n), lengths[n], "eval") for n in (41, 42)]
    write_conversations(tmp_path, rows)
    (longest,) = answer_likelihoods(model, tmp_path, chat)
    ids = torch.tensor(chat.encode(rows[0].messages).ids)
    expected = model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None])
    assert longest.log_prob == pytest.approx(expected[-longest.num_tokens :].sum().item(), abs=1e-3)


@pytest.mark.parametrize("task", ["documents:sft", "answers", "preferences", "policy"])
def test_every_measurement_stops_between_batches(paths, task, tmp_path):
    """A rank without a context too, which has the file: rank 0 may have done its share."""
    ctx = Context.local(tmp_path)
    ctx.cancel_file.touch()
    check = CancellationPoint(Rank(), ctx.cancel_file)
    context = MeasurementContext(paths, SETTINGS, torch.device("cpu"), check)
    (measurement,) = (one for one in MEASUREMENTS if one.name == task)
    with pytest.raises(Interrupted):
        measurement.run(context)
    with pytest.raises(Interrupted):
        run_measurements(Rank(), [task], paths, SETTINGS, ctx.cancel_file)
