"""Cluster files: what they may say, every mistake with its line, and where the token is."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cluster.config import load_cluster
from launch.cluster.ray_jobs_client import WrongToken
from pipeline.errors import NotFound, SpecError, UserError

ADDRESS = "address: http://127.0.0.1:8265\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "configs" / "clusters"
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a cluster file"),
        ("resources: {cpus: 2}\n", "address: missing"),
        (
            ADDRESS + "tokn_path: x\n",
            "c.yaml:2: tokn_path: unknown key (did you mean 'token_path'?)",
        ),
        (ADDRESS + "resources: {cpu: 2}\n", "c.yaml:2: resources.cpu: unknown key (did you mean"),
        (ADDRESS + "resources: {cpus: 0}\n", "c.yaml:2: resources.cpus: input should be greater"),
        (
            ADDRESS + "resources: {cpus: many}\n",
            "c.yaml:2: resources.cpus: input should be a valid",
        ),
        (ADDRESS + "code: sent\n", "c.yaml:2: code: input should be 'shipped' or 'installed'"),
        ("address: 127.0.0.1:8265\n", "c.yaml:1: address: '127.0.0.1:8265' is not a URL"),
        ("address: http://me:pw@host:1\n", "c.yaml:1: address: holds a password"),
        (ADDRESS + "mlflow: http://me:pw@host:1\n", "c.yaml:2: mlflow: holds a password"),
        (
            ADDRESS + "token_path: a\ntoken_env: B\n",
            "c.yaml:3: token_env: excludes token_path",
        ),
        (ADDRESS + ADDRESS, "c.yaml:2: address: the key 'address' is a duplicate"),
    ],
)
def test_invalid_files(folder: Path, text: str, message: str) -> None:
    (folder / "c.yaml").write_text(text)
    with pytest.raises(SpecError) as refused:
        load_cluster("c", "store")
    assert message in refused.value.message


def test_all_problems_are_reported_at_once(folder: Path) -> None:
    (folder / "c.yaml").write_text("adress: x\ncode: sent\n")
    with pytest.raises(SpecError) as refused:
        load_cluster("c", "store")
    assert len(refused.value.problems) == 3


def test_unknown_name_suggests_the_nearest(folder: Path) -> None:
    (folder / "prod.yaml").write_text(ADDRESS)
    with pytest.raises(NotFound) as refused:
        load_cluster("prd", "store")
    assert refused.value.remedy == "did you mean 'prod'?"


def test_cluster_files_of_the_installation_are_found(folder: Path) -> None:
    found = load_cluster("local", "somewhere")
    assert found.store.root == Path.cwd() / "somewhere"
    assert found.token_path == found.store.root / "clusters" / "local" / "token"
    assert load_cluster("compose", "somewhere").store.root == Path("/store")


def test_token_readable_by_others_is_refused(folder: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    (folder / "c.yaml").write_text(f"{ADDRESS}token_path: {token}\n")
    found = load_cluster("c", "store")
    with pytest.raises(WrongToken, match="cannot be read: no such file"):
        found.token()
    token.write_text("secret\n")
    token.chmod(0o644)
    with pytest.raises(WrongToken, match="other users can read the token") as refused:
        found.token()
    assert refused.value.remedy == f"chmod 600 {token}"
    token.chmod(0o600)
    assert found.token() == "secret"


def test_unset_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "c.yaml").write_text(f"{ADDRESS}token_env: HEAD_TOKEN\nmlflow: ${{env:TRACKING}}\n")
    found = load_cluster("c", "store")
    assert found.token() == ""
    monkeypatch.setenv("HEAD_TOKEN", "t0ken")
    assert found.token() == "t0ken"
    with pytest.raises(UserError, match="TRACKING is not set"):
        _ = found.mlflow
    monkeypatch.setenv("TRACKING", "http://127.0.0.1:5000")
    assert found.mlflow == "http://127.0.0.1:5000"
