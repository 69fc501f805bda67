"""Web pages to text.

The extraction of the main content trains better models than whole pages do, and cheap rules on the
DOM as good ones as Trafilatura (Li et al. 2024, DCLM, section 4.2). Here the rules are our own
(`main_content`); docs/benchmarks.md compares them.
"""

from __future__ import annotations

from stages.data.formats.text_encoding import declared_charset, decode_text
from stages.text.sources.main_content import extract_main_content


def page_text(data: bytes, charset: str = "", *, truncated: bool = False) -> str:
    """Return the main content of a page, one paragraph per line, without navigation, scripts and
    styles.

    Args:
        data: the page as it was sent.
        charset: label that came with the page, which is believed before the page's own.
        truncated: whether the page may end within a character.

    Raises:
        UndecodableText: the page is damaged, or not text.
        PageTooComplex: reading the page would need quadratic time.
    """
    return extract_main_content(
        decode_text(data, (charset, declared_charset(data)), truncated=truncated)
    )
