"""Conversion of CLIPs from and to the `CLIPModel` and `CLIPProcessor` of `transformers`.

    config.json  model.safetensors  preprocessor_config.json  README.md  + the tokenizer's files

The tokenizer's files are those of training, except that they add bos and eos and pad on the right,
as CLIP needs. A learned bias of the logits (SigLIP's), for which `CLIPModel` has no weight, is kept
as `logit_bias` in config.json: embeddings are the same without it.

`transformers` has no class for ResNet towers. Their folder is of a type of its own,
`headwater_clip` (config.json, weights by the names of the model here, the same other files);
`load_clip` reads both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

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
from stages.models.hf_io import (
    copy_tokenizer,
    read_config,
    read_weights,
    update_tokenizer_config,
    write_json,
    write_weights,
)
from stages.models.weight_table import (
    IDENTITY,
    Concatenated,
    Reshaped,
    WeightEntry,
    export_weights,
    import_weights,
)

NATIVE = "headwater_clip"
_CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- headwater
- clip
---

"""
_STORED = {
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
    "attn.qkv": "self_attn",
    "attn.out": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.fc": "mlp.fc1",
    "mlp.proj": "mlp.fc2",
}
_LEGACY_EOS = 2
"""`eos_token_id` of the oldest folders, whose end of text is the largest id instead."""


class CLIPConversion:
    """The conversion of a CLIP from and to a `CLIPModel`, or a folder of Headwater's type."""

    body = ""
    ignored: tuple[str, ...] = ("embeddings.position_ids",)

    def config_json(self, config: CLIPConfig) -> dict[str, Any]:
        """Return the `config.json` of a `CLIPModel`, or that of Headwater's type for a ResNet."""
        if config.vision.in_transformers:
            return _config(config)
        return {"model_type": NATIVE, **asdict(config)}

    def read_config(self, raw: Mapping[str, Any], where: str, dropout: float = 0.0) -> CLIPConfig:
        """Return the config that a `config.json` describes.

        Raises:
            InputError: it describes a model that cannot be computed here.
            KeyError, TypeError, ValueError: it lacks a size, or its sizes do not fit each other.
        """
        return _read_native(raw) if raw["model_type"] == NATIVE else _read_clip(raw, where)

    def weight_table(self, config: CLIPConfig) -> list[WeightEntry]:
        """Return the correspondence of weights with those of a `CLIPModel`."""
        return weight_table(config)


def save_clip(
    model: CLIP, folder: Path, tokenizer_folder: Path | None = None, *, card: str = ""
) -> None:
    """Write a folder that gives the same embeddings.

    With a ViT it is a folder of `transformers.CLIPModel`; with a ResNet one that only `load_clip`
    reads.

    Args:
        model: the weights, whole (not sharded), of any floating type; written as float32.
        folder: created if missing.
        tokenizer_folder: where the tokenizer's files are copied from.
        card: the text of the model card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, state = CLIPConversion().config_json(model.config), model.state_dict()
    if model.config.vision.in_transformers:
        weights = export_weights(state, weight_table(model.config))
        if model.logit_bias is not None:
            config["logit_bias"] = float(model.logit_bias.detach())
    else:
        weights = state
    write_weights(folder, weights)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", _preprocessor(model.config.vision.image_size))
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)
        _add_special_tokens(folder, model.config.text)
    (folder / "README.md").write_text(_CARD + (card.strip() or "# CLIP") + "\n")


def load_clip(folder: Path) -> CLIP:
    """Return the CLIP of a folder, of `transformers` or Headwater's type, in evaluation mode.

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
        config = CLIPConversion().read_config(raw, str(folder))
        model = CLIP(config)
        if kind == "clip":
            weights = import_weights(weights, weight_table(config), CLIPConversion.ignored)
            if config.bias:
                weights["logit_bias"] = torch.tensor([float(raw["logit_bias"])])
        model.load_state_dict(dict(weights))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"weights and config disagree: {error}", where=str(folder)) from error
    return model.eval()


def _config(shape: CLIPConfig) -> dict[str, Any]:
    vision, text = shape.vision, shape.text
    assert isinstance(vision, ViTConfig)
    common = {
        "hidden_act": shape.activation,
        "layer_norm_eps": shape.norm_eps,
        "projection_dim": shape.embed_dim,
    }
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": shape.embed_dim,
        "logit_scale_init_value": 2.6592,
        "dtype": "float32",
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
"""Defaults of `CLIPVisionConfig` and `CLIPTextConfig`."""


