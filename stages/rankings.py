"""Read ranked responses in the formats of other programs: sources -> Preferences.

    pairs: {uses: rankings, sources: ["hh/*.jsonl.gz"]}

Prompts with a chosen and a rejected response (texts or messages), hh-rlhf dialogues and OASST trees
(K ranked replies per prompt) are detected per file, or named (`format`); docs/conversations.md
describes each. What is left out or shortened is counted by reason, with file, row and field. The
split is that of `conversations`: a prompt is in the same split in both stages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.stage import Inputs, stage
from stages.chat.conversion.source_params import ROW_METRICS, RowSourceParams

if TYPE_CHECKING:
    from pipeline.context import Context


class RankingsParams(RowSourceParams):
    """Parameters of `rankings`."""

    wanted: ClassVar[Literal["dialogues", "rankings"]] = "rankings"


@stage(
    "rankings",
    output="Preferences",
    version=1,
    metrics={
        "rankings": "rankings that are kept, shortened ones included",
        "pairs": "pairs of responses with different ranks",
        **ROW_METRICS,
    },
)
def rankings(params: RankingsParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Read ranked responses from files of any known format."""
    from stages.chat.conversion.ranking_rows import RankingRows
    from stages.chat.conversion.row_conversion import convert_rows

    convert_rows(params, RankingRows(), out, ctx)
