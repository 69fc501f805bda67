"""Rules and edits for Chinese text."""

import pytest

from stages.text.rules import chinese_rules
from stages.text.rules.catalogue import default_limits
from stages.text.rules.document_view import DocumentView
from stages.text.text_edits import build_edits
from stages.text.words.word_table import WordTable

PROSE = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"


def scores(text, lang="zh", measure=chinese_rules.chinese):
    return measure(DocumentView(text, lang, WordTable()))


def edited(name, text, lang="zh"):
    ((_, edit),) = build_edits((name,), ())
    return edit(text, lang)


def test_shares_are_of_what_is_neither_space_nor_mark():
    assert scores(PROSE) == {"share": 1, "latin": 0, "paragraph": 20}
    mixed = scores("使用 git2 命令。\n好", measure=chinese_rules.chinese_characters)
    assert mixed["share"] == pytest.approx(5 / 9) and mixed["latin"] == pytest.approx(3 / 9)
    assert mixed["paragraph"] == 4
    for name in ("chinese", "chinese:characters"):
        limits = default_limits((name,))
        assert limits[f"{name}.share"].low == 0.7 and limits[f"{name}.latin"].high == 0.3


def test_a_word_of_another_script_weighs_as_much_as_a_character():
    mixed = scores("使用 checkout 命令，или 3 好")
    assert mixed["share"] == pytest.approx(5 / 8) and mixed["latin"] == pytest.approx(1 / 8)
    hashes = scores("好" * 10 + " a1b2c3d4 naïve e5f6" * 2)
    assert hashes["share"] == 10 / 16 and hashes["latin"] == 6 / 16


def test_they_mean_nothing_for_other_languages():
    assert all(value != value for value in scores("Hello there", "en").values())
    assert edited("chinese_paragraphs", "Hello\nthere", "en") == "Hello\nthere"


def test_short_paragraphs_go():
    assert edited("chinese_paragraphs", f"首页 登录\n{PROSE}\n下一页") == PROSE


def test_a_last_sentence_that_is_cut_goes_and_only_that():
    assert edited("whole_sentences", PROSE + "举头望") == PROSE
    assert edited("whole_sentences", PROSE) == PROSE
    assert edited("whole_sentences", "没有句号") == "没有句号"
    assert edited("whole_sentences", "他说：「好。」然后") == "他说：「好。」"


def test_traditional_characters_become_simplified_ones():
    assert edited("simplified_chinese", "臺灣的軟體與髮型，頭髮") == "台湾的软体与发型，头发"
    assert edited("simplified_chinese", "日本語の漢字", "ja") == "日本語の漢字"
