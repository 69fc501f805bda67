"""Options of reading rows: names of fields and roles, repeated turns, answers of trees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RepeatedRoles = Literal["merge", "refuse"]
Replies = Literal["all", "once"]


@dataclass(frozen=True)
class RowOptions:
    """Statements about rows that their format does not make."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """Names of fields: the format's name -> the name in the file."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Role words of the file -> system, user, assistant or tool."""
    repeated_roles: RepeatedRoles = "merge"
    """Two turns of one role in a row: joined by an empty line, or the row is left out."""
    replies: Replies = "once"
    """Answers that several paths of a tree share: learned in the first of them, or in each."""

    def renamed(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of a row by the names of the format."""
        if not self.fields:
            return values
        taken = {name: values[own] for name, own in self.fields.items() if own in values}
        used = set(self.fields.values())
        return {name: value for name, value in values.items() if name not in used} | taken

    def own_name(self, path: str) -> str:
        """Return the path of a field by the file's name, `chat[2].content` for `messages[2]...`."""
        head = path.partition("[")[0].partition(".")[0]
        return self.fields.get(head, head) + path[len(head) :]
