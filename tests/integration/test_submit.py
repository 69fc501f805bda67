"""A real head, real jobs: shipped code, refusals before a job exists, detaching, cancelling, loss.

One head for the whole file; the tests run in this order. The repository that is shipped holds
nothing but a package of stages, as a user's would.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.cluster.ray_jobs_client import RayJobsClient, WrongToken
from pipeline.execution.run import Run
from pipeline.storage.store import Store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TOYS = ROOT / "tests" / "support" / "toys"
HEADWATER = [sys.executable, "-m", "launch.cli"]


@dataclass
class Site:
    """A user's repository, a store and a cluster's file."""

    root: Path
    store: Store
    address: str

    def call(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*HEADWATER, *words],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*HEADWATER, *words],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def environment(self) -> dict[str, str]:
        known = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(self.root)])}
        return known | paths | {"HEADWATER_STORE": str(self.store.root), "OMP_NUM_THREADS": "1"}

    def status(self, run: str = "latest") -> dict[str, Any]:
        return dict(json.loads(self.call("status", run, "--json").stdout))

    def stage(self, name: str, run: str = "latest") -> dict[str, Any]:
        return next(s for s in self.status(run)["stages"] if s["name"] == name)

    def cluster(self, name: str, text: str) -> None:
        (self.root / "configs" / "clusters" / f"{name}.yaml").write_text(text)

    @property
    def head(self) -> dict[str, Any]:
        return dict(json.loads((self.store.root / "clusters/here/head.json").read_text()))


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The repository and its head; everything that was started is ended."""
    folder = tmp_path_factory.mktemp("site")
    root = folder / "mine"
    shutil.copytree(TOYS, root, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "configs" / "clusters").mkdir(parents=True)
    made = Site(root, Store(folder / "store"), f"http://127.0.0.1:{free_port()}")
    token = "token_path: ${store}/clusters/here/token\n"
    made.cluster("here", f"address: {made.address}\n{token}resources: {{cpus: 2}}\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    (root / "untracked.txt").write_text("stays here\n")
    yield made
    made.call("cluster", "down", "here", "--now")


def pipeline(site: Site, name: str, stages: dict[str, Any]) -> str:
    (site.root / f"{name}.yaml").write_text(json.dumps({"name": name, "stages": stages}))
    return f"{name}.yaml"


CLAY = """
from pipeline.kind import Kind, register_kind
from pipeline.stage import Params, stage

register_kind(Kind("ClayModel", promotable=True))

@stage("clay", output="ClayModel", version=1)
def clay(params: Params, inputs, out, ctx):
    out.joinpath("model.txt").write_text("clay")
"""
COUNT = {"uses": "toy.count", "steps": 6}


def held(site: Site, name: str, value: int) -> tuple[str, Path]:
    """A pipeline whose one stage waits at its middle while a file exists."""
    hold = site.root.parent / f"hold-{name}"
    hold.touch()
    return pipeline(site, name, {"slow": {**COUNT, "value": value, "hold": str(hold)}}), hold


def await_hold(site: Site) -> None:
    run = Run.find(site.store)
    until(lambda: bool(list(run.folder.glob("stages/slow/attempt-*/holds"))), "the middle")


# --- the head ------------------------------------------------------------------------------------


def test_cluster_that_is_not_up(site: Site) -> None:
    refused = site.call(
        "submit", pipeline(site, "small", {"one": COUNT}), "--cluster", "here", code=2
    )
    assert "the token cannot be read" in refused.stderr
    assert "next: headwater cluster up" in refused.stderr
    assert "was not up" in site.call("cluster", "down", "here").stdout
    shown = site.call("cluster", "status", "here", "--json", code=1)
    assert json.loads(shown.stdout)["problem"].startswith("the token cannot be read")


def test_up(site: Site) -> None:
    shown = site.call("cluster", "up", "here")
    assert f"here is up at {site.address}" in shown.stdout
    assert "2 CPUs" in shown.stdout
    token = site.store.root / "clusters" / "here" / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert "is already up" in site.call("cluster", "up", "here").stdout
    data = json.loads(site.call("cluster", "status", "here", "--json").stdout)
    assert data["resources"] == {"nodes": 1, "cpus": 2.0, "gpus": 0.0}
    assert data["pid"] == site.head["pid"]


def test_head_listens_on_loopback_only(site: Site) -> None:
    beyond, seen = [], 0
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) != site.head["pid"]:
                continue
            listening = [c for c in process.net_connections("tcp") if c.status == "LISTEN"]
        except (psutil.Error, OSError):
            continue
        seen += len(listening)
        ips = {link.laddr.ip.removeprefix("::ffff:") for link in listening}
        beyond += [(process.name(), ip) for ip in ips if not ip.startswith("127.") and ip != "::1"]
    assert seen >= 5
    assert not beyond


