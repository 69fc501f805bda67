"""Unicode repair of any text."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.unicode_repair import repair


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ("schÃ¶n", "schön"),
        ("e\u0301", "é"),
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne"),
        ("a\0b\x07\x1b[31mred\x1b[0m", "abred"),
        ("\ufeffx\u202ey\u2066z\u200b", "xyz"),
        ("a  \n\n \n\n\nb\t\n", "a\n\nb"),
        ("    indented\n  stays", "    indented\n  stays"),
        ("x" + " " * 100 + "y", "x y"),
        ("“quoted” &lt;tag&gt;", "“quoted” &lt;tag&gt;"),
        ("a\ud800b", "a\ufffdb"),
        ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"),
    ],
)
def test_repair(broken, repaired):
    assert repair(broken) == repaired


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=120))
def test_repaired_text_is_whole_and_stays_as_it_is(text):
    repaired = repair(text)
    repaired.encode()
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in repaired)
    assert "\n\n\n" not in repaired and not any(c in repaired for c in "\u202e\u2066\ufeff\r")
    assert not text.isascii() or repair(repaired) == repaired


def test_plain_text_is_untouched():
    text = "def f(x):\n    return x  # twice\n\n* a\n* b\n\tTabbed: 100 %, “ok” – naïve."
    assert repair(text) == text
