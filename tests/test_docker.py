"""The image and the compose file: pinned, non-root, closed to the network, known commands.

No container engine is needed: both files are parsed, and every command is compared with the ones
that the rest of the tests run without containers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("head", "worker", "mlflow")


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, rest in (line.split(None, 1) for line in lines)]


def test_every_base_image_is_pinned_to_a_patch_release() -> None:
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert len(bases) == 2
    assert all(re.search(r":\d+\.\d+\.\d+-", base) for base in bases)


def test_every_system_package_is_pinned() -> None:
    runs = [rest for word, rest in instructions() if word == "RUN" and "apt-get install" in rest]
    for run in runs:
        packages = run.split("--no-install-recommends", 1)[1].split("&&", 1)[0].split()
        assert packages
        assert all("=" in package for package in packages), packages


def test_the_image_runs_as_an_unprivileged_user() -> None:
    users = [rest for word, rest in instructions() if word == "USER"]
    assert users == ["10001"]
    words = [word for word, _ in instructions()]
    assert words.index("USER") < words.index("CMD")
    assert "RUN" not in words[words.index("USER") :]


def test_the_image_holds_the_torch_of_the_constraints() -> None:
    pinned = next(
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    )
    assert pinned in DOCKERFILE


def test_the_image_knows_its_commit() -> None:
    """Manifests name it, and the image is no checkout."""
    final = instructions()[[word for word, _ in instructions()].index("USER") :]
    earlier = instructions()[: -len(final)]
    assert ("ARG", "COMMIT=") in earlier
    assert ("ENV", "HEADWATER_COMMIT=${COMMIT}") in earlier
    assert COMPOSE["x-headwater"]["build"]["args"] == {"COMMIT": "${COMMIT:-}"}


def test_copied_files_exist_and_are_not_ignored() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            for name in [part for part in rest.split()[:-1] if not part.startswith("--")]:
                assert (ROOT / name).exists(), name
                assert name in allowed, name


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned(name: str) -> None:
    tag = SERVICES[name]["image"].rsplit(":", 1)
    assert len(tag) == 2
    assert tag[1] not in ("latest", "")
    assert re.search(r"\d", tag[1])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_only_loopback_is_published(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_on_the_internal_network(name: str) -> None:
    assert "inside" in SERVICES[name]["networks"]
    assert COMPOSE["networks"]["inside"]["internal"] is True


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["read_only"] is True
    assert service["environment"]["RAY_AUTH_MODE"] == "token"


def test_what_is_compiled_can_be_loaded() -> None:
    """A tmpfs is mounted noexec unless it says otherwise."""
    extensions = re.search(r"TORCH_EXTENSIONS_DIR=(\S+)", DOCKERFILE)
    assert extensions
    mounts = dict((entry + ":").split(":", 1) for entry in COMPOSE["x-headwater"]["tmpfs"])
    around = [place for place in mounts if extensions[1].startswith(f"{place}/")]
    assert [mounts[place].strip(":").split(",") for place in around] == [["exec"]]


def test_workers_do_not_count_the_cores_of_the_machine_each_for_itself() -> None:
    assert "--num-cpus=${WORKER_CPUS:-2}" in SERVICES["worker"]["command"]


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    secrets = re.findall(r"\$\{(\w*(?:TOKEN|PASSWORD|SECRET|ACCESS)\w*)(:\?[^}]*)?\}", text)
    assert len(secrets) >= 5
    assert all(guard for _, guard in secrets)


@pytest.mark.parametrize("name", OURS)
def test_commands_are_ones_that_are_installed(name: str) -> None:
    program = Path(sys.executable).parent / SERVICES[name]["command"][0]
    assert program.exists(), f"{program.name} is not an installed command"


def options(command: list[str]) -> set[str]:
    return {part.split("=", 1)[0] for part in command if part.startswith("--")}


@pytest.mark.integration
@pytest.mark.parametrize(("name", "words"), [("head", 2), ("worker", 2), ("mlflow", 2)])
def test_every_option_is_known_to_its_command(name: str, words: int) -> None:
    command = SERVICES[name]["command"]
    program = Path(sys.executable).parent / command[0]
    shown = subprocess.run(
        [str(program), *command[1:words], "--help"], capture_output=True, text=True, check=True
    ).stdout
    unknown = {option for option in options(command) if option not in shown}
    assert not unknown


def test_hadolint_is_content() -> None:
    program = Path(sys.executable).parent / "hadolint"
    subprocess.run([str(program), str(ROOT / "docker" / "Dockerfile")], check=True)
