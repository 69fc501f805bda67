"""The laws of the house: import directions, sizes, names, the language of names and prose.

`house_exceptions.txt` lists what does not keep a law yet, one `law: item` per line. A new offence
fails: the list only shrinks.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import statistics
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from import_graph import cycles, folder_cycles, import_graph
from prose_law import markdown_problems, module_problems

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "launch")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
STAGES = sorted(path for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
MARKDOWN = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
EXCEPTIONS = (ROOT / "tests" / "house_exceptions.txt").read_text().splitlines()
MOST_MODULES = 20  # per folder
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


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=name(path))


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    forbidden = {
        "pipeline": ("stages", "launch", "torch", "deepspeed", "transformers", "ray", "mlflow"),
        "stages": ("launch",),
        "launch": (),
    }[package]
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
    if name(path) == "pipeline/atomic_io.py":
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


def test_only_the_terminal_folder_makes_styled_text() -> None:
    """`launch.ui.console` escapes what comes from data; a `Text` or a `Table` of rich does not."""
    rich = re.compile(r"from rich\.(?:text|table|markup|console) import")
    outside = [path for path in SOURCES if "launch/ui/" not in name(path)]
    assert not [name(path) for path in outside if rich.search(path.read_text())]


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


def test_no_module_has_a_generic_name() -> None:
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
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in ignored and token.string:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - documentation)


def test_the_engine_does_not_grow() -> None:
    """The cap only falls: new code replaces other code."""
    assert sum(code_lines(path) for path in (ROOT / "pipeline").rglob("*.py")) <= 3296


def test_no_file_names_a_machine_path() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    machine = re.compile(r"/(?:root|home/(?!headwater)\w+|work/main|work/shared)\b")
    for item in tracked:
        path = ROOT / item
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""} and path.is_file():
            assert not machine.search(path.read_text(errors="replace")), item


def check(law: str, offenders: dict[str, str]) -> None:
    """Compare the offenders of a law (item -> what is wrong) with the listed exceptions."""
    listed = {line.split(": ", 1)[1] for line in EXCEPTIONS if line.startswith(f"{law}: ")}
    new = {item: what for item, what in offenders.items() if not listed & {item, "*"}}
    assert not new, f"{law}:\n" + "\n".join(f"  {item}: {what}" for item, what in new.items())


def test_folders_hold_at_most_twenty_modules() -> None:
    counts: dict[str, int] = {}
    for path in SOURCES:
        if path.stem != "__init__":
            counts[name(path.parent)] = counts.get(name(path.parent), 0) + 1
    check("folder size", {f: str(n) for f, n in counts.items() if n > MOST_MODULES})


def test_no_import_cycles() -> None:
    """Late and typing imports count, between files and between the children of each folder."""
    graph = import_graph(ROOT, PACKAGES)
    found = [*cycles(graph), *folder_cycles(graph)]
    check("import cycle", {" ".join(cycle): "imports itself" for cycle in found})


def test_module_names_are_unique_within_stages() -> None:
    seen: dict[str, list[str]] = {}
    for path in (ROOT / "stages").rglob("*.py"):
        if path.stem != "__init__":
            seen.setdefault(path.stem, []).append(name(path))
    check("duplicate module", {stem: str(found) for stem, found in seen.items() if len(found) > 1})


def test_public_class_names_are_unique() -> None:
    seen: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                seen.setdefault(node.name, []).append(name(path))
    check("duplicate class", {n: str(found) for n, found in seen.items() if len(found) > 1})


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_names_and_prose_use_the_fields_language(path: Path) -> None:
    problems = module_problems(path)
    check("prose", {name(path): "\n    ".join(problems)} if problems else {})


@pytest.mark.parametrize("path", MARKDOWN, ids=name)
def test_documentation_uses_the_fields_language(path: Path) -> None:
    problems = markdown_problems(path)
    check("prose", {name(path): "\n    ".join(problems)} if problems else {})


FAMILIES = {"gpt2", "llama", "qwen3", "qwen3_moe", "switch", "clip"}
FAMILY_CLASSES = re.compile(
    r"(GPT2?|Llama|Qwen3|Switch|CLIP|VisionTransformer|ResNet|TextTransformer|ViT)(LM|Config|Model)?"
)


def family_branches(tree: ast.AST) -> Iterator[str]:
    """Yield the expressions that decide by the family of a model."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = {getattr(side, "id", getattr(side, "attr", "")) for side in sides}
            values = {n.value for s in sides for n in ast.walk(s) if isinstance(n, ast.Constant)}
            if named & {"family", "model_type"} and values & FAMILIES:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            names = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node.args[1])}
            if any(FAMILY_CLASSES.fullmatch(name) for name in names):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr"}:
            yield from (ast.unparse(node) for a in node.args if ast.unparse(a) == "'experts'")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_family_folders_and_the_registry_branch_on_a_family(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    if parts[:2] == ("stages", "models") and (len(parts) > 3 or path.stem == "registry"):
        return
    found = list(family_branches(parse(path)))
    check("family branch", {name(path): str(found)} if found else {})


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('def f():\n    """The loss."""', "imperative verb"),
        ('def f():\n    """Returns the loss."""', "imperative verb"),
        ('x: int\n"""Whether it is on."""', "question"),
        ('"""What a plan is."""', "question"),
        ("def told(): ...", "told"),
        ('raise ValueError("4096 tokens a step")', "per"),
        ("# nobody reads it", "nobody"),
    ],
)
def test_the_law_of_prose_finds(source: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(source)
    found = module_problems(tmp_path / "module.py")
    assert len(found) == 1 and problem in found[0]


def test_the_law_of_prose_accepts_plain_english(tmp_path: Path) -> None:
    source = '''"""Losses per step."""\ndef f():\n    """Return the loss, nats per token."""'''
    (tmp_path / "module.py").write_text(source)
    assert module_problems(tmp_path / "module.py") == []


def test_the_law_of_cycles_finds_late_typing_and_folder_cycles(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / "box" / folder).mkdir(parents=True)
    (tmp_path / "box" / "one" / "a.py").write_text("def f():\n    from box.one import b")
    (tmp_path / "box" / "one" / "b.py").write_text("if TYPE:\n    import box.one.a")
    (tmp_path / "box" / "one" / "c.py").write_text("import box.two.d")
    (tmp_path / "box" / "two" / "d.py").write_text("")
    (tmp_path / "box" / "two" / "e.py").write_text("import box.one.c")
    graph = import_graph(tmp_path, ["box"])
    assert cycles(graph) == [("box.one.a", "box.one.b")]
    assert folder_cycles(graph) == [("box.one", "box.two")]


@pytest.mark.parametrize(
    "source",
    ["family == 'gpt2'", "config.family in ('llama',)", "isinstance(config, LlamaConfig)",
     "getattr(config, 'experts', None)"],
)  # fmt: skip
def test_the_law_of_families_finds(source: str) -> None:
    assert list(family_branches(ast.parse(source))) == [source]
    assert list(family_branches(ast.parse("self.model_type == 'bpe'"))) == []