def test_three_refusals_of_a_head_differ(site: Site) -> None:
    with pytest.raises(WrongToken, match="requires a token and none was sent"):
        RayJobsClient(site.address).version()
    with pytest.raises(WrongToken, match="rejected the token"):
        RayJobsClient(site.address, "wrong").version()


# --- refused before a job exists -----------------------------------------------------------------


def refused(site: Site, cluster: str, config: str, code: int) -> str:
    """What is said without a run or a job."""
    before = [run.name for run in site.store.root.glob("runs/*")]
    done = site.call("submit", config, "--cluster", cluster, code=code)
    assert [run.name for run in site.store.root.glob("runs/*")] == before
    return done.stderr


def test_unreachable_address(site: Site) -> None:
    site.cluster("dead", f"address: http://127.0.0.1:{free_port()}\n")
    said = refused(site, "dead", pipeline(site, "small", {"one": COUNT}), 1)
    assert "no Ray head answers: connection refused" in said
    assert "next: headwater cluster up dead" in said


def test_a_wrong_token(site: Site) -> None:
    token = site.root.parent / "wrong"
    token.write_text("wrong")
    token.chmod(0o600)
    site.cluster("wrong", f"address: {site.address}\ntoken_path: {token}\n")
    said = refused(site, "wrong", "small.yaml", 2)
    assert "the head rejected the token" in said
    assert f"check the token ({token})" in said


def test_store_that_is_not_writable(site: Site) -> None:
    token = site.store.root / "clusters" / "here" / "token"
    (site.root.parent / "file").write_text("")
    store = site.root.parent / "file" / "store"
    site.cluster("full", f"address: {site.address}\ntoken_path: {token}\nstore: {store}\n")
    assert "the store is not writable: not a directory" in refused(site, "full", "small.yaml", 2)


def test_promotion_requires_mlflow(site: Site) -> None:
    token = site.store.root / "clusters" / "here" / "token"
    dead = f"http://127.0.0.1:{free_port()}"
    site.cluster("mute", f"address: {site.address}\ntoken_path: {token}\nmlflow: {dead}\n")
    (site.root / "toybox" / "clay.py").write_text(CLAY)
    stages = {"one": {"uses": "clay"}}
    ends = {"name": "ends", "stages": stages, "promote": {"model": "m", "stage": "one"}}
    (site.root / "ends.yaml").write_text(json.dumps(ends))
    said = refused(site, "mute", "ends.yaml", 1)
    assert f"{dead}: MLflow does not answer: " in said
    assert "connection refused" in said


def test_resources_that_the_cluster_lacks(site: Site) -> None:
    config = pipeline(site, "wide", {"one": {**COUNT, "workers": {"num": 64}}})
    said = refused(site, "here", config, 2)
    assert "wide.yaml:1: one.workers: requests 64 times 1 CPUs" in said
    assert "each on one node; 2 fit" in said


# --- runs ----------------------------------------------------------------------------------------


