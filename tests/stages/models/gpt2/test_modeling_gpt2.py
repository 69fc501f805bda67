"""The function a GPT computes: sizes, masks, packing, the cache, the start."""

import math

import pytest
import torch

from stages.models.gpt2.configuration_gpt2 import GPTConfig, gpt2_preset
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.presets import PRESETS
from stages.models.registry import build_model

CONFIG = GPTConfig(vocab_size=61, context_length=24, num_layers=2, hidden_size=32, num_heads=4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


def random_tokens(*shape):
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # The released checkpoints hold 124.4, 354.8, 774.0 and 1,557.6 million weights.
        ("gpt2", 124.440),
        ("gpt2-medium", 354.823),
        ("gpt2-large", 774.030),
        ("gpt2-xl", 1557.611),
    ],
)
def test_gpt2_sizes_are_those_published(name, millions):
    assert gpt2_preset(name).parameters / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt3-125m", 125e6), ("gpt3-350m", 356e6), ("gpt3-760m", 760e6), ("gpt3-1.3b", 1.3e9),
        ("gpt3-2.7b", 2.7e9), ("gpt3-6.7b", 6.7e9), ("gpt3-13b", 13e9), ("gpt3-175b", 175e9),
    ],
)  # fmt: skip
def test_gpt3_sizes_are_those_published(name, published):
    assert gpt2_preset(name).parameters == pytest.approx(published, rel=0.02)


def test_the_count_of_parameters_is_exact(model):
    assert sum(p.numel() for p in model.parameters()) == CONFIG.parameters


