"""Every command that reads the store, on a run as a driver leaves it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sample_run
from click.testing import CliRunner, Result

from launch.cli import cli
from launch.driver import last_words
from pipeline.execution.run import Run
from pipeline.storage.store import Store

Call = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in ("HEADWATER_STORE", "MLFLOW_TRACKING_URI", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished run; made once, copied for each test."""
    root = tmp_path_factory.mktemp("finished") / "store"
    sample_run.make(root, steps=30)
    return root


@pytest.fixture
def run(finished: Path, store: Store) -> Run:
    shutil.copytree(finished, store.root)
    return Run.find(store)


@pytest.fixture
def call(store: Store) -> Call:
    def invoke(*words: str, code: int = 0) -> Result:
        bare = words[0] in ("stages", "init", "--help", "nonsense")
        named = [] if bare else ["--store", str(store.root)]
        done = CliRunner().invoke(cli, [*words, *named], prog_name="headwater")
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        return done

    return invoke


def told(done: Result) -> Any:
    return json.loads(done.stdout)


# --- status and list -----------------------------------------------------------------------------


def test_status_as_json_is_the_contract(run: Run, call: Call) -> None:
    data = told(call("status", "latest", "--json"))
    assert set(data) == {"run", "pipeline", "state", "store", "stages", "registered"}
    assert (data["run"], data["state"]) == (run.id, "finished")
    keys = "name uses state reason kind fingerprint path attempts seconds metrics"
    assert all(set(stage) == set(keys.split()) for stage in data["stages"])
    assert data["stages"][-1]["metrics"]["perplexity"] == 18.4
    assert all(Path(stage["path"]).is_dir() for stage in data["stages"])


def test_status_as_a_table(run: Run, call: Call) -> None:
    lines = call("status").stdout.splitlines()
    assert lines[0] == f"quickstart  {run.id}  10/10 stages  ✓ finished"
    assert lines[4].split()[:5] == ["✓", "gpt", "finished", "loss", "3.2"]


def test_a_failed_run_ends_with_the_line_to_type_next(store: Store, call: Call) -> None:
    run = sample_run.make(store.root, failed="gpt")
    done = call("status")
    assert "error: gpt: 3 losses in a row were not finite" in done.stderr
    assert "lower train.lr" in done.stderr
    assert f"next: headwater logs {run.id} gpt --store {store.root}" in done.stderr
    assert "\x1b" not in done.output


def test_a_run_whose_driver_vanished_is_resumable(store: Store, call: Call) -> None:
    run = sample_run.make(store.root, names=("clean",), finish=False)
    done = call("status", run.id)
    assert "‖ interrupted" in done.stdout
    assert f"next: headwater resume {run.id}" in done.stderr


def test_watching_a_run_that_is_over_shows_it_once(run: Run, call: Call) -> None:
    lines = call("status", "--watch").stdout.splitlines()
    assert len(lines) == 10
    assert lines[0].split()[1:3] == ["clean", "finished"]


def test_what_watches_prints_no_json(run: Run, call: Call) -> None:
    assert "name one of the two" in call("status", "--watch", "--json", code=2).stderr


def test_list(run: Run, call: Call) -> None:
    data = told(call("list", "--json"))
    assert [entry["run"] for entry in data] == [run.id]
    assert (data[0]["done"], data[0]["stages"], data[0]["state"]) == (10, 10, "finished")
    assert call("list").stdout.splitlines()[2].split()[:4] == [
        run.id,
        "quickstart",
        "✓",
        "finished",
    ]


def test_an_empty_store_says_how_to_begin(call: Call) -> None:
    assert told(call("list", "--json")) == []
    assert "next: headwater run CONFIG" in call("list").stderr
    assert "the store holds no runs" in call("status", code=2).stderr


def test_runs_are_found_by_a_part_of_their_id(run: Run, call: Call) -> None:
    assert told(call("status", "heron", "--json"))["run"] == run.id
    done = call("status", "20261121-0203-calm-herom", code=2)
    assert f"did you mean {run.id}?" in done.stderr


