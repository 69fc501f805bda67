"""Model folders against `transformers` alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stages.models.model_io import load_language_model, load_reward_model


def assert_transformers_agree(folder: Path) -> None:
    """`transformers` loads the folder and computes what we do: in float32, to 1e-5."""
    config = json.loads((folder / "config.json").read_text())
    generator = torch.Generator().manual_seed(0)
    shape = (3, min(24, config.get("n_positions") or config["max_position_embeddings"]))
    tokens_BT = torch.randint(16, config["vocab_size"], shape, generator=generator)
    with torch.no_grad():
        if config["architectures"][0].endswith("ForSequenceClassification"):
            scorer = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            theirs, ours = (
                scorer(tokens_BT).logits[:, 0] + config.get("score_bias", 0.0),
                load_reward_model(folder)(tokens_BT)[:, -1],
            )
        else:
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            theirs, ours = model(tokens_BT).logits, load_language_model(folder)(tokens_BT)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
