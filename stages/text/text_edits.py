"""Edits of a text before rules measure it: functions of the text and its language, applied in the
order of the pipeline file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from stages.text.chinese_variants import to_simplified
from stages.text.rules import c4_rules, chinese_rules
from stages.text.rules.language_rules import remove_foreign_paragraphs
from stages.text.words.word_borders import LATIN_END

_BOILERPLATE = re.compile(
    r"^[ \t]*(?:"
    rf"(?:copyright{LATIN_END}|©|\(c\) *\d{{4}}).{{0,200}}|.{{0,80}}all rights reserved\.?"
    r"|(?:skip|jump) to (?:main |primary )?(?:content|navigation).{0,40}"
    r"|(?:click here|read more|share this|share on|follow us|sign up|log in|subscribe)"
    rf"{LATIN_END}.{{0,60}}"
    r"|(?:home|menu|search|next|previous|print|back to top)"
    r"|.{0,120}(?:terms of (?:use|service)|(?:privacy|cookie) policy|uses? (?:of )?cookies).{0,200}"
    r"|(?:版权所有|返回首页|上一页|下一页|首页|打印本页|关闭窗口|点击这里).{0,60}"
    r")[ \t]*$",
    re.I | re.M,
)
_BLANKS = re.compile(r"\n{3,}")
Edit = Callable[[str, str], str]


def build_edits(names: Sequence[str], languages: Sequence[str]) -> list[tuple[str, Edit]]:
    """Return the named edits in order; `languages` are those to keep in paragraphs."""
    known: dict[str, Edit] = {
        "c4": lambda text, _: c4_rules.c4_page(text, c4_rules.VARIANTS["c4"]).text,
        "c4:datatrove": lambda text, _: (
            c4_rules.c4_page(text, c4_rules.VARIANTS["c4:datatrove"]).text
        ),
        "boilerplate": lambda text, _: remove_boilerplate(text),
        "languages": lambda text, _: remove_foreign_paragraphs(text, languages),
        "simplified_chinese": _for_chinese(to_simplified),
        "chinese_paragraphs": _for_chinese(chinese_rules.remove_short_paragraphs),
        "whole_sentences": _for_chinese(chinese_rules.remove_partial_sentence),
    }
    return [(name, known[name]) for name in names]


def remove_boilerplate(text: str) -> str:
    """Remove lines that pages repeat around their content: copyright, cookies, navigation."""
    return _BLANKS.sub("\n\n", _BOILERPLATE.sub("", text)).strip("\n")


def _for_chinese(edit: Callable[[str], str]) -> Edit:
    return lambda text, lang: edit(text) if lang in chinese_rules.CHINESE else text
