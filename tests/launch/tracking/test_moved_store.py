"""A store that is moved, or lies under an odd path: MLflow follows, nothing goes elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sample_run
from command_calls import call_command

from launch.promotion import stage_artifact
from launch.tracking import mlflow_client
from launch.tracking.cursor import mirrored_uri, read_cursor
from launch.tracking.mirror import main
from launch.tracking.model_registry import Registry
from pipeline.execution.run import Run
from pipeline.storage.store import Store

ODD = ("a ?b", "50%41#", "数 ü&=[x]*")


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store under an odd path, with a mirrored run and a promoted model."""
    root = tmp_path_factory.mktemp("odd") / "".join(ODD) / "store"
    run = sample_run.make(root, steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main("once", str(root), run.id) == 0, read_cursor(run)
        Registry(run.store).promote(stage_artifact(run, "gpt"), "m")
    assert [path.name for path in root.parent.parent.iterdir()] == ["".join(ODD)]
    return root


def locations(root: Path) -> list[str]:
    """Every place that MLflow names, by its public interface."""
    client: Any = mlflow_client.connect(mlflow_client.own_uri(root))
    experiments = client.search_experiments()
    runs = client.search_runs([found.experiment_id for found in experiments])
    assert len(runs) == len({run.info.run_id for run in runs}) > 3
    return [
        *(found.artifact_location for found in experiments),
        *(run.info.artifact_uri for run in runs),
        *(path for run in runs if (path := run.data.tags.get("headwater.path"))),
        *(found.source for found in client.search_model_versions("name='m'")),
    ]


def assert_all_within(root: Path) -> None:
    found = locations(root)
    assert found
    assert [p for p in found if not p.startswith((f"{root.as_uri()}/", f"{root}/"))] == []


@pytest.fixture
def moved(mirrored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That store at another path; it is moved back afterwards."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "elsewhere %2F ?" / "store"
    shutil.copytree(mirrored, root)
    aside = mirrored.with_name("aside")
    mirrored.rename(aside)
    yield root
    assert not mirrored.exists(), "something was written to the old place"
    aside.rename(mirrored)


def test_locations_are_within_the_store(mirrored: Path) -> None:
    assert_all_within(mirrored)


def test_a_moved_store_is_followed_when_a_run_is_sent(moved: Path) -> None:
    run = Run.find(Store(moved))
    uri = mirrored_uri(run)
    assert uri == mlflow_client.own_uri(moved)
    assert run.status().store == str(moved)
    before = read_cursor(run)
    assert main("once", str(moved), run.id) == 0
    assert read_cursor(run) == {**before, "uri": uri}  # nothing was sent a second time
    assert_all_within(moved)


def test_verify_relocates(moved: Path, mirrored: Path) -> None:
    assert f"{mirrored.as_uri()}/" in locations(moved)[0]
    said = call_command(str(moved), "verify", "latest", "--relocate")
    assert said.exit_code == 0
    assert "locations in MLflow were replaced" in said.stderr
    assert_all_within(moved)
    assert "0 locations" in call_command(str(moved), "verify", "--relocate").stderr


def test_a_store_that_moves_again_is_followed_again(moved: Path, tmp_path: Path) -> None:
    """No run was created at the place between, which the database alone knows."""
    assert call_command(str(moved), "verify", "--relocate").exit_code == 0
    last = tmp_path / "last %2F #" / "store"
    last.parent.mkdir()
    moved.rename(last)
    assert call_command(str(last), "verify", "--relocate").exit_code == 0
    assert_all_within(last)


def test_a_copy_leaves_the_original_alone(mirrored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(mirrored, copy)
    assert mlflow_client.relocate(Store(copy), mlflow_client.own_uri(mirrored)) == 0
    assert mlflow_client.relocate(Store(copy), mlflow_client.own_uri(copy)) > 0
    assert_all_within(copy)
    assert_all_within(mirrored)
    link = tmp_path / "link"
    link.symlink_to(mirrored)
    assert mlflow_client.relocate(Store(link), mlflow_client.own_uri(link)) == 0
    assert mlflow_client.relocate(Store(link), "http://tracker") == 0


def test_a_promotion_follows(moved: Path) -> None:
    store = Store(moved)
    record = Registry(store).promote(stage_artifact(Run.find(store), "gpt"), "m", "other")
    assert record["to"] == 1
    assert_all_within(moved)
