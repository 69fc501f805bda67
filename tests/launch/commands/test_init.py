from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from launch.cli import cli
from launch.cluster.config import load_cluster

ROOT = Path(__file__).parents[3]


def init(*words: str) -> Result:
    return CliRunner().invoke(cli, ["init", *words])


def test_pipeline_template_can_be_planned(tmp_path: Path) -> None:
    assert init("pipeline", str(tmp_path)).exit_code == 0
    from pipeline.spec.spec_checker import load_spec

    assert list(load_spec(tmp_path / "pipeline.yaml").nodes) == [
        "clean",
        "tokenizer",
        "tokens",
        "gpt",
    ]


def test_existing_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text("mine")
    done = init("pipeline", str(tmp_path))
    assert done.exit_code == 2
    assert "pipeline.yaml already exists" in done.stderr
    assert (tmp_path / "pipeline.yaml").read_text() == "mine"


def test_stage_template_runs_and_its_test_passes(tmp_path: Path) -> None:
    assert init("stage", str(tmp_path)).exit_code == 0
    info = tmp_path / "mystages-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mystages\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[headwater.stages]\nmystages = mystages\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for command in (
        ["-c", "import pathlib, tests.test_shout as t; t.test_shout(pathlib.Path('scratch'))"],
        ["-m", "launch.cli", "plan", "shout.yaml"],
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "1 to run" in done.stdout


def test_cluster_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert init("cluster").exit_code == 0
    found = load_cluster("mine", "store")
    assert found.token_path == tmp_path / "store" / "clusters" / "mine" / "token"


def test_unknown_template(tmp_path: Path) -> None:
    done = init("stagge", str(tmp_path))
    assert done.exit_code == 2
    assert "did you mean 'stage'?" in done.stderr
