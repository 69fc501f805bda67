"""Does a model folder load and work, with `transformers` alone? `python -m stages.models.smoke_test FOLDER`.

A CLIP with a ResNet tower, for which `transformers` has no class, is loaded by our own reader.
Exit code 0 and one line if so; 1 and the reason if not. Promotion asks before it moves an alias.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOKENS = 8


def check(folder: Path) -> str:
    """Load the folder and use it once: generate from a language model, score with a scorer,
    compare an image and a caption with a CLIP.

    Returns:
        What was seen, in one line.

    Raises:
        Exception: it does not load or does not work, in `transformers`' own words.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = json.loads((folder / "config.json").read_text())
    if "clip" in config.get("model_type", ""):
        return _check_clip(folder, config)
    start = torch.tensor([[config.get("bos_token_id") or 0]])
    architecture = (config.get("architectures") or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        scorer = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        score = scorer(start).logits
        _finite(score)
        return f"{architecture} scores {score.flatten()[0].item():.3f}"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    _finite(model(start).logits)
    made = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=TOKENS, do_sample=False
    )
    return f"{architecture} generates {made.shape[1] - 1} tokens"


def _check_clip(folder: Path, config: Mapping[str, Any]) -> str:
    import torch

    native = config["model_type"] != "clip"
    size = config["vision" if native else "vision_config"]["image_size"]
    pixels, tokens = torch.zeros(1, 3, size, size), torch.zeros(1, 3, dtype=torch.long)
    if native:
        from stages.models.clip.conversion_clip import load_clip

        image, text, *_ = load_clip(folder)(pixels, tokens)
        name = "CLIP"
    else:
        from transformers import CLIPModel

        seen = CLIPModel.from_pretrained(folder).eval()(input_ids=tokens, pixel_values=pixels)
        image, text, name = seen.image_embeds, seen.text_embeds, "CLIPModel"
    cosine = (image * text).sum()
    _finite(cosine)
    return f"{name} compares: cosine {cosine.item():.3f}"


def _finite(values: object) -> None:
    import torch

    if not isinstance(values, torch.Tensor) or not torch.isfinite(values).all():
        raise ValueError("the output is not finite")


def main(arguments: list[str]) -> int:
    """Check the folder that is named.

    Returns:
        The exit code.
    """
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m stages.models.smoke_test FOLDER\n")
        return 2
    try:
        seen = check(Path(arguments[0]))
    except Exception as error:  # whatever it is, the folder is not fit for use
        line = (str(error).strip() or "no message").splitlines()[0]
        sys.stderr.write(f"{arguments[0]}: {type(error).__name__}: {line}\n")
        return 1
    sys.stdout.write(seen + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
