"""Test of a model folder: does it load, and does the model work?

    python -m stages.models.smoke_test FOLDER

prints one line and exits with code 0, or prints the reason and exits with 1. Folders that
`transformers` knows are loaded by `transformers` alone, others by the reader of their family.
Promotion runs this module before it moves an alias.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stages.models.registry import find_family_of_folder

TOKENS = 8


def check(folder: Path) -> str:
    """Load the folder and use the model once: generate from a language model, score with a reward
    model, embed with a CLIP.

    Returns:
        A line about the output.

    Raises:
        Exception: the folder does not load, or the model does not work.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    raw = json.loads((folder / "config.json").read_text())
    family = find_family_of_folder(raw, folder)
    if family.smoke_test is not None:
        return family.smoke_test(folder)
    if family.hf_types[raw["model_type"]].causal_lm is None:
        return _check_own_reader(folder, raw)
    architecture = (raw.get("architectures") or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        scorer = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        score = scorer(_first_token(raw)).logits
        _check_finite(score)
        return f"{architecture} scores {score.flatten()[0].item():.3f}"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return f"{architecture} generates {_generate(model, raw)} tokens"


def _generate(model: Any, raw: dict[str, Any]) -> int:
    """Return the number of tokens that a model of `transformers` generates greedily."""
    import torch

    start = _first_token(raw)
    _check_finite(model(start).logits)
    generated = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=TOKENS, do_sample=False
    )
    return int(generated.shape[1]) - 1


def _check_own_reader(folder: Path, raw: dict[str, Any]) -> str:
    from stages.models.model_io import load_language_model

    model = load_language_model(folder)
    _check_finite(model(_first_token(raw)))
    return f"{type(model).__name__} predicts a token"


def _first_token(raw: dict[str, Any]) -> Any:
    import torch

    return torch.tensor([[raw.get("bos_token_id") or 0]])


def _check_finite(values: object) -> None:
    import torch

    if not isinstance(values, torch.Tensor) or not torch.isfinite(values).all():
        raise ValueError("the output is not finite")


def main(arguments: list[str]) -> int:
    """Check the folder and return the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m stages.models.smoke_test FOLDER\n")
        return 2
    try:
        line = check(Path(arguments[0]))
    except Exception as error:  # whatever the reason, the folder must not be promoted
        line = (str(error).strip() or "no message").splitlines()[0]
        sys.stderr.write(f"{arguments[0]}: {type(error).__name__}: {line}\n")
        return 1
    sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
