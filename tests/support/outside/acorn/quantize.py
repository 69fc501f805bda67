"""A kind of artifact with the stage that makes it: models whose weights are rounded to few bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline.kind import Kind, register_kind
from pipeline.stage import Inputs, Params, stage

if TYPE_CHECKING:
    from pipeline.context import Context

register_kind(
    Kind(
        "QuantizedModel",
        promotable=True,
        reader="acorn.quantize:open_quantized",
        headline_metrics=("rounding_error",),
    )
)


class QuantizeParams(Params):
    """Parameters of `quantize`."""

    bits: Annotated[int, Field(ge=2, le=16)] = 8
    """Bits per weight. Default: 8."""


@stage("quantize", inputs={"model": "Model"}, output="QuantizedModel", version=1)
def quantize(params: QuantizeParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Round the weights of each matrix to multiples of one number."""
    import torch

    from stages.models.hf_io import special_ids
    from stages.models.model_io import load_language_model, save_language_model

    folder = inputs.path("model")
    model, errors = load_language_model(folder), []
    with torch.no_grad():
        for weight in model.parameters():
            step = weight.abs().max() / (2 ** (params.bits - 1) - 1)
            rounded = (weight / step).round() * step
            errors.append((rounded - weight).norm() / weight.norm())
            weight.copy_(rounded)
    save_language_model(model, out, folder, ids=special_ids(folder))
    ctx.result(bits=params.bits, matrices=len(errors), rounding_error=float(max(errors)))


def open_quantized(folder: Path) -> Any:
    """Return the model of an artifact."""
    from stages.models.model_io import load_language_model

    return load_language_model(folder)
