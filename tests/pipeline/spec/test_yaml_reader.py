"""YAML read as people mean it, and its traps refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from orchard import steady

from pipeline.errors import SpecError
from pipeline.spec import yaml_reader
from pipeline.spec.yaml_reader import Tree, format_key_path, parse_scalar, parse_yaml, read_yaml


def tree(text: str) -> Tree:
    return parse_yaml(text, lambda line: f"f:{line}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("3.0e-4", 3e-4),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000),
        ("1.5e9", 1_500_000_000),
        ("1e300", 1e300),
        ("-1e3", -1000),
        ("1.0", 1.0),
        ("010", 10),
        ("-7", -7),
        ("0o17", 15),
        ("0xff", 255),
        ("1_000", "1_000"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("12:30:45", "12:30:45"),
        ("2026-11-21", "2026-11-21"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("", None),
        ("=", "="),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    assert (parse_scalar(text), type(parse_scalar(text))) == (value, type(value))
    assert tree(f"key: {text}").data == {"key": value}


def test_quotes_make_text() -> None:
    assert tree("[\"1e-4\", 'true', '~']").data == ["1e-4", "true", "~"]


def test_references_need_no_quotes_anywhere() -> None:
    text = '{a: ${x}, b: [${y.z}, "in ${q}"], c: artifact:ab12, d: model:m@v, e: ${env:KEY}} # ${'
    assert tree(text).data == {
        "a": "${x}",
        "b": ["${y.z}", "in ${q}"],
        "c": "artifact:ab12",
        "d": "model:m@v",
        "e": "${env:KEY}",
    }


@pytest.mark.parametrize("code", ["e000", "e001", "e002", "f8ff"])
def test_characters_for_private_use_stay_what_they_are(code: str) -> None:
    character = chr(int(code, 16))
    text = f'a: [{{b: ${{c}}, d: "x{character}\\u{code.upper()}$\\U0000{code}"}}]'
    assert tree(text).data == {"a": [{"b": "${c}", "d": f"x{character * 2}${character}"}]}
    assert tree(f"{character}: {character}").data == {character: character}


def test_a_text_with_all_characters_for_private_use_is_read_without_edges() -> None:
    every = "".join(map(chr, range(0xE000, 0xF900)))
    assert tree(f"a: {every}").data == {"a": every}
    with pytest.raises(SpecError, match="not allowed in YAML"):
        tree(f"a: {every}\nb: ${{c}}")


def test_every_key_and_item_knows_its_line() -> None:
    found = tree("a:\n  b: 1\n  c:\n  - x\n  - {d: 2}\n")
    assert found.location(("a",)) == "f:1"
    assert found.location(("a", "b")) == "f:2"
    assert found.location(("a", "c", 1)) == found.location(("a", "c", 1, "d")) == "f:5"
    assert found.location(("a", "c", "none", "none")) == "f:3"
    assert found.location(("z",)) == "f:1"
    assert Tree().location(("z",)) == ""


def test_paths_are_named_as_overrides_are() -> None:
    assert format_key_path(("stages", "gpt", "train", "lr")) == "gpt.train.lr"
    assert format_key_path(("stages", "clean", "sources", 0)) == "clean.sources[0]"
    assert format_key_path(("stages",)) == "stages"
    assert format_key_path(("promote", "model")) == "promote.model"
    assert format_key_path(()) == ""


def test_layers_merge_key_by_key() -> None:
    base = parse_yaml("a: {x: 1, y: [1, 2], z: {k: 1}}\nb: 1", lambda line: f"base:{line}")
    over = parse_yaml("\na: {y: [3], z: 4, n: {m: 1}}", lambda line: f"over:{line}")
    found = over.merge_over(base)
    assert found.data == {"a": {"x": 1, "y": [3], "z": 4, "n": {"m": 1}}, "b": 1}
    assert found.location(("a", "x")) == "base:1"
    assert found.location(("b",)) == "base:2"
    assert found.location(("a", "y", 1)) == "over:2"
    assert found.location(("a", "z", "k")) == "over:2"
    assert ("a", "z", "k") not in found.locations
    assert base.data["a"]["y"] == [1, 2]


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("a: &x 1", ["f:1: a: YAML anchors (&x) are not accepted (remove it)"]),
        ("a: *x", ["f:1: a: YAML aliases are not accepted (write the value out)"]),
        ("&k a: 1", ["f:1: YAML anchors (&k) are not accepted (remove it)"]),
        ("!!str a: 1", ["f:1: YAML tags (tag:yaml.org,2002:str) are not accepted (remove it)"]),
        ("a: !x {}", ["f:1: a: YAML tags (!x) are not accepted (remove it)"]),
        ("a: ! '1'", ["f:1: a: YAML tags (!) are not accepted (remove it)"]),
        ("a: 1\na: 2", ["f:2: a: the key 'a' is a duplicate (remove one)"]),
        ("? {a: 1}\n: 2", ["f:1: a key must be one plain word"]),
        ('a: "\\0"', ["f:1: a: the text holds a character that is not text"]),
        ('a: "\\udc00"', ["f:1: a: the text holds a character that is not text"]),
        ("--- 1\n--- 2", ["f:2: a second document begins here (keep one `---`)"]),
    ],
)
def test_traps_are_refused_and_reading_goes_on(text: str, messages: list[str]) -> None:
    assert [str(problem) for problem in tree(text).problems] == messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "f:1: this is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: b: c", "f:1: this is not YAML: mapping values are not allowed here"),
        (
            "a:\n\t- x",
            "f:2: this is not YAML: found character '\\t' that cannot start any token",
        ),
        ("a: \x1b", "f:1: the character U+001B is not allowed in YAML"),
        ("[" * 100_000, "f:1: nested deeper than 20 (a pipeline file is flat)"),
        ("{a: " * 100_000, "f:1: nested deeper than 20 (a pipeline file is flat)"),
        ("[1, " * 3 + "1, " * 20_000, "f:1: more than 10,000 values (a pipeline file is short)"),
    ],
    ids=lambda text: text[:20],
)
def test_what_cannot_be_read_stops_at_once(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        tree(text)
    assert str(caught.value) == message


def test_an_alias_bomb_stays_small() -> None:
    """442 bytes that unfold to 10^9 values elsewhere."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    found = tree("\n".join(lines))
    assert len(found.problems) == 100
    assert found.data["a9"] == [None] * 10