def test_submit_uploads_tracked_code_and_follows_the_run(site: Site) -> None:
    (site.root / "number.txt").write_text("7")  # data that git does not track
    read = {"uses": "toy.read", "source": "number.txt"}
    add = {"uses": "toy.add", "numbers": ["${one}", "${read}"]}
    stages = {"one": COUNT, "read": read, "two": add}
    done = site.call("submit", pipeline(site, "small", stages), "--cluster", "here")
    status = site.status()
    assert status["state"] == "finished"
    assert f"small {status['run']}: finished" in done.stdout
    assert re.search(r"two +finished", done.stdout)
    assert site.stage("two")["metrics"] == {"total": sum(range(6)) + 7}
    run = Run.find(site.store)
    record = json.loads((run.folder / "job.json").read_text())
    assert record["jobs"] == [run.id]
    log = site.call("logs", "latest", "one").stdout
    assert "begins at step 0" in log
    token = (site.store.root / "clusters" / "here" / "token").read_text()
    job = RayJobsClient(site.address, token).get(run.id)
    assert job is not None
    assert job["status"] == "SUCCEEDED"
    assert job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "120"
    head = subprocess.check_output(["git", "-C", str(site.root), "rev-parse", "HEAD"], text=True)
    shown = json.loads(site.call("show", "latest:one", "--json").stdout)
    assert shown["code"] == {**shown["code"], "commit": head.strip(), "dirty": False}
    shipped = Path(site.head["temp"]).glob("session_*/runtime_resources/working_dir_files/*/")
    names = {path.name for folder in shipped for path in folder.iterdir()}
    assert "toybox" in names
    assert "untracked.txt" not in names


def test_detach_attach_cancel_and_resume(site: Site) -> None:
    config, hold = held(site, "slow", 100)
    begun = site.call("submit", config, "--cluster", "here", "--detach")
    assert "--watch" in begun.stderr
    await_hold(site)
    again = site.call("submit", config, "--cluster", "here", "--detach")
    run = Run.find(site.store).id
    assert f"run {run} already executes this pipeline" in again.stdout
    busy = site.call("cluster", "down", "here", code=2)
    assert run in busy.stderr
    cancelled = site.call("cancel", run)
    assert f"run {run}: cancelled" in cancelled.stdout
    assert site.stage("slow")["state"] == "interrupted"
    begun_again = site.start("resume", run)
    until(lambda: Run.find(site.store).status().state == "pending", "the second job")
    assert f"run {run}: cancelled" in site.call("cancel", run).stdout
    assert begun_again.wait(60) == 130
    hold.unlink()
    resumed = site.call("resume", run)
    assert f"slow {run}: finished" in resumed.stdout
    assert "begins at step 3" in site.call("logs", run, "slow").stdout
    assert json.loads((Run.find(site.store).folder / "job.json").read_text())["jobs"] == [
        run,
        f"{run}-2",
        f"{run}-3",
    ]
    assert site.stage("slow")["metrics"] == {"total": sum(range(100, 106))}


def test_control_c_detaches(site: Site) -> None:
    config, hold = held(site, "left", 200)
    process = site.start("submit", config, "--cluster", "here")
    until(lambda: Run.find(site.store).status().pipeline == "left", "the submission")
    await_hold(site)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "detached; the run continues" in out
    assert "headwater status" in err
    assert site.status()["state"] == "running"
    hold.unlink()
    until(lambda: site.status()["state"] == "finished", "the end")


def test_head_killed_and_restarted(site: Site) -> None:
    config, hold = held(site, "lost", 300)
    site.call("submit", config, "--cluster", "here", "--detach")
    await_hold(site)
    os.kill(site.head["pid"], signal.SIGKILL)
    assert "not up" in site.call("cluster", "status", "here", code=1).stdout
    assert "here is up at" in site.call("cluster", "up", "here").stdout
    run = Run.find(site.store).id
    assert site.status()["state"] == "interrupted"
    assert f"headwater resume {run}" in site.call("status").stderr
    hold.unlink()
    site.call("resume", run)
    assert site.status()["state"] == "finished"
    assert site.stage("slow")["metrics"] == {"total": sum(range(300, 306))}
    assert "artifacts are intact" in site.call("verify", "--all").stdout


def test_down_stops_all_processes_of_up(site: Site) -> None:
    record = site.head
    assert "here is down" in site.call("cluster", "down", "here").stdout
    left = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == record["pid"] and process.status() != "zombie":
                left.append(process.cmdline())
        except (psutil.Error, OSError):
            continue
    assert not left
    assert not Path(record["temp"]).exists()
    assert site.call("cluster", "status", "here", code=1).stdout.startswith("here is not up")
