"""Rows that become preferences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.chat.conversion.row_reader import Json, KeptRow, RowReader, message_rows, stored_texts
from stages.chat.row_formats.row_format import RowFormat
from stages.chat.row_options import RowOptions
from stages.chat.turn_checks import check_ranking
from stages.chat.turns import Ranking, Row
from stages.data.preference_dataset import Preference, write_preferences


class RankingRows(RowReader[Ranking]):
    """Reader of the rankings of rows."""

    wanted = "rankings"
    noun = "rankings"
    nothing = "no_ranking"

    def find(self, row_format: RowFormat, row: Row, options: RowOptions) -> list[Ranking]:
        """Return the rankings of a row."""
        return row_format.rankings(row, options)

    def check(self, found: Ranking, options: RowOptions) -> tuple[Ranking, tuple[str, ...]]:
        """Return a ranking in order, with the names of what was shortened."""
        return check_ranking(found, options)

    def store(self, found: Ranking) -> Json:
        """Return a ranking as JSON."""
        return {
            "messages": message_rows(found.prompt),
            "responses": list(found.responses),
            "ranks": list(found.ranks),
            "meta": found.meta,
        }

    def texts(self, data: Json) -> list[str]:
        """Return the texts of the prompt and the responses."""
        return [*stored_texts(data["messages"]), *data["responses"]]

    def write(self, out: Path, kept: Iterable[KeptRow]) -> int:
        """Write Preferences."""
        return write_preferences(
            out,
            (
                Preference(
                    row.id,
                    row.messages,
                    tuple(row.data["responses"]),
                    tuple(row.data["ranks"]),
                    row.split,
                    row.meta,
                )
                for row in kept
            ),
        )

    def sample(self, data: Json) -> Sequence[tuple[str, str]]:
        """Return the messages of the prompt, then the responses from best to worst."""
        ranked = sorted(
            zip(data["ranks"], data["responses"], strict=True), key=lambda pair: pair[0]
        )
        prompt = [(message["role"], message["content"]) for message in data["messages"]]
        return [*prompt, *((f"rank {rank}", response) for rank, response in ranked)]


def count_pairs(ranks: Sequence[int]) -> int:
    """Return the number of pairs of responses whose ranks differ."""
    return sum(a != b for at, a in enumerate(ranks) for b in ranks[:at])
