"""Records that a stage leaves out, by reason: in its log, metrics, report and warnings.

observed/warnings.json    [{"message", "remedy"}]: printed by `run` and `status`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline import panels
from stages.curation.folder_listing import LeftOut, describe_left_out

if TYPE_CHECKING:
    from pipeline.context import Context

WARNING_SHARE = 0.05
"""Share of the records above which leaving them out is a warning."""
_NAMED = 4  # reasons in a warning


LEFT_OUT_METRICS = {
    "left_out": "records that are read and not passed on",
    "left_out_*": "those of one reason",
}
"""Metrics of `report_left_out`, for the declaration of a stage."""
BOTH_SPLITS_METRICS = LEFT_OUT_METRICS | {
    "eval_left_out": "records held out for evaluation that are read and not used",
    "eval_left_out_*": "those of one reason",
}
"""Metrics of `report_both_splits`, for the declaration of a stage."""
UNREAD_METRICS = {
    "files": "files that are read",
    "files_not_read": "files and folders of the sources that are not read",
}
"""Metrics of `report_unread`, for the declaration of a stage."""


def report_left_out(
    ctx: Context,
    noun: str,
    read: int,
    reasons: Mapping[str, int],
    keys: Mapping[str, str],
    prefix: str = "",
) -> None:
    """Report the records that a stage read and did not pass on.

    Args:
        ctx: context of the stage.
        noun: plural of what a record is.
        read: number of records, including those left out.
        reasons: number of records that are left out by each reason.
        keys: the parameter that changes a reason, where there is one.
        prefix: of the metrics of a second kind of records.
    """
    counts = {name: n for name, n in sorted(reasons.items(), key=lambda item: -item[1]) if n}
    total = sum(counts.values())
    metrics = {"left_out": total, **{f"left_out_{name}": n for name, n in counts.items()}}
    ctx.result(**{f"{prefix}{name}": n for name, n in metrics.items()})
    if not total:
        return
    named = [
        f"{name} {n:,}" + (f" (`{keys[name]}`)" if name in keys else "")
        for name, n in counts.items()
    ]
    ctx.log(f"left out {total:,} of {read:,} {noun}: {', '.join(named)}")
    rows = [(name, n, f"{n / read:.1%}", keys.get(name, "")) for name, n in counts.items()]
    title = f"Left out of {noun}, by reason" if prefix else "Left out, by reason"
    ctx.panel(panels.table(title, ("reason", noun, "share", "parameter"), rows))
    if total > WARNING_SHARE * read:
        more = f" and {len(named) - _NAMED} other reasons" if len(named) > _NAMED else ""
        warn(
            ctx,
            f"{total:,} of {read:,} {noun} ({total / read:.1%}) are left out: "
            f"{', '.join(named[:_NAMED])}{more}",
            "the parameters in brackets change it"
            if keys.keys() & set(list(counts)[:_NAMED])
            else "the report describes them",
        )


def report_both_splits(
    ctx: Context,
    noun: str,
    counts: Sequence[Mapping[str, int]],
    reasons: Sequence[str],
    keys: Mapping[str, str],
) -> None:
    """Report the records that are left out of training, and of evaluation (`eval_left_out`).

    Args:
        ctx: context of the stage.
        noun: plural of what a record is.
        counts: of both splits: `read`, and the records by outcome.
        reasons: the outcomes that leave a record out.
        keys: the parameter that changes a reason, where there is one.
    """
    names = ((noun, ""), (f"held-out {noun}", "eval_"))
    for (name, prefix), found in zip(names, counts, strict=True):
        left_out = {reason: found.get(reason, 0) for reason in reasons}
        report_left_out(ctx, name, found.get("read", 0), left_out, keys, prefix)


def report_unread(ctx: Context, files: int, unread: LeftOut) -> None:
    """Report the files and folders of the sources that are not read.

    Args:
        ctx: context of the stage.
        files: number of files that are read.
        unread: number of the others, by reason.
    """
    total = sum(unread.values())
    ctx.result(files=files, files_not_read=total)
    if not total:
        return
    ctx.panel(panels.table("Not read", ("files and folders", "number"), unread.most_common()))
    message = f"{total:,} files or folders of the sources are not read: {describe_left_out(unread)}"
    if total > WARNING_SHARE * (files + total):
        warn(ctx, message, "convert them, or name them in a source of their own")
    else:
        ctx.log(message)


def warn(ctx: Context, message: str, remedy: str) -> None:
    """Add a warning that `run` and `status` print, and log it."""
    from pipeline.atomic_io import read_json, write_atomic
    from pipeline.plain_data import to_json

    path = ctx.observed / "warnings.json"
    known: list[dict[str, str]] = read_json(path, [])
    kept = [old for old in known if old["message"] != message]
    warnings = [*kept, {"message": message, "remedy": remedy}]
    write_atomic(path, to_json(warnings, ctx.secrets), durable=False)
    ctx.log(f"warning: {message}; {remedy}")