def _read_clip(raw: Mapping[str, Any], where: str) -> CLIPConfig:
    vision, text = ({**base, **(raw.get(key) or {})} for base, key in _SECTIONS)
    for section in (vision, text):
        if section["intermediate_size"] != 4 * section["hidden_size"]:
            raise ValueError("the feed-forward layer is not four times as wide as the tower")
        if section["hidden_act"] not in ("quick_gelu", "gelu"):
            raise InputError(f"unknown activation {section['hidden_act']!r}", where=where)
    for key in ("hidden_act", "layer_norm_eps"):
        if text[key] != vision[key]:
            raise InputError(
                f"the towers differ in {key}: {text[key]!r} and {vision[key]!r}",
                where=where,
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


def weight_table(config: CLIPConfig) -> list[WeightEntry]:
    """Return the correspondence of weights with those of `CLIPModel`."""
    vision = config.vision
    assert isinstance(vision, ViTConfig)
    side, width = vision.patch_size, vision.hidden_size
    reshaped = {
        "visual.patch.weight": Reshaped((width, 3 * side**2), (width, 3, side, side)),
        "logit_scale": Reshaped((1,), ()),
    }
    return [
        *(
            WeightEntry(name, (stored,), reshaped.get(name, IDENTITY))
            for name, stored in _STORED.items()
        ),
        *_block_entries("visual", "vision_model", vision),
        *_block_entries("text", "text_model", config.text),
    ]


def _block_entries(
    model_prefix: str, stored_prefix: str, tower: ViTConfig | TextConfig
) -> Iterator[WeightEntry]:
    thirds = Concatenated((tower.hidden_size,) * 3)
    for layer in range(tower.num_layers):
        for module, stored in _BLOCK.items():
            for kind in ("weight", "bias"):
                name = f"{model_prefix}.blocks.layers.{layer}.{module}.{kind}"
                to = f"{stored_prefix}.encoder.layers.{layer}.{stored}"
                if module == "attn.qkv":
                    parts = tuple(f"{to}.{letter}_proj.{kind}" for letter in "qkv")
                    yield WeightEntry(name, parts, thirds)
                else:
                    yield WeightEntry(name, (f"{to}.{kind}",))


def _add_special_tokens(folder: Path, text: TextConfig) -> None:
    """Rewrite the tokenizer's files so that `AutoTokenizer` adds bos and eos, truncates to the
    context and pads on the right."""
    fast, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    is_headwater = (folder / "tokenizer.model").exists()  # others do so already
    if not (is_headwater and fast.exists() and settings.exists()):
        return
    fields = json.loads(settings.read_text())
    special = {fields["bos_token"]: text.bos, fields["eos_token"]: text.eos}
    first, last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in special)
    body = {"Sequence": {"id": "A", "type_id": 0}}
    rule = {
        "type": "TemplateProcessing",
        "single": [first, body, last],
        "pair": [first, body, {"Sequence": {"id": "B", "type_id": 0}}, last],
        "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in special.items()},
    }
    fast.write_text(json.dumps({**json.loads(fast.read_text()), "post_processor": rule}))
    update_tokenizer_config(folder, padding_side="right", model_max_length=text.context_length)


def _preprocessor(size: int) -> dict[str, Any]:
    """Return the config of the image processor: shorter side resized, center crop, normalized."""
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


def smoke_test(folder: Path) -> str:
    """Load a folder, by `transformers` if it can, embed an image and a caption, and return a line
    about it."""
    raw = read_config(folder)
    native = raw["model_type"] == NATIVE
    size = raw["vision" if native else "vision_config"]["image_size"]
    pixels, tokens = torch.zeros(1, 3, size, size), torch.zeros(1, 3, dtype=torch.long)
    if native:
        image, text, *_ = load_clip(folder)(pixels, tokens)
        name = "CLIP"
    else:
        from transformers import CLIPModel

        output = CLIPModel.from_pretrained(folder).eval()(input_ids=tokens, pixel_values=pixels)
        image, text, name = output.image_embeds, output.text_embeds, "CLIPModel"
    cosine = (image * text).sum()
    if not torch.isfinite(cosine).all():
        raise ValueError("the output is not finite")
    return f"{name} compares: cosine {cosine.item():.3f}"