def test_problems_of_values_begin_with_the_root() -> None:
    with pytest.raises(SpecError, match=r"^here: p.rows: this is not YAML"):
        parse_yaml("[", lambda _: "here", ("stages", "p", "rows"))


def test_a_mark_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise yaml.MarkedYAMLError(problem="broken")

    monkeypatch.setattr(yaml_reader.yaml, "parse", fail)
    with pytest.raises(SpecError, match=r"^f:1: this is not YAML: broken$"):
        tree("a")


# --- files -------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        read_yaml(path)
    return str(caught.value).replace(str(path), "f")


def test_a_file_is_read_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("a: é")
    found = read_yaml(tmp_path / "f")
    assert (found.data, found.location(("a",))) == ({"a": "é"}, f"{tmp_path}/f:1")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "f"
    assert refused(file) == "f: cannot be read: no such file or directory"
    assert refused(tmp_path).endswith("cannot be read: is a directory")
    file.write_bytes(b"a: \xff")
    assert refused(file) == "f: byte 3 is not UTF-8 text (save the file as UTF-8)"
    file.write_bytes(b"#" * 1_000_001)
    assert refused(file) == "f: the file is over 1,000,000 bytes (a pipeline file is short)"


def test_a_path_that_is_no_path() -> None:
    assert "cannot be read" in refused(Path("x" * 5000))


# --- properties --------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Cn", "Zl", "Zp"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)


@steady
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = tree(text)
    except SpecError as error:
        assert error.problems
    else:
        assert set(map(type, found.locations.values())) == {str}


@steady
@given(plain)
def test_plain_data_comes_back(data: Any) -> None:
    """JSON is YAML 1.2; a whole number with an exponent comes back as an integer, equal to it."""
    found = tree(json.dumps(data, ensure_ascii=False))
    assert found.data == data
    assert not found.problems
