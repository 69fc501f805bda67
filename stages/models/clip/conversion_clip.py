"""CLIP folders: what `transformers.CLIPModel` and `CLIPProcessor` load, and back.

    config.json  model.safetensors  preprocessor_config.json  README.md  + the tokenizer's files

The tokenizer's files are those of training, but that they put <s> and </s> around a text and pad
on the right, as CLIP reads it. A learned bias of the logits (SigLIP's), for which `CLIPModel` has
no place, is kept as `logit_bias` in config.json: embeddings are the same without it.

`transformers` has no class for ResNet towers. Their folder is of another type, `headwater_clip`
(config.json, weights by our names, the same other files); `load_clip` reads both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import InputError
from stages.models.clip.configuration_clip import (
    CLIP_MEAN,
    CLIP_STD,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from stages.models.clip.modeling_clip import CLIP
from stages.models.hf_export import copy_tokenizer
from stages.models.hf_io import read_config, read_weights

NATIVE = "headwater_clip"
_CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- headwater
- clip
---

"""
_TOWERS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.position_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.patch.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj.weight": "visual_projection.weight",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.position_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.weight": "text_model.final_layer_norm.weight",
    "text.ln_final.bias": "text_model.final_layer_norm.bias",
    "text.proj.weight": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out": "self_attn.out_proj",
    "mlp.fc": "mlp.fc1",
    "mlp.proj": "mlp.fc2",
}
_QKV = ("q_proj", "k_proj", "v_proj")
_BUFFERS = ("embeddings.position_ids",)
_LEGACY_EOS = 2
"""In the oldest folders: the end of text is whatever id is the largest, not this one."""


