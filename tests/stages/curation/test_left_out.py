"""Records that a stage leaves out are counted in its log, metrics, report and warnings."""

import json

import pytest

from pipeline.context import Context
from stages.curation.folder_listing import LeftOut
from stages.curation.left_out import report_left_out, report_unread


def observed(ctx, name):
    path = ctx.observed / name
    return json.loads(path.read_text()) if path.exists() else []


@pytest.mark.parametrize("read", [1000, 100])
def test_reasons_are_counted_and_warned_about_above_a_twentieth(tmp_path, read):
    ctx = Context.local(tmp_path)
    reasons = {"broken.json": 2, "language": 7, "none": 0}
    report_left_out(ctx, "documents", read, reasons, {"language": "languages"})
    results = {"left_out": 9, "left_out_broken.json": 2, "left_out_language": 7}
    assert observed(ctx, "results.json") == results
    (panel,) = observed(ctx, "panels.json")
    share = f"{7 / read:.1%}"
    assert panel["rows"][0] == ["language", 7, share, "languages"] and len(panel["rows"]) == 2
    log = (ctx.attempt_dir / "log.txt").read_text()
    assert f"left out 9 of {read:,} documents: language 7 (`languages`), broken.json 2" in log
    warnings = [warning["message"] for warning in observed(ctx, "warnings.json")]
    message = "9 of 100 documents (9.0%) are left out: language 7 (`languages`), broken.json 2"
    assert warnings == ([message] if read == 100 else [])


def test_nothing_left_out_is_no_panel(tmp_path):
    ctx = Context.local(tmp_path)
    report_left_out(ctx, "documents", 5, {}, {})
    report_unread(ctx, 5, LeftOut())
    assert observed(ctx, "panels.json") == observed(ctx, "warnings.json") == []
    assert observed(ctx, "results.json") == {"left_out": 0, "files": 5, "files_not_read": 0}


def test_a_long_list_of_reasons_is_cut_in_the_warning(tmp_path):
    ctx = Context.local(tmp_path)
    report_left_out(ctx, "documents", 10, {f"rule{n}": 1 for n in range(6)}, {})
    assert observed(ctx, "warnings.json")[0]["message"].endswith("rule3 1 and 2 other reasons")


@pytest.mark.parametrize(("files", "warned"), [(100, 0), (10, 1)])
def test_files_that_are_not_read_are_said(tmp_path, files, warned):
    ctx = Context.local(tmp_path)
    for _ in range(2):  # a stage that runs again says it once
        report_unread(ctx, files, LeftOut({"files .pdf": 3}))
    assert "not read: files .pdf: 3" in (ctx.attempt_dir / "log.txt").read_text()
    assert len(observed(ctx, "warnings.json")) == warned


@pytest.mark.parametrize(("keys", "remedy"), [({"a": "x"}, "brackets"), ({"z": "x"}, "report")])
def test_the_remedy_names_parameters_only_where_the_warning_does(tmp_path, keys, remedy):
    ctx = Context.local(tmp_path)
    report_left_out(ctx, "documents", 10, {"a": 2, "b": 3}, keys)
    assert remedy in observed(ctx, "warnings.json")[0]["remedy"]
