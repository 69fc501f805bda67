"""The laws of the house: which way imports point, how long things may get, what is documented."""

from __future__ import annotations

import ast
import io
import re
import statistics
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "launch")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
STAGES = sorted(path for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
HEAVY = {"torch", "ray", "mlflow", "deepspeed", "transformers", "datasets", "pyarrow"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    nodes = tree.body if top_only and isinstance(tree, ast.Module) else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=name(path))


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    forbidden = {
        "pipeline": ("stages", "launch", "torch", "deepspeed", "transformers", "ray", "mlflow"),
        "stages": ("launch",),
        "launch": (),
    }[room]
    bad = [module for module in imports(parse(path)) for no in forbidden if within(module, no)]
    assert not bad, f"{name(path)} must not import {bad}"


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_stages_meet_only_through_artifacts(path: Path) -> None:
    others = {f"stages.{other.stem}" for other in STAGES if other != path}
    assert not others & set(imports(parse(path)))


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_stage_modules_are_light_to_import(path: Path) -> None:
    heavy = {module.split(".")[0] for module in imports(parse(path), top_only=True)} & HEAVY
    assert not heavy, f"{name(path)} imports {heavy} before it runs"


@pytest.mark.parametrize("path", sorted((ROOT / "stages" / "models").rglob("*.py")), ids=name)
def test_models_know_nothing_of_training(path: Path) -> None:
    bad = [
        m for m in imports(parse(path)) if within(m, "stages.training") or within(m, "deepspeed")
    ]
    assert not bad


@pytest.mark.parametrize("path", [*SOURCES], ids=name)
def test_only_the_publish_primitive_renames(path: Path) -> None:
    if name(path) == "pipeline/storage/atomic_io.py":
        return
    calls = re.findall(
        r"\bos\.(?:rename|replace|renames)\(|\.rename\(|shutil\.move\(", path.read_text()
    )
    assert not calls, f"{name(path)}: {calls}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_unsafe_is_loaded(path: Path) -> None:
    unsafe = r"pickle\.loads?\(|yaml\.load\(|weights_only=False|shell=True"
    assert not re.findall(unsafe, path.read_text()), name(path)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500, f"{name(path)} has more than one subject"


def function_lengths() -> list[tuple[int, str]]:
    found = []
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append((length, f"{name(path)}:{node.lineno} {node.name}"))
    return sorted(found, reverse=True)


def test_functions_stay_short() -> None:
    lengths = [length for length, _ in function_lengths()]
    assert statistics.median(lengths) <= 12
    assert lengths[len(lengths) // 10] <= 40, function_lengths()[: len(lengths) // 10]
    assert lengths[0] <= 100, function_lengths()[0]


def test_no_rooms_without_a_subject() -> None:
    bad = re.compile(r"^(utils?|helpers?|manager|common|misc|base_.*)$")
    assert not [name(path) for path in SOURCES if bad.match(path.stem)]


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_every_stage_has_a_test(path: Path) -> None:
    assert list((ROOT / "tests").rglob(f"test_{path.stem}.py")), name(path)


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    text = path.read_text()
    documentation = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent and token.string:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held - documentation)


def test_the_engine_does_not_grow() -> None:
    """What it grows by, it must have lost elsewhere."""
    assert sum(code_lines(path) for path in (ROOT / "pipeline").rglob("*.py")) <= 3745


def test_the_project_speaks_of_itself_alone() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    machine = re.compile(r"/(?:root|home/(?!headwater)\w+|work/main|work/shared)\b")
    for item in tracked:
        path = ROOT / item
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""} and path.is_file():
            assert not machine.search(path.read_text(errors="replace")), item
