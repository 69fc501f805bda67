"""Sampling against transformers, against the distribution it claims, and against itself."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.generation.counter_rng import uniforms
from stages.generation.likelihood import likelihoods
from stages.generation.sampling import (
    SamplingParams,
    draw_tokens,
    length_sorted_batches,
    sample,
    sampling_log_probs,
)
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.model_io import save_language_model

CONFIG = GPTConfig(vocab_size=50, context_length=48, num_layers=2, hidden_size=32, num_heads=4)
EOS, PAD = 3, 0
PROMPTS = [[2, 7, 9], [2, 11, 4, 30, 8, 12, 5], [2], [2, 40, 41, 42, 43]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    return model.eval()


def run(model, decoding, prompts=PROMPTS, **options):
    return sample(model, prompts, decoding, end_ids=[EOS], pad_id=PAD, **options)


def test_greedy_decoding_equals_transformers(model, tmp_path):
    save_language_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ours = run(model, SamplingParams(20, temperature=0))
    for row, prompt in enumerate(PROMPTS):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=20, do_sample=False, eos_token_id=EOS, pad_token_id=PAD,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert ours.ids(row, eos=True) == expected


def test_each_of_several_ends_stops_as_in_transformers(model, tmp_path):
    save_language_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    plain = sample(model, PROMPTS, SamplingParams(20, 0.0), end_ids=[], pad_id=PAD)
    ends = sorted({int(plain.tokens[row, 4 + 3 * row]) for row in range(3)})
    ours = sample(model, PROMPTS, SamplingParams(20, 0.0), end_ids=ends, pad_id=PAD)
    stopped = set()
    for row, prompt in enumerate(PROMPTS):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=20, do_sample=False, eos_token_id=ends, pad_token_id=PAD,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert ours.ids(row, eos=True) == expected
        assert ours.finished[row] == (expected[-1] in ends)
        stopped.add(expected[-1])
    assert len(stopped & set(ends)) > 1 and not plain.finished.any()


def test_a_row_does_not_depend_on_its_batch(model):
    decoding = SamplingParams(20)
    together = run(model, decoding, seed=4)
    for row, prompt in enumerate(PROMPTS):
        alone = run(model, decoding, [prompt], seed=4, indices=[row])
        assert alone.ids(0) == together.ids(row)
        length = int(alone.mask.sum())
        torch.testing.assert_close(
            alone.log_probs[0], together.log_probs[row, :length], rtol=0, atol=1e-5
        )


def test_seeds_and_indices_change_the_samples(model):
    decoding = SamplingParams(20)
    first = run(model, decoding, [[2]] * 4, seed=1)
    assert len({tuple(first.ids(row)) for row in range(4)}) > 1
    assert run(model, decoding, [[2]], seed=2).ids(0) != first.ids(0)


def test_log_probs_are_those_of_a_plain_forward_pass(model):
    drawn = run(model, SamplingParams(20, temperature=0.7), seed=2)
    for row, prompt in enumerate(PROMPTS):
        ids = drawn.ids(row, eos=True)
        logits = model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1)[torch.arange(len(ids)), ids]
        found = drawn.log_probs[row][drawn.mask[row]]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_response_ends_at_its_end_token(model):
    drawn = run(model, SamplingParams(30), [[2]] * 64, seed=0)
    assert 0 < drawn.finished.sum() < 64
    for row in range(64):
        ids = drawn.ids(row, eos=True)
        assert (EOS in ids) == bool(drawn.finished[row])
        assert EOS not in ids[:-1]
        assert EOS not in drawn.ids(row)
    assert (drawn.tokens[~drawn.mask] == PAD).all()
    assert (drawn.log_probs[~drawn.mask] == 0).all()


@pytest.mark.parametrize(
    "decoding",
    [SamplingParams(1), SamplingParams(1, temperature=0.5), SamplingParams(1, top_k=4),
     SamplingParams(1, top_p=0.6), SamplingParams(1, suppress_tokens=(1, 2))],
)  # fmt: skip
def test_frequencies_are_the_distribution(model, decoding):
    count = 20_000
    logits = model(torch.tensor([[2, 7]]))[:, -1]
    expected = sampling_log_probs(logits, decoding)[0].exp()
    tokens = draw_tokens(
        sampling_log_probs(logits, decoding).expand(count, -1),
        torch.from_numpy(uniforms(0, range(count), 1)[:, 0]),
    )
    observed = torch.bincount(tokens, minlength=50) / count
    error = (observed - expected).abs()
    assert (error <= 5 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()
    assert expected.sum().item() == pytest.approx(1, abs=1e-5)


def test_top_k_top_p_and_suppressed_tokens_restrict_the_support():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {
        name: sampling_log_probs(logits, decoding)[0].exp().tolist()
        for name, decoding in {
            "top_k": SamplingParams(top_k=2),
            "top_p": SamplingParams(top_p=0.7),
            "greedy": SamplingParams(temperature=0),
            "suppress_tokens": SamplingParams(suppress_tokens=(0,)),
        }.items()
    }
    assert kept["top_k"] == pytest.approx([0.625, 0.375, 0, 0])
    assert kept["top_p"] == pytest.approx([0.625, 0.375, 0, 0])
    assert kept["greedy"] == [1, 0, 0, 0]
    assert kept["suppress_tokens"] == pytest.approx([0, 0.6, 0.3, 0.1])


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}]
)
def test_invalid_sampling_params_are_rejected(bad):
    with pytest.raises(ValueError, match=r"top_p|not a way"):
        SamplingParams(**bad)


def test_sampled_tokens_are_in_the_vocabulary():
    log_probs = torch.tensor([[0.5, 0.5, 0.0]]).log()
    edges = torch.tensor([0.0, 0.4999999, 0.5, 1 - 2**-53])
    assert draw_tokens(log_probs.expand(4, -1), edges).tolist() == [0, 0, 1, 1]


def test_uniforms_are_uniform_and_a_function_of_their_keys():
    grid = uniforms(7, range(300), 40)
    assert np.array_equal(grid[17:19], uniforms(7, [17, 18], 40))
    assert grid.min() >= 0 and grid.max() < 1
    assert grid.mean() == pytest.approx(0.5, abs=0.01)
    assert np.histogram(grid, 10, (0, 1))[0].std() / 1200 < 0.05
    assert abs(np.corrcoef(grid[:, 0], grid[:, 1])[0, 1]) < 0.2
    assert not np.array_equal(uniforms(8, [0], 5), uniforms(7, [0], 5))


def test_batches_have_similar_lengths_and_cover_everything_once():
    prompts = [[0] * n for n in (5, 1, 4, 1, 9)]
    found = list(length_sorted_batches(prompts, 2))
    assert found == [[1, 3], [2, 0], [4]]


def test_likelihoods_are_sums_of_log_probs(model):
    prefixes = [[2, 5], [2], [2, 9, 9, 9]]
    continuations = [[7, 8, 3], [4, 4, 4, 4, 3], [3]]
    found = likelihoods(model, prefixes, continuations, pad_id=PAD, batch_size=2)
    for prefix, rest, likelihood in zip(prefixes, continuations, found, strict=True):
        log_probs = model(torch.tensor([[*prefix, *rest]]))[0].log_softmax(-1)
        places = torch.arange(len(prefix) - 1, len(prefix) + len(rest) - 1)
        expected = log_probs[places, torch.tensor(rest)].sum().item()
        assert likelihood.log_prob == pytest.approx(expected, abs=1e-4)
        assert likelihood.per_token == pytest.approx(expected / len(rest), abs=1e-4)