def save_clip(
    model: CLIP, folder: Path, tokenizer_folder: Path | None = None, *, card: str = ""
) -> None:
    """Write a folder that gives the same embeddings.

    With a ViT it is one of `transformers.CLIPModel`; with a ResNet one that only `load_clip`
    reads.

    Args:
        model: the weights, whole (not sharded), of any floating type; written as float32.
        folder: made if it is not there.
        tokenizer_folder: where the tokenizer's files are copied from.
        card: the text of the model card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: _plain(value) for name, value in model.state_dict().items()}
    if isinstance(model.config.vision, ViTConfig):
        config, weights = _config(model), _export(state, model.config.vision.patch_size)
    else:
        config, weights = {"model_type": NATIVE, **asdict(model.config)}, state
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config)
    _write(folder / "preprocessor_config.json", _preprocessor(model.config.vision.image_size))
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)
        _mark_texts(folder, model.config.text)
    (folder / "README.md").write_text(_CARD + (card.strip() or "# CLIP") + "\n")


def load_clip(folder: Path) -> CLIP:
    """Read a CLIP folder, of `transformers` or our own type, in evaluation mode.

    Raises:
        InputError: the folder holds no CLIP, or weights are missing or of another shape.
    """
    raw = read_config(folder)
    kind = raw.get("model_type")
    if kind not in ("clip", NATIVE):
        raise InputError(
            f"cannot read models of type {kind!r} as CLIP",
            where=str(folder),
            remedy=f"give a folder of model_type clip or {NATIVE}",
        )
    weights = read_weights(folder)
    try:
        config = _read_native(raw) if kind == NATIVE else _read_clip(raw, folder)
        model = CLIP(config)
        if kind == "clip":
            weights = _import(weights, model, raw)
        model.load_state_dict(dict(weights))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"weights and config disagree: {error}", where=str(folder)) from error
    return model.eval()


def _config(model: CLIP) -> dict[str, Any]:
    """The config of a `CLIPModel`."""
    shape, text = model.config, model.config.text
    vision = shape.vision
    assert isinstance(vision, ViTConfig)
    common = {
        "hidden_act": shape.activation,
        "layer_norm_eps": shape.norm_eps,
        "projection_dim": shape.embed_dim,
    }
    bias = {} if model.logit_bias is None else {"logit_bias": float(model.logit_bias.detach())}
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": shape.embed_dim,
        "logit_scale_init_value": 2.6592,
        "dtype": "float32",
        **bias,
        "vision_config": {
            **common,
            "model_type": "clip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.hidden_size,
            "intermediate_size": 4 * vision.hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
        },
        "text_config": {
            **common,
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.hidden_size,
            "intermediate_size": 4 * text.hidden_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "bos_token_id": text.bos,
            "eos_token_id": text.eos,
            "pad_token_id": text.pad,
        },
    }


_SHARED = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
_VISION = {
    **_SHARED,
    "image_size": 224, "patch_size": 32, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
_TEXT = {
    **_SHARED,
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8,
}  # fmt: skip
"""What `CLIPVisionConfig` and `CLIPTextConfig` take for what a folder leaves out."""


def _read_clip(raw: Mapping[str, Any], folder: Path) -> CLIPConfig:
    vision, text = ({**base, **(raw.get(key) or {})} for base, key in _SECTIONS)
    for section in (vision, text):
        if section["intermediate_size"] != 4 * section["hidden_size"]:
            raise ValueError("the feed-forward layer is not four times as wide as the tower")
        if section["hidden_act"] not in ("quick_gelu", "gelu"):
            raise InputError(f"unknown activation {section['hidden_act']!r}", where=str(folder))
    for key in ("hidden_act", "layer_norm_eps"):
        if text[key] != vision[key]:
            raise InputError(
                f"the towers differ in {key}: {text[key]!r} and {vision[key]!r}",
                where=str(folder),
                remedy="only models whose towers have it in common can be read",
            )
    legacy, last = text["eos_token_id"] == _LEGACY_EOS, text["vocab_size"] - 1
    return CLIPConfig(
        ViTConfig(
            vision["image_size"], vision["patch_size"], vision["num_hidden_layers"],
            vision["hidden_size"], vision["num_attention_heads"],
        ),
        TextConfig(
            text["vocab_size"], text["max_position_embeddings"], text["num_hidden_layers"],
            text["hidden_size"], text["num_attention_heads"],
            eos=last if legacy else text["eos_token_id"],
            bos=last - 1 if legacy else text["bos_token_id"] or 0,
            pad=text["pad_token_id"] or 0,
        ),
        raw.get("projection_dim") or 512,
        vision["hidden_act"],
        bias="logit_bias" in raw,
        norm_eps=vision["layer_norm_eps"],
    )  # fmt: skip


_SECTIONS = ((_VISION, "vision_config"), (_TEXT, "text_config"))


def _read_native(raw: Mapping[str, Any]) -> CLIPConfig:
    fields = {key: value for key, value in raw.items() if key != "model_type"}
    vision = {**fields.pop("vision")}
    vision["blocks"] = tuple(vision["blocks"])
    return CLIPConfig(
        vision=ResNetConfig(**vision), text=TextConfig(**fields.pop("text")), **fields
    )


def _export(state: Mapping[str, Tensor], patch: int) -> dict[str, Tensor]:
    """Our weights as `CLIPModel` stores them."""
    found = {}
    for name, value in state.items():
        if name in _TOWERS:
            shape = {"visual.patch.weight": (-1, 3, patch, patch), "logit_scale": ()}.get(name)
            found[_TOWERS[name]] = value if shape is None else value.view(shape)
        elif ".blocks." in name:
            found.update(_export_block(name, value))
    return found


def _export_block(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    tower, _, rest = name.partition(".blocks.layers.")
    number, _, rest = rest.partition(".")
    part, _, kind = rest.rpartition(".")
    prefix = f"{'vision' if tower == 'visual' else 'text'}_model.encoder.layers.{number}"
    if part == "attn.qkv":
        for each, piece in zip(_QKV, value.chunk(3), strict=True):
            yield f"{prefix}.self_attn.{each}.{kind}", piece.contiguous()
    else:
        yield f"{prefix}.{_BLOCK[part]}.{kind}", value


def _import(theirs: Mapping[str, Tensor], model: CLIP, raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """`CLIPModel`'s weights as we store them.

    Raises:
        KeyError: one is missing.
        ValueError: one is left over.
    """
    left = {name: value for name, value in theirs.items() if not name.endswith(_BUFFERS)}
    found = {}
    for name, own in model.state_dict().items():
        if name == "logit_bias":
            found[name] = torch.tensor([float(raw["logit_bias"])])
            continue
        names = [_TOWERS[name]] if name in _TOWERS else [n for n, _ in _export_block(name, own)]
        parts = [left.pop(n) for n in names]
        found[name] = (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(own.shape)
    if left:
        raise ValueError(f"nothing takes {sorted(left)[:3]}")
    return found


def _mark_texts(folder: Path, text: TextConfig) -> None:
    """Have `AutoTokenizer` put the marks around a text, cut it to the context, pad it right."""
    fast, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    ours = (folder / "tokenizer.model").exists()  # others do so already
    if not (ours and fast.exists() and settings.exists()):
        return
    told = json.loads(settings.read_text())
    marks = {told["bos_token"]: text.bos, told["eos_token"]: text.eos}
    first, last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in marks)
    body = {"Sequence": {"id": "A", "type_id": 0}}
    rule = {
        "type": "TemplateProcessing",
        "single": [first, body, last],
        "pair": [first, body, {"Sequence": {"id": "B", "type_id": 0}}, last],
        "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in marks.items()},
    }
    fast.write_text(json.dumps({**json.loads(fast.read_text()), "post_processor": rule}))
    _write(settings, {**told, "padding_side": "right", "model_max_length": text.context_length})


def _preprocessor(size: int) -> dict[str, Any]:
    """The middle square of the image, its shorter side resized, normalised."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }


def _plain(value: Tensor) -> Tensor:
    kept = value.dtype if not value.is_floating_point() else torch.float32
    return value.detach().to("cpu", kept).contiguous()


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
