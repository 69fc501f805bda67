"""Small files of conversations and rankings in public schemas, and runs of their stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.context import Context
from pipeline.stage import Inputs
from stages.conversations import ConversationsParams, conversations
from stages.rankings import RankingsParams, rankings

_STAGES: dict[str, tuple[Any, Any]] = {
    "conversations": (conversations, ConversationsParams),
    "rankings": (rankings, RankingsParams),
}


def messages(*texts: str) -> dict[str, Any]:
    """Return a row of messages whose roles alternate, the user's first."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]}


def pair(number: int, prompt: str = "") -> dict[str, Any]:
    """Return a row with a prompt, a chosen and a rejected answer."""
    prompt = prompt or f"question {number}"
    return {"prompt": prompt, "chosen": f"good {number}", "rejected": f"bad {number}"}


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write JSON lines; a text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def run_stage(stage: str, folder: Path, *sources: Path | str, **options: Any) -> Context:
    """Run a stage on sources in a fresh context of `folder`."""
    run, params = _STAGES[stage]
    ctx = Context.local(folder)
    run(params(sources=tuple(map(str, sources)), **options), Inputs({}), ctx.out, ctx)
    return ctx


def observed(ctx: Context, name: str) -> Any:
    """Return a JSON file that the stage reported: results, panels by title, or warnings."""
    path = ctx.observed / f"{name}.json"
    data = json.loads(path.read_text()) if path.exists() else []
    return {panel["title"]: panel for panel in data} if name == "panels" else data


def dropped_rows(ctx: Context) -> list[dict[str, Any]]:
    """Return the table of what is left out."""
    return list(pq.read_table(ctx.out / "dropped").to_pylist())


def bytes_of(ctx: Context) -> dict[str, bytes]:
    """Return the files of the artifact."""
    files = sorted(path for path in ctx.out.rglob("*") if path.is_file())
    return {path.relative_to(ctx.out).as_posix(): path.read_bytes() for path in files}
