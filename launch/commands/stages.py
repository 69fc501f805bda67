"""`stages`: the reference of stages and parameters, read from the parameter models.

The meaning of a parameter is the docstring under its field, so that the reference and the source
agree; `--markdown` writes docs/stages.md.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel

from launch.ui import console
from launch.ui.options import json_option
from pipeline.fingerprint import format_value
from pipeline.stage import execution_fields, nested_sections

if TYPE_CHECKING:
    from pipeline.stage import Stage


ROLES = {
    "identity": "determine the artifact and enter its fingerprint",
    "execution": "determine only how the stage runs, and do not enter the fingerprint",
}
_TYPE_NAMES: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "none",
}


@dataclass(frozen=True)
class Parameter:
    """Key of a stage in a pipeline file."""

    name: str
    """Dotted name, as in an override."""
    type: str
    default: str
    """Default value, or `required`."""
    meaning: str
    role: str
    """`identity` or `execution`."""


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--markdown", is_flag=True, help="Print Markdown (docs/stages.md).")
@json_option
def stages(name: str | None, markdown: bool, as_json: bool) -> None:
    """List the stages, or describe the inputs, output and parameters of one."""
    from pipeline.stage_registry import all_stages, find_stage

    found = [find_stage(name)] if name else list(all_stages())
    if as_json:
        console.print_json([describe_stage(stage) for stage in found])
    elif markdown:
        sys.stdout.write(markdown_page(found))
    elif name:
        _print_stage(found[0])
    else:
        _print_list(found)


def describe_stage(stage: Stage) -> dict[str, Any]:
    """Return the entry of a stage in `stages --json`."""
    return {
        "uses": stage.uses,
        "summary": stage.summary,
        "version": stage.version,
        "inputs": {name: str(declared) for name, declared in stage.inputs.items()},
        "output": stage.output,
        "metrics": dict(stage.metrics or {}),
        "parameters": [asdict(parameter) for parameter in list_parameters(stage.params)],
    }


def list_parameters(
    model: type[BaseModel], prefix: str = "", execution: bool = False
) -> list[Parameter]:
    """Return all parameters of a model and of its sections, own fields before inherited ones."""
    inherited = {
        name for base in model.__mro__[1:] for name in getattr(base, "__annotations__", {})
    }
    names = sorted(model.model_fields, key=lambda name: name in inherited and not prefix)
    return [p for name in names for p in _parameter(model, name, prefix, execution)]


def _parameter(
    model: type[BaseModel], name: str, prefix: str, execution: bool
) -> Iterator[Parameter]:
    info = model.model_fields[name]
    execution = execution or name in execution_fields(model)
    inner = list(nested_sections(info.annotation))
    if len(inner) == 1 and get_origin(info.annotation) not in (tuple, list, dict):
        yield from list_parameters(inner[0], f"{prefix}{name}.", execution)
        return
    if inner and set(get_args(info.annotation)) == set(inner):
        yield from _alternatives(inner, f"{prefix}{name}.", execution)
        return
    required = info.is_required()
    yield Parameter(
        f"{prefix}{name}",
        type_name(info.annotation),
        "required" if required else _default(info.get_default(call_default_factory=True)),
        field_docs(model).get(name, info.description or ""),
        "execution" if execution else "identity",
    )


def _alternatives(
    sections: list[type[BaseModel]], prefix: str, execution: bool
) -> Iterator[Parameter]:
    """Yield the parameters of alternative sections; parameters that they share appear once."""
    found: dict[str, list[tuple[str, Parameter]]] = {}
    for section in sections:
        tag = next(
            (str(get_args(f.annotation)[0]) for f in section.model_fields.values()
             if get_origin(f.annotation) is Literal),
            section.__name__,
        )  # fmt: skip
        for parameter in list_parameters(section, prefix, execution):
            found.setdefault(parameter.name, []).append((tag, parameter))
    for alternatives in found.values():
        first, types = alternatives[0][1], dict.fromkeys(p.type for _, p in alternatives)
        tags = [tag for tag, _ in alternatives]
        only = f" Only for {', '.join(tags)}." if len(tags) < len(sections) else ""
        meanings = dict.fromkeys(p.meaning for _, p in alternatives)
        meaning = first.meaning if len(types) == 1 else " ".join(meanings)
        yield replace(first, type=" or ".join(types), meaning=meaning + only)


def _default(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_default(item) for item in value) + "]"
    if isinstance(value, BaseModel):
        return _default(value.model_dump())
    if value is None:
        return "none"
    if isinstance(value, str):
        return f'"{value}"'
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e6
    return str(int(value)) if whole else format_value(value)


def type_name(annotation: Any) -> str:
    """Return the name of a type in terms of a pipeline file."""
    if annotation in _TYPE_NAMES:
        return _TYPE_NAMES[annotation]
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(value) for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in inside)
    if origin in (tuple, list):
        return f"list of {_in_parentheses(inside[0])}" if inside else "list"
    if origin is dict:
        return f"map of {_in_parentheses(inside[1])}"
    if hasattr(annotation, "__metadata__"):
        return type_name(inside[0])
    return str(getattr(annotation, "__name__", annotation))


def _in_parentheses(annotation: Any) -> str:
    name = type_name(annotation)
    return f"({name})" if " or " in name else name


@cache
def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field of a model and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base.__module__ != "pydantic.main":
            found |= _own_field_docs(base)
    return found


def _own_field_docs(model: type[BaseModel]) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, after in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found


def _print_list(found: list[Stage]) -> None:
    titles = ("stage", "inputs", "output", "summary")
    table = console.make_table(*titles, flexible=["inputs", "summary"])
    for stage in found:
        table.add_row(stage.uses, ", ".join(stage.inputs), stage.output, stage.summary)
    console.print_table(table)
    console.suggest_command("headwater stages NAME", "describes a stage")


def _print_stage(stage: Stage) -> None:
    console.echo(f"{stage.uses} → {stage.output}   version {stage.version}", "bold")
    console.echo(stage.summary)
    if stage.inputs:
        table = console.make_table("input", "kind")
        for name, kind in stage.inputs.items():
            table.add_row(name, str(kind))
        console.print_table(table)
    if stage.metrics:
        console.echo()
        console.echo("metrics, for gates and comparisons", "dim")
        table = console.make_table("metric", "meaning", flexible=["meaning"])
        for name, meaning in stage.metrics.items():
            table.add_row(name, meaning)
        console.print_table(table)
    titles = ("parameter", "type", "default", "meaning")
    for role in ROLES:
        found = [p for p in list_parameters(stage.params) if p.role == role]
        if not found:
            continue
        console.echo()
        console.echo(f"{role} parameters {ROLES[role]}", "dim")
        table = console.make_table(*titles, flexible=["type", "default", "meaning"])
        for p in found:
            table.add_row(p.name, p.type, p.default, p.meaning)
        console.print_table(table)


def markdown_page(found: list[Stage]) -> str:
    """Return the reference as Markdown."""
    parts = [
        "# Stages",
        "",
        "Generated by `headwater stages --markdown`. *Identity* parameters determine the artifact",
        "and enter its fingerprint. *Execution* parameters (marked ·) determine only how the stage",
        "runs.",
    ]
    for stage in found:
        parts += ["", f"## {stage.uses}", "", stage.summary, ""]
        inputs = [f"`{name}`: {kind}" for name, kind in stage.inputs.items()] or ["none"]
        parts += [
            f"Inputs: {'; '.join(inputs)}. Output: {stage.output}. Version: {stage.version}.",
            "",
            "| parameter | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for p in list_parameters(stage.params):
            mark = " ·" if p.role == "execution" else ""
            cells = (f"`{p.name}`{mark}", p.type, p.default, p.meaning)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if stage.metrics:
            parts += ["", "| metric | meaning |", "|---|---|"]
            parts += [f"| `{name}` | {meaning} |" for name, meaning in stage.metrics.items()]
    return "\n".join(parts) + "\n"
