"""The function a CLIP computes: sizes, masks, towers against written-out references, the scale."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from tiny_clip import RESNET, TEXT, VIT, captions, images, lively, made
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.models.clip.clip_presets import PRESETS, clip_preset
from stages.models.clip.modeling_clip import CLIP, LOG_SCALE_LIMIT
from stages.models.clip.transformer_blocks import quick_gelu
from stages.models.clip.vit import split_patches


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("ViT-B/32", 151_277_313), ("ViT-B/16", 149_620_737), ("ViT-L/14", 427_616_513),
        ("ViT-L/14@336", 427_944_193), ("RN50", 102_007_137), ("RN101", 119_688_033),
        ("RN50x4", 178_300_601), ("RN50x16", 290_979_217), ("RN50x64", 623_258_305),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_released_checkpoints(name, released):
    assert clip_preset(name).parameters == released
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIP(clip_preset(name)).parameters()) == released


@pytest.mark.parametrize("config", [VIT, RESNET, replace(VIT, bias=True)])
def test_parameters_and_flops_are_those_counted(config):
    model = made(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(config), captions(3, 7))
    unread = config.vision.skipped_flops() + config.text.skipped_flops(7)
    assert counter.get_total_flops() == config.flops_per_pair(tokens=7) - 3 * unread


def test_hidden_patches_cost_nothing():
    model, kept = made(VIT), VIT.vision.kept_patches(0.5)
    kept_patches_BK = torch.arange(kept).expand(3, -1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(VIT), captions(3, 7), kept_patches_BK)
    assert kept == 4
    unread = VIT.vision.skipped_flops(kept) + VIT.text.skipped_flops(7)
    assert counter.get_total_flops() == VIT.flops_per_pair(kept=4, tokens=7) - 3 * unread


@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize("tower", ["visual", "text"])
def test_the_token_that_is_read_is_that_of_whole_blocks(tower, activation_checkpointing):
    model = lively(made(VIT)).double()
    blocks = getattr(model, tower).blocks
    blocks.activation_checkpointing = activation_checkpointing
    x_BTC = torch.randn(3, 9, blocks.layers[0].ln_1.weight.shape[0], dtype=torch.double)
    index_B, gradients = torch.tensor([0, 8, 5]), []
    whole_BTC = x_BTC
    for block in blocks.layers:
        whole_BTC = block(whole_BTC)
    results = whole_BTC[torch.arange(3), index_B], blocks(x_BTC, index_B)
    for result_BC in results:
        gradients.append(torch.autograd.grad(result_BC.square().sum(), list(blocks.parameters())))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def test_the_quick_gelu_is_the_published_one():
    x = torch.linspace(-9, 9, 101, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    assert torch.autograd.gradcheck(quick_gelu, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: replace(VIT.vision, num_heads=5), "width 48 is not a multiple of 5 heads"),
        (lambda: replace(VIT.vision, image_size=25), "25 is not a multiple of the patch of 8"),
        (lambda: replace(VIT.vision, num_layers=0), "must be positive"),
        (lambda: replace(RESNET.vision, image_size=60), "60 is not a multiple of 32"),
        (lambda: replace(RESNET.vision, width=5), "halves the width"),
        (lambda: replace(RESNET.vision, blocks=(1, 1, 0, 1)), "four groups"),
        (lambda: replace(RESNET.vision, num_heads=3), "width 128 is not a multiple of 3"),
        (lambda: replace(TEXT, context_length=2), "no room"),
        (lambda: replace(TEXT, eos=61), "is not an id of a vocabulary of 61"),
        (lambda: replace(TEXT, num_layers=0), "must be positive"),
        (lambda: replace(VIT, embed_dim=0), "embed_dim must be positive"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()


def test_every_preset_takes_ones_own_vocabulary():
    for name in PRESETS:
        config = clip_preset(name, vocab_size=500, context_length=9, special_ids=(0, 2, 3))
        assert (config.text.vocab_size, config.text.context_length, config.text.eos) == (500, 9, 3)
    assert clip_preset("tiny", image_size=96).vision.image_size == 96


def test_patches_are_those_of_the_image():
    pixels = images(VIT, 2)
    patches = split_patches(pixels, 8)
    assert patches.shape == (2, 9, 192)
    for row, column in product(range(3), range(3)):
        part = pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert torch.equal(patches[:, 3 * row + column], part.flatten(1))


def test_embeddings_have_norm_one_and_images_a_size():
    for config in (VIT, RESNET):
        model = made(config)
        image_BE, text_BE, scale, bias = model(images(config), captions())
        for found in (image_BE, text_BE):
            torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
        assert (scale.item(), bias.item()) == (pytest.approx(1 / 0.07), 0)
        with pytest.raises(ValueError, match="not 3x40x40"):
            model.encode_image(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match="13 tokens do not fit a context of 12"):
        made(VIT).encode_text(torch.zeros(1, 13, dtype=torch.long))


def test_captions_are_read_at_the_first_end():
    model = lively(made(VIT))
    tokens_BT = captions()
    padded_BT = F.pad(tokens_BT, (0, 3), value=3)
    padded_BT[1, 8] = 40
    torch.testing.assert_close(model.encode_text(padded_BT), model.encode_text(tokens_BT))
    before_BT = tokens_BT.clone()
    before_BT[:, 2] = (before_BT[:, 2] + 1) % 50 + 4
    assert (model.encode_text(before_BT) - model.encode_text(tokens_BT)).abs().max() > 1e-3


def test_hiding_patches_keeps_the_class_token_and_places():
    """What is left is what a tower without the other patches computes."""
    tower = lively(made(VIT)).visual
    pixels = images(VIT, 4)
    chosen_BK = torch.tensor([[0, 1, 2, 3], [1, 3, 5, 8], [0, 4, 6, 7], [5, 6, 7, 8]])
    found = tower(pixels, chosen_BK)
    for image, chosen_K, embedding in zip(pixels, chosen_BK, found, strict=True):
        patches = tower.patch(split_patches(image[None], 8)[0, chosen_K])
        x_TC = torch.cat([tower.class_embedding[None], patches])
        places = torch.cat([torch.zeros(1, dtype=torch.long), 1 + chosen_K])
        x_1TC = tower.ln_pre(x_TC + tower.position_embedding[places])[None]
        x_1C = tower.blocks(x_1TC, torch.tensor([0]))
        torch.testing.assert_close(tower.proj(tower.ln_post(x_1C[0])), embedding)
    every_BK = torch.arange(9).expand(4, -1)
    torch.testing.assert_close(tower(pixels, every_BK), tower(pixels))


@pytest.mark.parametrize("config", [VIT, RESNET])
def test_in_bfloat16_towers_take_the_same_images_and_give_float32(config):
    model = made(config)
    expected = model(images(config), captions())
    found = model.bfloat16()(images(config), captions())
    for low, high in zip(found[:2], expected[:2], strict=True):
        assert low.dtype == torch.float32
        assert ((low * high).sum(1) > 0.99).all()


def test_recomputing_changes_no_gradient():
    model = lively(made(VIT))
    grads = []
    for on in (False, True):
        model.zero_grad()
        model.set_activation_checkpointing(on)
        image_BE, text_BE, *_ = model(images(VIT), captions())
        (image_BE * text_BE).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def written_out_resnet(state, config, pixels):
    """The published tower, one operation a line, on a dict of weights."""

    def normalised(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-5)
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def conv(x, name, **options):
        return F.conv2d(x, state[f"{name}.weight"], **options)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = normalised(conv(pixels, "conv1", stride=2, padding=1), "bn1").relu()
    x = normalised(conv(x, "conv2", padding=1), "bn2").relu()
    x = normalised(conv(x, "conv3", padding=1), "bn3").relu()
    x = F.avg_pool2d(x, 2)
    for group, count in enumerate(config.blocks):
        for block in range(count):
            name = f"groups.{group}.{block}"
            y = normalised(conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
            y = normalised(conv(y, f"{name}.conv2", padding=1), f"{name}.bn2").relu()
            rest = x
            if group and not block:
                y, rest = F.avg_pool2d(y, 2), F.avg_pool2d(rest, 2)
            y = normalised(conv(y, f"{name}.conv3"), f"{name}.bn3")
            if not block:
                rest = normalised(conv(rest, f"{name}.shortcut.0"), f"{name}.shortcut.1")
            x = (y + rest).relu()
    found = []
    for image in x:
        places = image.flatten(1).T
        places = torch.cat([places.mean(0, keepdim=True), places])
        places = places + state["pool.position_embedding"]
        q, k, v = (linear(places, f"pool.{name}") for name in "qkv")
        size = q.shape[1] // config.num_heads
        heads = []
        for head in range(config.num_heads):
            at = slice(head * size, head * size + size)
            weights = torch.softmax(q[0, at] @ k[:, at].T / math.sqrt(size), dim=-1)
            heads.append(weights @ v[:, at])
        found.append(linear(torch.cat(heads), "pool.proj"))
    return torch.stack(found)


def test_the_resnet_is_the_published_one():
    model = lively(made(RESNET)).double()
    pixels = images(RESNET).double()
    tower = model.visual
    expected = written_out_resnet(tower.state_dict(), RESNET.vision, pixels)
    torch.testing.assert_close(tower(pixels), expected, rtol=1e-9, atol=1e-9)


def test_a_new_resnet_is_all_shortcuts():
    tower = made(RESNET).visual
    assert all(block.bn3.weight.eq(0).all() for group in tower.groups for block in group)


def test_the_start_is_that_of_the_paper():
    config = clip_preset("small", vocab_size=300)
    model = made(config)
    blocks = model.text.blocks.layers
    assert blocks[0].attn.qkv.weight.std().item() == pytest.approx(256**-0.5, rel=0.03)
    assert blocks[0].attn.out.weight.std().item() == pytest.approx(2048**-0.5, rel=0.03)
    assert blocks[0].mlp.fc.weight.std().item() == pytest.approx(512**-0.5, rel=0.03)
    assert blocks[0].mlp.proj.weight.std().item() == pytest.approx(2048**-0.5, rel=0.03)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_over_its_limit_the_scale_is_the_limit_and_has_its_gradient():
    model = made(VIT)
    with torch.no_grad():
        model.logit_scale.fill_(LOG_SCALE_LIMIT + 0.3)
    model.scale().backward()
    assert model.scale().item() == pytest.approx(100)
    assert model.logit_scale.grad.item() == pytest.approx(100), "d exp(x) at the limit"
    model.limit_scale()
    assert model.logit_scale.item() == pytest.approx(LOG_SCALE_LIMIT)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    assert model.scale().item() == pytest.approx(math.exp(2))


def test_a_sigmoid_model_begins_with_few_pairs_in_mind():
    *_, scale, bias = made(replace(VIT, bias=True))(images(VIT), captions())
    assert (scale.item(), bias.item()) == (pytest.approx(10), pytest.approx(-10))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norms_in_half_precision_keep_their_statistics_in_float32(dtype):
    """They come as near to those of the batch as in float32; rounded to bfloat16 they stop at two
    hundredths from them."""
    whole = lively(made(RESNET)).train()
    half = copy.deepcopy(whole).to(dtype)
    with torch.no_grad():
        for model in (whole, half):
            for _ in range(60):
                model.encode_image(images(RESNET, 4))
    buffers = {name: b for name, b in half.named_buffers() if "running" in name}
    assert {b.dtype for b in buffers.values()} == {torch.float32}
    first, wanted = half.visual.bn1, whole.visual.bn1
    torch.testing.assert_close(first.running_var, wanted.running_var, rtol=5e-3, atol=0)
    assert first.num_batches_tracked == wanted.num_batches_tracked == 60
    assert first.weight.dtype == dtype