def test_every_preset_is_a_valid_shape():
    for name in PRESETS:
        assert (
            gpt2_preset(name, vocab_size=512, context_length=64, dropout=0.1).context_length == 64
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of 4 heads"),
        ({"num_layers": 0}, "must be positive"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"residual_dropout": -0.1}, "dropout must be in"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(
            **{
                "vocab_size": 61,
                "context_length": 24,
                "num_layers": 2,
                "hidden_size": 32,
                "num_heads": 4,
            }
            | change
        )


def test_flops_grow_with_context_only_by_attention():
    short, long = gpt2_preset("gpt2", context_length=512), gpt2_preset("gpt2", context_length=1024)
    assert long.flops_per_token - short.flops_per_token == 12 * 12 * 768 * 512


def test_the_start_scales_residual_projections(model):
    deep = GPT(
        GPTConfig(vocab_size=61, context_length=24, num_layers=8, hidden_size=128, num_heads=4)
    )
    assert deep.h[0].attn.c_proj.weight.std().item() == pytest.approx(
        0.02 / math.sqrt(16), rel=0.05
    )
    assert deep.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert deep.ln_f.weight.eq(1).all() and deep.h[0].mlp.c_fc.bias.eq(0).all()


def test_a_new_model_knows_nothing(model):
    tokens_BT = random_tokens(4, 24)
    loss = torch.nn.functional.cross_entropy(
        model(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(math.log(61), rel=0.02)


def test_the_future_is_not_seen(model):
    tokens_BT = random_tokens(2, 20)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 12:] = (changed_BT[:, 12:] + 1) % 61
    torch.testing.assert_close(model(tokens_BT)[:, :12], model(changed_BT)[:, :12])


def test_left_padding_changes_nothing(model):
    tokens_BT = random_tokens(1, 10)
    padded_BT = torch.cat([torch.zeros(1, 6, dtype=torch.long), tokens_BT], 1)
    mask_BT = torch.arange(16)[None] >= 6
    torch.testing.assert_close(model(padded_BT, mask_BT=mask_BT)[:, 6:], model(tokens_BT))


def test_chosen_positions_are_those_of_the_whole(model):
    tokens_BT = random_tokens(3, 8)
    position_mask_BT = torch.zeros(3, 8, dtype=torch.bool)
    position_mask_BT[0, 2] = position_mask_BT[2, 7] = position_mask_BT[1, 0] = True
    torch.testing.assert_close(
        model(tokens_BT, position_mask_BT=position_mask_BT), model(tokens_BT)[position_mask_BT]
    )


def test_recomputing_changes_no_gradient(model):
    tokens_BT = random_tokens(2, 8)
    model(tokens_BT).square().mean().backward()
    plain = model.wte.weight.grad.clone()
    model.zero_grad()
    model.activation_checkpointing = True
    model(tokens_BT).square().mean().backward()
    torch.testing.assert_close(model.wte.weight.grad, plain)


def test_a_sequence_over_the_context_is_refused(model):
    with pytest.raises(ValueError, match="25 tokens do not fit a context of 24"):
        model(random_tokens(1, 25))


def test_a_document_in_a_row_of_several_is_read_as_if_alone():
    families = [CONFIG, LlamaConfig(
        vocab_size=61, context_length=24, num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2,
        intermediate_size=48, head_size=8,
    )]  # fmt: skip
    for config in families:
        torch.manual_seed(0)
        model = build_model(config).eval()
        pieces = [random_tokens(1, n) for n in (5, 9, 3)]
        segments = [torch.full((1, p.shape[1]), k) for k, p in enumerate(pieces)]
        positions = [torch.arange(p.shape[1])[None] for p in pieces]
        together = model(
            torch.cat(pieces, 1),
            segments_BT=torch.cat(segments, 1),
            positions_BT=torch.cat(positions, 1),
        )
        alone = torch.cat([model(piece) for piece in pieces], 1)
        torch.testing.assert_close(together, alone)


def test_documents_in_a_padded_row_are_read_as_if_alone(model):
    """One document's number may stand in the padding too: it is no part of it."""
    pieces = [random_tokens(1, n) for n in (4, 5, 9, 3)]
    numbers = [torch.full((1, p.shape[1]), k) for k, p in zip((0, 0, 1, 1), pieces, strict=True)]
    mask_BT = torch.arange(21)[None] >= 4
    mask_BT[:, 18:] = False
    positions = [torch.arange(n)[None] for n in (4, 5, 9, 3)]
    together = model(
        torch.cat(pieces, 1),
        mask_BT=mask_BT,
        segments_BT=torch.cat(numbers, 1),
        positions_BT=torch.cat(positions, 1),
    )
    alone = torch.cat([model(piece) for piece in pieces[1:3]], 1)
    torch.testing.assert_close(together[:, 4:18], alone)


@pytest.mark.parametrize("steps", [[20], [1] * 20, [5, 1, 1, 7, 6]])
def test_reading_through_a_cache_is_reading_at_once(model, steps):
    tokens_BT = random_tokens(2, 20)
    cache = model.cache(2, 20)
    pieces = [model(piece, cache=cache) for piece in tokens_BT.split(steps, 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens_BT))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_continue_as_if_alone(model, side):
    prompts = [random_tokens(1, n)[0] for n in (3, 8, 6)]
    padded_BT, mask_BT = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        place = slice(8 - len(prompt), 8) if side == "left" else slice(0, len(prompt))
        padded_BT[row, place], mask_BT[row, place] = prompt, True
    new_BT = random_tokens(3, 4)
    cache = model.cache(3, 12)
    model(padded_BT, mask_BT=mask_BT, cache=cache)
    stepped = torch.cat([model(new_BT[:, t : t + 1], cache=cache) for t in range(4)], 1)
    for row, prompt in enumerate(prompts):
        alone = model(torch.cat([prompt, new_BT[row]])[None])[0, -4:]
        torch.testing.assert_close(stepped[row], alone)


def test_a_full_cache_says_so(model):
    cache = model.cache(1, 4)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of 4"):
        model(random_tokens(1, 5), cache=cache)


def test_a_cache_ends_where_the_context_does(model):
    """Padding takes no place in it, and what is refused is not half read."""
    tokens_BT = random_tokens(1, 25)
    padded_BT = torch.cat([torch.zeros(1, 6, dtype=torch.long), tokens_BT[:, :20]], 1)
    cache = model.cache(1, 40)
    first = model(padded_BT, mask_BT=torch.arange(26)[None] >= 6, cache=cache)[:, 6:]
    rest = model(tokens_BT[:, 20:24], cache=cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), model(tokens_BT[:, :24]))
    with pytest.raises(ValueError, match="25 tokens do not fit a context of 24"):
        model(tokens_BT[:, 24:], cache=cache)
    assert (cache.length, cache.count_B.tolist()) == (30, [24])


@pytest.mark.parametrize("what", ["segments_BT", "positions_BT"])
def test_what_a_cache_does_not_know_is_refused(model, what):
    with pytest.raises(ValueError, match="a cache holds one document per row"):
        model(random_tokens(1, 4), cache=model.cache(1, 8), **{what: torch.zeros(1, 4).long()})
