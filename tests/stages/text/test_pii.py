"""What is masked, against labelled lines; run as a program it prints the table."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.text.pii import (
    ENTITIES,
    PLACEHOLDERS,
    PiiSpan,
    find_pii,
    has_luhn_checksum,
    is_resident_id,
    mask_pii,
)

LABELS = Path(__file__).parents[2] / "golden" / "pii.txt"
REGIONS = ("US", "CN")
_MARK = re.compile(rf"\[({'|'.join(ENTITIES)}):(.*?)\](?!\])")


def labelled() -> list[tuple[str, set[PiiSpan]]]:
    """The lines without their marks, and what the marks say."""
    lines = []
    for line in LABELS.read_text().splitlines()[1:]:
        text, truth = "", set()
        at = 0
        for match in _MARK.finditer(line):
            text += line[at : match.start()]
            kind = next(kind for kind in ENTITIES if kind == match[1])
            truth.add(PiiSpan(len(text), len(text) + len(match[2]), kind))
            text += match[2]
            at = match.end()
        lines.append((text + line[at:], truth))
    return lines


def score() -> dict[str, tuple[int, int, int]]:
    """By kind: labelled, found, and found rightly."""
    wanted, found, right = Counter(), Counter(), Counter()
    for text, truth in labelled():
        seen = set(find_pii(text, ENTITIES, REGIONS))
        wanted.update(f.entity for f in truth)
        found.update(f.entity for f in seen)
        right.update(f.entity for f in seen & truth)
    return {kind: (wanted[kind], found[kind], right[kind]) for kind in ENTITIES}


@pytest.mark.parametrize("kind", ENTITIES)
def test_recall_and_precision(kind: str) -> None:
    wanted, found, right = score()[kind]
    assert wanted >= 3
    assert right / wanted >= 0.95, f"{wanted - right} of {wanted} missed"
    assert right / found >= 0.95, f"{found - right} of {found} are something else"


def test_a_text_is_masked_by_kind() -> None:
    text = "From ada@example.org (8.8.8.8), card 4526 0181 5908 3012."
    assert mask_pii(text, ENTITIES, REGIONS) == (
        "From [EMAIL] ([IP]), card [CARD].",
        Counter(email=1, ip=1, card=1),
    )
    assert mask_pii(text, ["ip"], REGIONS)[0] == text.replace("8.8.8.8", "[IP]")
    assert mask_pii(text, [], REGIONS) == (text, Counter())


def test_a_region_decides_which_numbers_may_stand_without_a_prefix() -> None:
    assert find_pii("call 020 7946 0958", ["phone"], ["US"]) == []
    assert find_pii("call 020 7946 0958", ["phone"], ["GB"]) == [PiiSpan(5, 18, "phone")]


@pytest.mark.parametrize(
    ("number", "holds"),
    [("79927398713", True), ("79927398710", False), ("4539578763621486", True), ("0", True)],
)
def test_luhn(number: str, holds: bool) -> None:
    """The first is the example of the Wikipedia article on the algorithm."""
    assert has_luhn_checksum(number) is holds


@given(st.text("0123456789", min_size=2, max_size=19), st.integers(0, 18), st.integers(1, 9))
def test_luhn_sees_every_single_wrong_digit(number: str, at: int, by: int) -> None:
    at %= len(number)
    wrong = number[:at] + str((int(number[at]) + by) % 10) + number[at + 1 :]
    assert not (has_luhn_checksum(number) and has_luhn_checksum(wrong))


@given(st.integers(0, 16), st.integers(1, 9))
def test_a_resident_identity_number_with_a_wrong_digit_is_rejected(at: int, by: int) -> None:
    number = "11010519491231002X"  # the example of GB 11643-1999
    assert is_resident_id(number)
    assert not is_resident_id(number[:at] + str((int(number[at]) + by) % 10) + number[at + 1 :])


@given(st.text(st.sampled_from("0123456789+-. ()@:/abAB王"), max_size=60))
def test_what_is_masked_holds_nothing_more(text: str) -> None:
    masked, counts = mask_pii(text, ENTITIES, REGIONS)
    assert sum(masked.count(PLACEHOLDERS[kind]) for kind in ENTITIES) == counts.total()
    spans = find_pii(text, ENTITIES, REGIONS)
    assert all(one.stop <= other.start for one, other in pairwise(spans))


ALONE = {
    "secret": "ASIAQ7RSTUVWXYZ23456",
    "email": "o.weber@post.example.net",
    "ip": "198.41.0.4",
    "phone": "+49 30 901820",
    "us_ssn": "536-22-1874",
    "cn_id": "110105194912314119",
    "card": "5166131860913906",
}
BESIDE = {
    "Chinese": ("请看", "这里的内容"),
    "Japanese": ("こちらは", "までお願いします"),
    "half-width kana": ("ｶﾅ", "ﾃﾞｽ"),
    "Korean": ("주소는", "으로 보내세요"),
    "Thai": ("ติดต่อ", "ได้ทุกวัน"),
    "Lao": ("ຕິດຕໍ່", "ໄດ້"),
    "Khmer": ("ទាក់ទង", "បាន"),
    "Burmese": ("ဆက်သွယ်ရန်", "သို့"),
    "Arabic": ("إلى", "فقط"),
    "Hebrew": ("אל", "בלבד"),
    "Russian": ("адрес", "здесь"),
    "Hindi": ("पता", "पर"),
}


@pytest.mark.parametrize("script", BESIDE)
@pytest.mark.parametrize("entity", ALONE)
def test_letters_of_other_scripts_are_borders(entity: str, script: str) -> None:
    before, after = BESIDE[script]
    kind = next(kind for kind in ENTITIES if kind == entity)
    text = f"{before}{ALONE[entity]}{after}"
    assert mask_pii(text, ENTITIES, REGIONS)[0] == f"{before}{PLACEHOLDERS[kind]}{after}"


@pytest.mark.parametrize("entity", set(ALONE) - {"email", "phone"})
@pytest.mark.parametrize(("before", "after"), [("ab", ""), ("", "cd"), ("é", ""), ("7", "7")])
def test_latin_letters_and_digits_are_no_borders(entity: str, before: str, after: str) -> None:
    text = f"{before}{ALONE[entity]}{after}"
    assert mask_pii(text, ENTITIES, REGIONS)[0] == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("写信给li@例子.中国就可以", "写信给[EMAIL]就可以"),
        ("메일은lee@예시.한국으로 보내세요", "메일은[EMAIL]으로 보내세요"),
        ("пишите на anna@почта.рф сегодня", "пишите на [EMAIL] сегодня"),
        ("an rike@post.example.xn--p1ai, bitte", "an [EMAIL], bitte"),
        ("请看 li@example.org.谢谢", "请看 [EMAIL].谢谢"),
        ("two lines: rike\n@example.org", "two lines: rike\n@example.org"),
    ],
)
def test_an_address_ends_at_its_top_level_domain(text: str, masked: str) -> None:
    assert mask_pii(text, ["email"], REGIONS)[0] == masked


def test_many_addresses_are_masked_in_linear_time() -> None:
    """Comparing each with all before it would exceed the time limit of the tests."""
    masked, counts = mask_pii("a@b.example 8.8.8.8\n" * 100_000, ["email", "ip"], REGIONS)
    assert counts == Counter(email=100_000, ip=100_000) and len(masked) == 100_000 * 13


def test_no_pattern_backtracks() -> None:
    """It would take hours."""
    units = ("a.", "1-", "1 ", "a@", "::", "+1(", "eyJ", "-----BEGIN ", "http://a:", "1.")
    hostile = ("-eyJaaaaaaaa", "eyJaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "sk-a", "a@中.", "文")
    for unit in (*units, *hostile):
        find_pii(unit * 50_000, ENTITIES, REGIONS)


def test_a_private_key_of_any_size_is_masked() -> None:
    key = f"-----BEGIN PRIVATE KEY-----\n{'MIIE+/x9=-' * 1_500}\n-----END PRIVATE KEY-----"
    assert mask_pii(f"a {key} b {key}", ["secret"], REGIONS)[0] == "a [SECRET] b [SECRET]"


if __name__ == "__main__":
    for kind, (wanted, found, right) in score().items():
        print(f"{kind:8} {wanted:3} labelled  recall {right / wanted:.3f}  {right / found:.3f}")