def test_the_store_is_named_only_where_a_shell_would_not_find_it(
    store: Store, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample_run.make(store.root, names=("clean",), finish=False)
    monkeypatch.setenv("HEADWATER_STORE", str(store.root))
    done = call("status")
    assert done.stderr.splitlines()[-1].endswith(f"headwater resume {run.id}")


# --- show, diff, report --------------------------------------------------------------------------


def test_show_a_run(run: Run, call: Call) -> None:
    data = told(call("show", run.id, "--json"))
    gpt = next(stage for stage in data["stages"] if stage["name"] == "gpt")
    assert gpt["made_by"] == {"id": run.id, "stage": "gpt", "attempt": 1}
    assert gpt["inputs"]["tokens"][0]["fingerprint"] == sample_run.print_of("tokens")
    assert "RewardModel" in call("show").stdout


@pytest.mark.parametrize("name", ["print", "uses", "stage"])
def test_show_an_artifact(run: Run, call: Call, name: str) -> None:
    fp = sample_run.print_of("gpt")
    target = {"print": fp, "uses": f"pretrain/{fp}", "stage": "latest:gpt"}[name]
    data = told(call("show", target, "--json"))
    assert data["fingerprint"] == fp
    readers = {(reader["uses"], reader["fingerprint"]) for reader in data["read_by"]}
    assert readers == {
        ("sft", sample_run.print_of("sft")),
        ("evaluate", sample_run.print_of("evaluate")),
    }
    shown = call("show", target).stdout
    assert f"made by     gpt of {run.id}" in shown
    assert "from outside python:docs" in shown
    assert "see above" in shown


def test_show_prints_the_tables_that_a_stage_left_for_people(run: Run, call: Call) -> None:
    shown = call("show", "latest:clean").stdout
    tables = shown[shown.index("What the rules took away") : shown.index("made from")]
    assert re.search(r"read +25,240", tables) and re.search(r"too short +-4,821", tables)
    assert re.search(r"stdlib +9,120 +8.12 M", tables)
    assert "Length of a document" not in shown  # a histogram is for the report


def test_what_does_not_exist_cannot_be_shown(run: Run, call: Call) -> None:
    assert "no artifact begins with" in call("show", "gpt/0123456789abcdef", code=2).stderr
    assert "no run" in call("show", "0123456789abcdef", code=2).stderr
    assert "did you mean 'gpt'?" in call("show", "latest:gtp", code=2).stderr


def test_diff_of_runs(store: Store, run: Run, call: Call) -> None:
    other = Run(store, "20261121-0204-deft-duck")
    shutil.copytree(run.folder, other.folder)
    target = other.folder
    plan = json.loads((target / "plan.json").read_text())
    gpt = next(stage for stage in plan["stages"] if stage["name"] == "gpt")
    gpt["payload"]["params"]["train"]["lr"] = 3e-3
    (target / "plan.json").write_text(json.dumps(plan))
    data = told(call("diff", run.id, other.id, "--json"))
    changed = [line for line in data if line["changes"] or line["metrics"]]
    assert changed == [{"stage": "gpt", "changes": ["train.lr 1e-3 -> 3e-3"], "metrics": {}}]
    assert "train.lr 1e-3 -> 3e-3" in call("diff", run.id, other.id).stdout
    assert call("diff", run.id, run.id).stdout == "no difference\n"


def test_diff_of_artifacts_and_of_what_cannot_be_compared(run: Run, call: Call) -> None:
    shown = call("diff", "latest:gpt", "latest:sft").stdout
    assert "made by pretrain -> sft" in shown
    assert "train.steps 300 -> 120" in shown
    assert "nothing to compare" in call("diff", "latest", "latest:gpt", code=2).stderr


def test_report(run: Run, call: Call) -> None:
    page = Path(call("report").stdout.strip())
    assert page == run.folder / "report.html"
    assert run.id in page.read_text()


def test_what_mlflow_lacks_is_said_at_the_end(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    last_words(run, run.status())
    line = f"headwater report {run.id} --sync --store {run.store.root} sends the rest"
    assert f"there was not time enough to send it; {line}" in capsys.readouterr().err
    seq = run.events()[-1]["seq"]
    (run.folder / "mlflow.json").write_text(json.dumps({"seq": seq - 1, "problem": "MLflow: no"}))
    last_words(run, run.status())
    assert f"MLflow has not all of this run: MLflow: no; {line}" in capsys.readouterr().err
    (run.folder / "mlflow.json").write_text(json.dumps({"seq": seq, "problem": ""}))
    last_words(run, run.status())
    assert "MLflow" not in capsys.readouterr().err


# --- logs ----------------------------------------------------------------------------------------


def write_logs(run: Run) -> None:
    for attempt in (1, 2, 10):
        folder = run.attempt_dir("gpt", attempt)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").write_text(f"attempt {attempt}\ntorn")
        (folder / "rank-0.log").write_text("rank zero \x1b[31mred\n")
        (folder / "rank-1.log").write_text("rank one\n")
    run.attempt_dir("clean", 1).joinpath("log.txt").write_text("cleaning\n")


def test_logs(run: Run, call: Call) -> None:
    write_logs(run)
    assert call("logs").stdout.splitlines() == [
        "clean | cleaning",
        "gpt | attempt 10",
        "gpt | torn",
    ]
    assert call("logs", "latest", "gpt").stdout.splitlines() == [
        "attempt 10",
        "torn",
        "rank-0 | rank zero \\x1b[31mred",
        "rank-1 | rank one",
    ]
    assert call("logs", "latest", "gpt", "--rank", "1").stdout == "rank one\n"
    assert "attempt 2" in call("logs", "latest", "gpt", "--attempt", "2").stdout
    assert call("logs", "latest", "gpt", "-f").stdout.splitlines()[0] == "attempt 10"


def test_logs_that_are_not_there(run: Run, call: Call) -> None:
    assert "did you mean 'gpt'?" in call("logs", "latest", "gtp", code=2).stderr
    assert "has written no log" in call("logs", "latest", "sft", code=2).stderr
    assert "has no log of rank 7" in call("logs", "latest", "sft", "--rank", "7", code=2).stderr


# --- verify and gc -------------------------------------------------------------------------------


def test_verify_finds_a_flipped_bit_and_puts_it_aside(run: Run, call: Call) -> None:
    assert "10 of 10 artifacts are sound" in call("verify").stdout
    folder = Path(told(call("status", "--json"))["stages"][3]["path"])
    data = bytearray((folder / "data.bin").read_bytes())
    data[100] ^= 1
    (folder / "data.bin").write_bytes(data)
    done = call("verify", "--all", code=1)
    assert "data.bin: its bytes changed" in done.stdout
    assert "9 of 10 artifacts are sound" in done.stdout
    assert f"next: headwater resume {run.id} --store" in done.stderr
    assert not folder.exists()
    assert "9 of 9 artifacts are sound" in call("verify", "--all").stdout


def test_verify_one_artifact_as_json(run: Run, call: Call) -> None:
    (line,) = told(call("verify", sample_run.print_of("sft"), "--json"))
    assert (line["uses"], line["problems"]) == ("sft", [])
    assert line["bytes"] > 2000


def test_gc_touches_nothing_unless_told(run: Run, store: Store, call: Call) -> None:
    assert told(call("gc", "--json"))["garbage"] == []
    plan = call("gc", "--keep", "0")
    assert "would free" in plan.stdout
    assert "next: headwater gc --keep 0 --delete" in plan.stderr
    assert len(list(store.folders())) == 10
    assert told(call("gc", "--keep", "0", "--delete", "--json"))["deleted"]
    assert list(store.folders()) == []


# --- generate, promote: what is refused --------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "no model 'nosuch'"),
        ("nosuch@champion", "no model 'nosuch' is registered"),
        ("latest:clean", "latest:clean holds Documents, not a model"),
        ("latest:gtp", "did you mean 'gpt'?"),
        ("latest", "no model 'latest'"),
    ],
)
def test_generate_from_what_is_no_model(run: Run, call: Call, name: str, message: str) -> None:
    assert message in call("generate", name, "hello", code=2).stderr


