"""Main content of a web page: prose, lists, tables and code, without menus and footers.

Three kinds of blocks are left out: those inside elements that markup calls navigation, footer,
sidebar or advertisement, lists and lines of links, and headings that only such blocks follow. The
share of characters inside links is the measure of Gottron 2008 and jusText (Pomikalek 2011). The
first rule never takes most of a page, because wrappers carry such class names as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from stages.text.sources.page_blocks import CELLS, HEADINGS, Block, page_blocks

LINK_SHARE = 0.8
"""Minimum share of characters inside links of a menu."""
ITEM_TEXT = 10
"""Minimum mean number of characters outside links of an item that is more than a link."""
SHORT_LINK = 40
"""Maximum length of a single link that is a button or a hint, characters."""
LARGE_REGION = 200
"""Minimum number of characters outside links of a region that may be the content."""
_SEPARATORS = re.compile(r"[\s|/>»«·•,:()\[\]–-]+")
_TITLES = HEADINGS | {"th", "dt", "dd", "caption", "figcaption", "summary", "pre"}


def extract_main_content(html: str) -> str:
    """Return the text of the main content of a page: one line per block, an empty line around
    paragraphs, bullets and numbers before list items, tabs between cells, code unchanged.

    Raises:
        PageTooComplex: reading the page would need quadratic time.
    """
    blocks = page_blocks(html)
    kept = [True] * len(blocks)
    _drop_regions(blocks, kept)
    _drop_lists_of_links(blocks, kept)
    _drop_lines_of_links(blocks, kept)
    _drop_headings_of_nothing(blocks, kept)
    return "".join(_lay_out(blocks, kept))


def _drop_regions(blocks: list[Block], kept: list[bool]) -> None:
    """Drop regions of boilerplate, except one with most of the text outside links."""
    plain: Counter[int] = Counter()
    for block in blocks:
        plain[block.region] += block.plain
    limit = max(LARGE_REGION, 4 * plain[0])
    for at, block in enumerate(blocks):
        if block.region and plain[block.region] < limit:
            kept[at] = False


def _drop_lists_of_links(blocks: list[Block], kept: list[bool]) -> None:
    """Drop lists whose items are links, with hardly a word next to them."""
    linked, size, items = Counter[int](), Counter[int](), Counter[int]()
    for at, block in enumerate(blocks):
        if kept[at] and block.outer_list:
            linked[block.outer_list] += block.linked
            size[block.outer_list] += _size(block.text)
            items[block.outer_list] += 1
    for at, block in enumerate(blocks):
        outer = block.outer_list
        plain = size[outer] - linked[outer]
        if linked[outer] >= max(1, LINK_SHARE * size[outer]) and plain < ITEM_TEXT * items[outer]:
            kept[at] = False


def _drop_lines_of_links(blocks: list[Block], kept: list[bool]) -> None:
    """Drop lines of several links, and short lines of one link, that are no title, item or cell."""
    for at, block in enumerate(blocks):
        if block.linked < max(1, LINK_SHARE * _size(block.text)):
            continue
        one = block.links == 1 and (block.tag in CELLS or len(block.text) > SHORT_LINK)
        if block.in_header or not (one or block.bullet or block.tag in _TITLES):
            kept[at] = False


def _drop_headings_of_nothing(blocks: list[Block], kept: list[bool]) -> None:
    """Drop a heading if boilerplate follows, and no content before the next heading of its
    level."""
    content, dropped = "", False  # the next kept block, and whether blocks before it are dropped
    for at in range(len(blocks) - 1, -1, -1):
        block = blocks[at]
        if kept[at] and block.tag in HEADINGS and block.tag != "h1" and dropped:
            kept[at] = content in HEADINGS and content > block.tag
        if kept[at]:
            content, dropped = block.tag, False
        else:
            dropped = True


def _size(text: str) -> int:
    """Return the number of characters without separators of links."""
    return len(_SEPARATORS.sub("", text))


def _lay_out(blocks: list[Block], kept: list[bool]) -> Iterator[str]:
    gap, row, cell = 0, 0, False
    started = False
    for at, block in enumerate(blocks):
        gap = max(gap, block.gap)
        if not kept[at]:
            continue
        is_cell = block.tag in CELLS
        if started:
            yield "\t" if is_cell and cell and block.row == row else "\n" * gap
        yield block.indentation + block.bullet + block.text
        started, gap, row, cell = True, 0, block.row, is_cell
