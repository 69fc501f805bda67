"""Does a model folder load and work, with `transformers` alone? `python -m stages.smoke FOLDER`.

Exit code 0 and one line if so; 1 and the reason if not. Promotion asks before it moves an alias.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TOKENS = 8


def check(folder: Path) -> str:
    """Load the folder and use it once: generate from a language model, score with a scorer.

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
        sys.stderr.write("usage: python -m stages.smoke FOLDER\n")
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
