"""Report of a packed token store: sizes, packing efficiency, document lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline import panels
from stages.data.best_fit_packing import plan_packing
from stages.data.token_packing import ShuffledLayout

if TYPE_CHECKING:
    from pipeline.context import Context

MAX_PLANNED_DOCUMENTS = 200_000  # for the packing table


def report_tokens(layout: ShuffledLayout, ctx: Context) -> None:
    """Record the metrics of a token store and its panels."""
    rows: list[tuple[str, int, int]] = []
    metrics: dict[str, float] = {}
    for split in ("train", "eval"):
        lengths = layout.lengths(split)
        rows.append((split, len(lengths), int(lengths.sum())))
        metrics |= {f"{split}_tokens": int(lengths.sum()), f"{split}_documents": len(lengths)}
    ctx.result(**metrics)
    ctx.panel(panels.table("Token store", ("split", "documents", "tokens"), rows))
    edges = [2**k for k in range(4, 21)]
    ctx.panel(packing_panel(layout.lengths("train")[:MAX_PLANNED_DOCUMENTS]))
    counts, _ = np.histogram(layout.lengths("train"), edges)
    ctx.panel(panels.histogram("Tokens per document", edges, counts.tolist()))


def packing_panel(lengths: npt.NDArray[np.int64]) -> panels.Panel:
    """Return a table of padding and split documents of best-fit packing, by context length."""
    ends, rows = np.cumsum(lengths), []
    for context_length in (2**k for k in range(7, 15)):
        plan = plan_packing(ends, context_length)
        padding = 1 - ends[-1] / (plan.num_samples * context_length)
        split_by_windows = np.count_nonzero(
            (ends - lengths) // context_length != (ends - 1) // context_length
        )
        split = [round(100 * count / len(ends), 2) for count in (split_by_windows, plan.num_split)]
        rows.append((context_length, plan.num_samples, round(100 * float(padding), 3), *split))
    columns = ("context", "samples", "% padding", "% documents split by windows", "% by best fit")
    return panels.table(f"Packing of {len(ends):,} documents", columns, rows)
