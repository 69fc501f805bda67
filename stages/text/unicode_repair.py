"""Unicode repair: mojibake undone, one form of each character, no stray control characters.

A text that needs no repair is returned unchanged.
"""

from __future__ import annotations

import re

import ftfy

from stages.data.formats.surrogates import replace_surrogates

# Control characters except tab and newline, bidi overrides, zero-width marks except joiners, and
# the noncharacters: invisible, and able to reorder displayed text.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff]"
)
_BREAKS = re.compile("\r\n?|[\x0c\x85\u2028\u2029]")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")
_SPACE_RUN = re.compile(r"([ \t])\1{63,}")

_CONFIG = ftfy.TextFixerConfig(
    unescape_html=False,  # documentation writes `&lt;` on purpose
    remove_terminal_escapes=True,
    fix_encoding=True,
    fix_latin_ligatures=True,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=True,
    remove_control_chars=False,
    normalization="NFC",
)


def repair(text: str) -> str:
    """Repair Unicode (ftfy), unify line breaks, remove invisible characters and blank runs.

    Lines keep their indentation; runs of 64 and more equal blanks become one, and so do several
    blank lines.
    """
    if not text.isascii():
        lines = replace_surrogates(text).split("\n")  # as ftfy splits it; most lines need no repair
        text = "\n".join(x if x.isascii() else ftfy.fix_text(x, _CONFIG) for x in lines)
    if "\x1b" in text:
        text = ftfy.fixes.remove_terminal_escapes(text)
    text = _BREAKS.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    text = _SPACE_RUN.sub(r"\1", text)
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip("\n")
