"""Read conversations in the formats of other programs: sources -> Conversations.

    chats: {uses: conversations, sources: ["chats.jsonl"]}
    trees: {uses: conversations, sources: ["oasst/*.jsonl.gz"], replies: once, eval_share: 0.1}

Messages, prompts with completions, Alpaca and ShareGPT rows, OASST trees, hh-rlhf dialogues,
preferences and KTO rows are detected per file, or named (`format`); docs/conversations.md describes
each. What is left out or shortened is counted by reason, with file, row and field.

    annotate   a shard of files -> what each row holds, checked
    write      splits by first prompt, copies, the artifact (`stages/chat/conversion/`)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.stage import Inputs, stage
from stages.chat.conversion.source_params import ROW_METRICS, RowSourceParams

if TYPE_CHECKING:
    from pipeline.context import Context


class ConversationsParams(RowSourceParams):
    """Parameters of `conversations`."""

    wanted: ClassVar[Literal["dialogues", "rankings"]] = "dialogues"

    replies: Literal["all", "once"] = "once"
    """Loss on a reply of a tree (OASST) that several conversations share: in the first of them,
    with weight 0 in the others; or in all. Default: once."""

    @property
    def all_or_once(self) -> Literal["all", "once"]:
        """Treatment of replies that several conversations of a tree share."""
        return self.replies


@stage(
    "conversations",
    output="Conversations",
    version=1,
    metrics={
        "conversations": "conversations that are kept, shortened ones included",
        "multi_turn": "conversations with several messages of the user",
        "messages_*": "messages, by role",
        **ROW_METRICS,
    },
)
def conversations(params: ConversationsParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Read conversations from files of any known format."""
    from stages.chat.conversion.dialogue_rows import DialogueRows
    from stages.chat.conversion.row_conversion import convert_rows

    convert_rows(params, DialogueRows(), out, ctx)