def test_generate_wants_tokens(run: Run, call: Call) -> None:
    assert (
        "at least one token" in call("generate", "latest:gpt", "x", "--tokens", "0", code=2).stderr
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["latest:clean", "--model", "m"], "holds Documents, not a model"),
        (["latest:gtp", "--model", "m"], "did you mean 'gpt'?"),
        (["latest:gpt", "--model", "m", "--alias", "latest"], "reserved"),
        (["latest:gpt", "--model", "M!"], "cannot name a model"),
        (["latest:gpt", "--model", "m", "--require", "better"], "is not a gate"),
        (["latest:gpt", "--model", "m", "--require", "gpt.los<3"], "did you mean 'gpt.loss'?"),
        (["latest:gpt"], "Missing option '--model'"),
    ],
)
def test_promotions_that_cannot_be(run: Run, call: Call, words: list[str], message: str) -> None:
    assert message in call("promote", *words, code=2).stderr


def test_a_damaged_model_is_not_promoted(call: Call, run: Run) -> None:
    stage = next(entry for entry in run.status().stages if entry.name == "gpt")
    found = run.store.find(stage.uses, stage.fingerprint)
    assert found is not None
    (found.path / "manifest.json").write_text("{")
    said = call("promote", f"{run.id}:gpt", "--model", "m", code=2).stderr
    assert f"what gpt of run {run.id} made is damaged or gone" in said
    assert f"headwater resume {run.id}" in said


