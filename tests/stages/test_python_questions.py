"""Questions from this Python's own docstrings: splits disjoint, answers true, bytes stable."""

import inspect
import json
import pathlib
import textwrap

import pytest
from pydantic import ValidationError

from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.stage import Inputs
from stages.data.conversation_dataset import Conversations
from stages.python_questions import python_questions
from stages.text.python_docs import question_answers
from stages.text.python_docs.installed_files import installed_files
from stages.text.python_docs.python_docs_params import PythonDocsParams


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """A test reads a few modules, not four megabytes of them."""
    monkeypatch.setattr(question_answers, "SHARD_BYTES", 200_000)


def run(folder, **options):
    ctx = Context.local(folder)
    python_questions(PythonDocsParams(**options), Inputs({}), ctx.out, ctx)
    return ctx


def part(ctx):
    return (ctx.out / "part-00000.parquet").read_bytes()


def test_each_object_is_asked_about_once_in_one_split(tmp_path):
    ctx = run(tmp_path, max_objects=400)
    splits = {name: list(Conversations(ctx.out, name)) for name in ("train", "eval", "unlabelled")}
    everything = [*splits["train"], *splits["eval"], *splits["unlabelled"]]
    assert len(everything) == 400 == len({c.id for c in everything})
    assert len({c.response.lower() for c in everything}) == 400
    assert all(len(found) > 15 for found in splits.values())
    for conversation in splits["train"] + splits["eval"]:
        assert [m.role for m in conversation.messages] == ["user", "assistant"]
        assert f"`{conversation.id}`" in conversation.prompt[0].content
    for conversation in splits["unlabelled"]:
        assert [m.role for m in conversation.messages] == ["assistant"]
    assert all(20 <= len(c.response) <= 301 for c in everything)
    assert not any(p.startswith("_") for c in everything for p in c.id.split("."))
    results = json.loads((ctx.observed / "results.json").read_text())
    assert results["conversations"] == 400 and results["train"] == len(splits["train"])


def test_answers_are_what_the_objects_say():
    found = {f.name: f.sentence for f in _summaries_of("textwrap.py", "pathlib.py")}
    assert (
        found["textwrap.wrap"]
        == "Wrap a single paragraph of text, returning a list of wrapped lines."
    )
    assert inspect.getdoc(textwrap.wrap).startswith(found["textwrap.wrap"][:-1])
    doc = " ".join(inspect.getdoc(pathlib.Path.glob).split())
    assert doc.startswith(found["pathlib.Path.glob"][:-1])


def _summaries_of(*names):
    files = [f for f in installed_files() if f.distribution == "python" and f.place in names]
    return [s for file in files for s in question_answers.module_summaries(file, 20, 300)]


def test_the_same_installation_gives_the_same_bytes_however_it_is_cut(tmp_path, monkeypatch):
    one = part(run(tmp_path / "one", max_objects=150))
    monkeypatch.setattr(question_answers, "SHARD_BYTES", 90_000)
    assert part(run(tmp_path / "two", max_objects=150)) == one


def test_fewer_objects_are_the_first_of_more(tmp_path):
    few, more = (run(tmp_path / str(n), max_objects=n) for n in (40, 90))
    ids = [[c.id for c in Conversations(ctx.out, None)] for ctx in (few, more)]
    assert ids[0] == ids[1][:40]


def test_a_killed_run_goes_on(tmp_path):
    whole = part(run(tmp_path / "whole", max_objects=200))
    first = run(tmp_path / "killed", max_objects=60)
    left = sorted((first.scratch / "summaries").glob("*[0-9]"))
    left[-1].unlink()
    times = [path.stat().st_mtime_ns for path in left[:-1]]
    again = run(tmp_path / "killed", max_objects=200)
    assert part(again) == whole
    assert [path.stat().st_mtime_ns for path in left[:-1]] == times


def test_mistakes_are_explained(tmp_path, monkeypatch):
    (problem,) = PythonDocsParams(min_answer_characters=50, max_answer_characters=20).check({})
    assert problem.key == "min_answer_characters"
    with pytest.raises(ValidationError, match="python:docs"):
        PythonDocsParams(sources=("wiki",))
    assert set(PythonDocsParams().externals()) == {"python:docs"}
    assert PythonDocsParams().estimate({})["seconds"] > 2
    monkeypatch.setattr(question_answers, "installed_files", lambda: ())
    with pytest.raises(InputError, match="no documented objects"):
        run(tmp_path)
