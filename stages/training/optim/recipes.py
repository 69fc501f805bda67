"""Training settings that the papers of GPT-1 and GPT-3 give for their models."""

from __future__ import annotations

from stages.models.presets import PRESETS

_GPT3_TOKENS, _GPT3_WARMUP_TOKENS = 300e9, 375e6
_GPT3 = {  # learning rate, tokens per batch
    "gpt3-125m": (6.0e-4, 0.5e6),
    "gpt3-350m": (3.0e-4, 0.5e6),
    "gpt3-760m": (2.5e-4, 0.5e6),
    "gpt3-1.3b": (2.0e-4, 1e6),
    "gpt3-2.7b": (1.6e-4, 1e6),
    "gpt3-6.7b": (1.2e-4, 2e6),
    "gpt3-13b": (1.0e-4, 2e6),
    "gpt3-175b": (0.6e-4, 3.2e6),
}
_GPT3_ADAM: dict[str, float | int | str] = {
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "grad_clip": 1.0,
    "weight_decay": 0.1,
}


def recipe(preset: str) -> dict[str, float | int | str]:
    """Return the paper's settings for a preset by the keys of `train:`, empty if it gives none.

    GPT-3: Brown et al. 2020, table 2.1 and appendix B, 300 billion tokens (its batch grew over the
    first billions, which `batch_size_rampup` can do where the workers are few enough). GPT-1:
    Radford et al. 2018, section 4.1, without the number of steps. Batches are rounded to 32
    samples.
    """
    if preset == "gpt1":
        rest = {"global_batch_size": 64, "weight_decay": 0.01}
        return {"lr": 2.5e-4, "lr_schedule": "cosine", "min_lr_ratio": 0.0, **rest}
    if preset not in _GPT3:
        return {}
    lr, tokens = _GPT3[preset]
    context_length = PRESETS[preset].context_length
    batch = round(tokens / context_length / 32) * 32
    decay: dict[str, float | int | str] = {
        "lr_schedule": "cosine",
        "min_lr_ratio": 0.1,
        "warmup_steps": _GPT3_WARMUP_TOKENS / _GPT3_TOKENS,
    }
    steps = round(_GPT3_TOKENS / (batch * context_length))
    return {**_GPT3_ADAM, **decay, "lr": lr, "global_batch_size": batch, "steps": steps}