def test_models_of_an_empty_registry(run: Run, call: Call) -> None:
    assert "no model is registered yet" in call("models").stdout
    assert told(call("models", "--json")) == []
    assert "no model 'm' is registered" in call("models", "m", "--history", code=2).stderr
    assert "no model 'm'" in call("rollback", "--model", "m", code=2).stderr


# --- plan and dry run ----------------------------------------------------------------------------

TOY = """\
name: toy
stages:
  one: {uses: toy.count}
  two: {uses: toy.count, value: 10}
  sum: {uses: toy.add, numbers: ["${one}", "${two}"]}
"""


@pytest.fixture
def toy(toys: Path, tmp_path: Path) -> str:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY)
    return str(file)


def test_plan(toy: str, call: Call, store: Store) -> None:
    data = told(call("plan", toy, "--json"))
    assert (data["pipeline"], data["store"]) == ("toy", str(store.root))
    assert [stage["verdict"] for stage in data["stages"]] == ["run", "run", "run"]
    assert data["stages"][2]["needs"] == ["one", "two"]
    shown = call("plan", toy, "one.steps=5").stdout
    assert "plan of toy" in shown
    assert "3 to run" in shown
    assert not store.root.exists()


def test_a_dry_run_is_a_plan(toy: str, call: Call, store: Store) -> None:
    assert call("run", toy, "--dry-run").stdout == call("plan", toy).stdout
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one.step=5"], "one.step: unknown key (did you mean 'steps'?)"),
        (["three.steps=5"], "three.steps: there is no stage 'three'"),
        (["--from", "tow"], "did you mean 'two'?"),
        (["--rerun", "x"], "has no stage 'x'"),
        (["--nonsense"], "No such option"),
    ],
)
def test_mistakes_in_a_plan(toy: str, call: Call, words: list[str], message: str) -> None:
    for command in ("plan", "run"):
        done = call(command, toy, *words, code=2)
        assert message in done.stderr
        assert "next: " in done.stderr or "(" in done.stderr


def test_a_file_that_is_not_there(call: Call) -> None:
    assert "cannot be read: no such file" in call("plan", "nosuch.yaml", code=2).stderr


# --- the group itself ----------------------------------------------------------------------------


def test_unknown_commands_are_told_the_nearest() -> None:
    done = CliRunner().invoke(cli, ["stauts"])
    assert done.exit_code == 2
    assert done.stderr == "error: there is no command 'stauts'\nnext: did you mean 'status'?\n"


def test_what_nobody_foresaw_is_one_line_and_a_file(
    run: Run, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import launch.commands.status

    def broken(name: str, path: str) -> None:
        raise ZeroDivisionError("seven\nby nothing")

    monkeypatch.setattr(launch.commands.status, "find_run", broken)
    monkeypatch.setattr("launch.ui.exit_handling._WORKPLACES", [tmp_path])
    done = call("status", code=1)
    lines = done.stderr.splitlines()
    assert lines[0] == "error: ZeroDivisionError: seven"
    assert lines[2].startswith("next: headwater doctor")
    log = Path(lines[1].removeprefix("the traceback is in "))
    assert log.parent == tmp_path
    assert "by nothing" in log.read_text()


def test_a_reader_that_goes_away_is_no_error(run: Run, tmp_path: Path) -> None:
    import subprocess
    import sys

    write_logs(run)
    run.attempt_dir("gpt", 10).joinpath("log.txt").write_text("line\n" * 200_000)
    command = [sys.executable, "-m", "launch.cli", "logs", "--store", str(run.store.root)]
    reading, writing = os.pipe()
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 1
