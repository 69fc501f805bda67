"""Cluster files: the address of a Ray head, its token, and what it shares with this machine.

    address: http://127.0.0.1:8265          # the head's dashboard and Jobs API
    token_path: ${store}/clusters/local/token   # a file with mode 600; or `token_env`
    store: /mnt/headwater                   # Default: the store of this shell
    mlflow: http://127.0.0.1:5000           # Default: MLFLOW_TRACKING_URI
    code: shipped                           # or `installed`: the cluster's image has the code
    resources: {cpus: 2, gpus: 0}           # of a local head; other heads report theirs

The token itself is never in the file. `${store}` is the store; `${env:NAME}` a variable.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launch.cluster.ray_jobs_client import RayJobsClient, WrongToken
from launch.tracking.mlflow_client import has_password
from pipeline.errors import NotFound, Problem, SpecError, UserError, did_you_mean
from pipeline.spec.yaml_reader import Tree, read_yaml
from pipeline.storage.store import Store

FOLDER = Path("configs/clusters")
_VARIABLE = re.compile(r"\$\{env:([A-Za-z_]\w*)\}")


class HeadResources(BaseModel):
    """Resources of a head that `cluster up` starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: Annotated[float, Field(gt=0)] = 0.0
    """Number of CPU cores. Default: those of the machine."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """Number of GPUs. Default: 0."""


class ClusterFile(BaseModel):
    """Keys of a cluster file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    """URL of the head's dashboard, http(s)://host:port."""
    token_path: str = ""
    """Path of the file that holds the token."""
    token_env: str = ""
    """Name of the environment variable that holds the token."""
    store: str = ""
    """Store, a directory that this machine and the cluster see under the same path. Default: the
    store of this shell."""
    mlflow: str = ""
    """URL of the MLflow server as the cluster reaches it. Default: MLFLOW_TRACKING_URI."""
    code: Literal["shipped", "installed"] = "shipped"
    """Origin of the code: `shipped` with the job, or `installed` on the cluster. Default:
    `shipped`."""
    python: str = "python"
    """Python interpreter on the cluster. Default: `python`."""
    resources: HeadResources = HeadResources()
    """Resources of a head that `cluster up` starts."""


@dataclass(frozen=True)
class Cluster:
    """Cluster of a file that was read and checked."""

    name: str
    path: Path
    file: ClusterFile
    store: Store

    @property
    def address(self) -> str:
        """URL of its head."""
        return self.file.address

    @property
    def state(self) -> Path:
        """Directory of the state of a head that `cluster up` started."""
        return self.store.root / "clusters" / self.name

    @property
    def token_path(self) -> Path | None:
        """Path of the token file; None if the token is not in a file."""
        return (
            Path(self.resolve(self.file.token_path)).expanduser() if self.file.token_path else None
        )

    @property
    def mlflow(self) -> str | None:
        """MLflow URI of runs on this cluster; None if neither file nor environment names one."""
        return self.resolve(self.file.mlflow) or os.environ.get("MLFLOW_TRACKING_URI") or None

    def resolve(self, text: str) -> str:
        """Replace `${store}` and `${env:NAME}`.

        Raises:
            UserError: a variable is not set.
        """

        def value(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise UserError(
                    f"{match[1]} is not set", where=str(self.path), remedy=f"export {match[1]}=…"
                )
            return os.environ[match[1]]

        return _VARIABLE.sub(value, text.replace("${store}", str(self.store.root)))

    def token(self) -> str:
        """Return the token; empty if the file names none.

        Raises:
            WrongToken: it cannot be read, or other users can read it too.
        """
        if self.file.token_env:
            return os.environ.get(self.file.token_env, "")
        return _read_token(self.token_path) if self.token_path else ""

    def jobs(self) -> RayJobsClient:
        """Return a client of the head's Jobs API."""
        return RayJobsClient(self.address, self.token())


def _read_token(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except OSError as error:
        raise WrongToken(
            f"the token cannot be read: {(error.strerror or str(error)).lower()}",
            where=str(path),
            remedy="headwater cluster up   (creates the token of a local head)",
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise WrongToken(
            "other users can read the token", where=str(path), remedy=f"chmod 600 {path}"
        )
    if not text:
        raise WrongToken("the token file is empty", where=str(path))
    return text


def load_cluster(name: str, store_path: str) -> Cluster:
    """Load a cluster by its name in configs/clusters or by the path of its file.

    Raises:
        NotFound: no such file.
        SpecError: all problems of the file.
    """
    path = _find(name)
    file = _validate(read_yaml(path))
    root = os.path.expandvars(file.store) if file.store else store_path
    cluster = Cluster(path.stem, path, file, Store(store_path))
    return Cluster(path.stem, path, file, Store(cluster.resolve(root)))


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise NotFound(f"no cluster file {name}")
    for folder in _folders():
        if (path := folder / f"{name}.yaml").is_file():
            return path
    known = {path.stem for folder in _folders() for path in folder.glob("*.yaml")}
    remedy = did_you_mean(name, known) if known else "headwater init cluster"
    raise NotFound(f"no cluster {name!r} in {FOLDER}", remedy=remedy)


def _folders() -> Iterator[Path]:
    """Yield the folders of cluster files: of this directory and of the installation."""
    yield FOLDER
    yield Path(__file__).parents[2] / FOLDER


def _validate(tree: Tree) -> ClusterFile:
    problems = list(tree.problems)
    if not isinstance(tree.data, dict):
        raise SpecError([Problem("", "expected a cluster file", where=tree.location(()))])
    file = None
    try:
        file = ClusterFile.model_validate(tree.data, strict=False)
    except ValidationError as error:
        problems += [_problem(tree, found) for found in error.errors()]
    if file:
        problems += [
            Problem(key, what, hint, tree.location((key,)))
            for key, what, hint in _invalid_values(file)
        ]
    if problems or file is None:
        raise SpecError(problems)
    return file


def _problem(tree: Tree, found: Any) -> Problem:
    path = tuple(found["loc"])
    key = ".".join(str(part) for part in path)
    if found["type"] == "extra_forbidden":
        model = HeadResources if len(path) > 1 else ClusterFile
        hint = did_you_mean(str(path[-1]), model.model_fields)
        return Problem(key, "unknown key", hint, tree.location(path))
    if found["type"] == "missing":
        return Problem(key, "missing", "for example http://127.0.0.1:8265", tree.location(()))
    return Problem(key, found["msg"].lower(), "", tree.location(path))


def _invalid_values(file: ClusterFile) -> Iterator[tuple[str, str, str]]:
    """Yield the key, message and remedy of each value whose type is valid but not its content."""
    parts = urlsplit(file.address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield "address", f"{file.address!r} is not a URL", "for example http://127.0.0.1:8265"
    elif parts.username or parts.password:
        yield "address", "holds a password", "use token_path or token_env"
    if file.token_path and file.token_env:
        yield "token_env", "excludes token_path", "keep token_path or token_env"
    if has_password(file.mlflow):
        yield "mlflow", "holds a password", "set MLFLOW_TRACKING_PASSWORD on the cluster"
