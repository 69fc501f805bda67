"""HTML to blocks: runs of text between the borders of block elements, in the order of the page.

A block keeps what the choice of the main content needs (characters inside links, the outermost
list, the region that markup calls navigation, footer or advertisement) and what its layout needs
(bullets, indentation, cells of a row). The tree comes from Lexbor (selectolax), which repairs
malformed HTML as browsers do. It is walked once, without recursion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

MAX_DEPTH = 1024
"""Maximum number of open elements; browsers stop at 512."""
MAX_TAG = 4096
"""Maximum size of a tag without its quoted values, characters."""


def _tags(names: str) -> frozenset[str]:
    return frozenset(names.split())


HEADINGS = _tags("h1 h2 h3 h4 h5 h6")
LISTS = _tags("ul ol dl menu dir")
CELLS = _tags("td th")
_SPACED = HEADINGS | LISTS | _tags("p pre blockquote table hr listing xmp")
_BLOCKS = (
    _SPACED
    | CELLS
    | _tags(
        "address article aside body caption center dd details dialog div dt fieldset figcaption "
        "footer form header hgroup li main nav search section summary tbody tfoot thead tr"
    )
)
_TRANSPARENT = _tags("center tbody hgroup")
_BULLETED = _tags("ul ol menu dir")
_PREFORMATTED = _tags("pre listing xmp")
_SKIPPED = _tags(
    "area audio button canvas datalist embed head iframe input label legend link map meta noembed "
    "noframes noscript object option rp rt script select style svg template textarea title video"
)
_PLAIN = _tags("b i em strong u s code tt font small big sub sup kbd samp var q cite mark")
_INLINE = _tags("a span")
_CONTENT = _tags("main article section")
_WRAPPERS = _tags("html body main article")
_REGION_ROLES = _tags(
    "alert banner complementary contentinfo dialog menu menubar navigation search toolbar"
)

_REGION_NAMES = (
    r"nav(?:s|bar|bars|box|igation|i)?|menus?|mega ?menu|sub ?menu|top ?bar|tool ?bar|"
    r"bread ?crumbs?|pagination|pager|paging|jump ?box|link ?list|site ?map|skip|skip ?links?|"
    r"footer|colophon|copyright|cat ?links|page ?tools|search ?(?:bar|box|form|field)|feedback|"
    r"side ?bars?|widget ?areas?|blog ?roll|related|recommend(?:ed|ations?)?|see ?also|"
    r"most ?read|popular|trending|ads?|adverts?|advertisements?|advertising|sponsor(?:ed|s)?|"
    r"promo(?:ted|tion)?|banner|share|sharing|share ?daddy|social|social ?media|"
    r"cookies?|cookie ?(?:bar|banner)|consent|gdpr|modal|popup|lightbox|dropdown|newsletter|"
    r"subscribe|subscription|sign ?up|log ?in|post ?profile|user ?info|header ?link|"
    r"edit ?section|screen ?reader|sr only|visually ?hidden"
)
_REGION = re.compile(rf" (?:{_REGION_NAMES}) ")
_DESCRIPTIVE = re.compile(r"\b(?:category|tag|has|no|with|without|not)[-_]\S+")
"""Classes that say what a page or post is about or contains."""
_HIDDEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_BORDER = re.compile(r"[\s_-]+|(?<=[a-z])(?=[A-Z])")
_SPACE = re.compile(r"[ \t\n\r\f]+")
_ANCHOR_MARK = re.compile(r"[¶§#🔗\ue000-\uf8ff]")

_TAG = re.compile(
    r"<(?:(script|style|textarea|title|xmp)\b.*?(?:</\1|\Z)|!--.*?(?:-->|\Z)"
    r"|(/?)([a-z][^\s/>]*)([^>\"']*+(?:\"[^\"]*\"[^>\"']*+|'[^']*'[^>\"']*+)*+))",
    re.IGNORECASE | re.DOTALL,
)
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_FOREIGN = _tags("svg math")
_ENDS_FOREIGN = _BLOCKS | _PLAIN | _tags("a span ruby nobr foreignobject desc title")
_NOT_NESTED = _tags(  # void elements, and those that the next one closes
    "a nobr area base br col embed hr img input link meta source track wbr p li dt dd option "
    "optgroup tr td th thead tbody tfoot colgroup rp rt body html head"
)


class PageTooComplex(ValueError):
    """Page that no parser reads in linear time: nested too deeply, or a tag of many attributes."""


@dataclass(slots=True)
class Block:
    """Run of text between two borders of block elements."""

    text: str
    tag: str
    """Nearest block element."""
    links: int
    """Number of links."""
    linked: int
    """Number of characters inside links, without spaces."""
    outer_list: int
    """Number of the outermost list around the block; 0 outside lists."""
    region: int
    """Number of the innermost region of boilerplate around the block; 0 outside regions."""
    in_header: bool
    """A page header, outside the main content."""
    gap: int
    """Number of line breaks before the block."""
    row: int
    """Number of the table row; 0 outside tables."""
    indentation: str
    bullet: str
    """Bullet or number of a list item, on its first block."""

    @property
    def plain(self) -> int:
        """Number of characters outside links, without spaces."""
        return max(0, len(self.text) - self.text.count(" ") - self.linked)


def check_complexity(html: str) -> None:
    """Refuse a page for which parsers need quadratic time.

    Raises:
        PageTooComplex: more than `MAX_DEPTH` open elements, or a tag beyond `MAX_TAG`.
    """
    if html.count("<") < 4 * MAX_DEPTH and len(html) < 16 * MAX_TAG:
        return  # quadratic time is short
    depth, foreign = 0, False  # in SVG or MathML, where a slash at the end closes
    for tag in _TAG.finditer(html):
        raw, closing, name, attributes = tag.groups()
        if raw or not name:
            continue
        if len(attributes) > MAX_TAG and len(_QUOTED.sub("", attributes)) > MAX_TAG:
            raise PageTooComplex(f"a tag has attributes of more than {MAX_TAG:,} characters")
        name, closed = name.lower(), attributes.endswith("/")
        if name in _FOREIGN:
            foreign = not closing and not closed
        elif name in _ENDS_FOREIGN:
            foreign, closed = False, False
        if name not in _NOT_NESTED and not (closed and (foreign or name in _FOREIGN)):
            depth = max(0, depth - 1) if closing else depth + 1
            if depth > MAX_DEPTH:
                raise PageTooComplex(f"elements are nested more than {MAX_DEPTH:,} deep")


def page_blocks(html: str) -> list[Block]:
    """Return the blocks of a page, in order.

    Raises:
        PageTooComplex: see `check_complexity`.
    """
    from selectolax.lexbor import LexborHTMLParser

    check_complexity(html)
    body = LexborHTMLParser(html).body
    return _BlockReader().read(body) if body is not None else []


class _Context(NamedTuple):
    """Place of the open block element."""

    tag: str = "body"
    list_depth: int = 0
    outer_list: int = 0
    region: int = 0
    in_header: bool = False
    in_content: bool = False
    row: int = 0


class _BlockReader:
    """Reader of one page: the open elements, and the block that is being read."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open = [_Context()]
        self._counters: list[int | None] = []  # of items in open lists; None: not numbered
        self._numbers = count(1)  # of lists, regions and rows
        self._bullet = ""
        self._gap = 0
        self._preformatted = self._in_link = 0
        self._start_block()

    def _start_block(self) -> None:
        self._parts: list[str] = []
        self._links = self._linked = 0
        self._after_space = True

    def read(self, body: Any) -> list[Block]:
        """Return the blocks below an element."""
        node, root = body, body.mem_id
        while True:
            entered = self._enter(node)
            child = node.child if entered else None
            if child is None and entered:
                self._leave(node)
            while child is None:
                if node.mem_id == root:
                    return self.blocks
                child = node.next
                if child is None:
                    node = node.parent
                    self._leave(node)
            node = child

    def _enter(self, node: Any) -> bool:
        """Return True if the children of a node belong to the text."""
        tag = node.tag
        if tag == "-text":
            self._add_text(node.text_content or "")
            return False
        if tag == "br":
            self._parts.append("\n")
            self._after_space = True
            return False
        if tag in _SKIPPED or tag[0] == "-":
            return False
        if tag in _PLAIN:
            return True
        attributes = node.attributes
        if attributes and tag != "body" and _is_hidden(attributes):  # scripts show the body
            return False
        if tag in _BLOCKS:
            self._open_block(tag, attributes)
        elif attributes and tag in _INLINE and _has_region_name(attributes):
            return False
        elif tag == "a":
            self._in_link += 1
            self._links += 1
        return True

    def _leave(self, node: Any) -> None:
        tag = node.tag
        if tag == "a":
            self._in_link -= 1
        elif tag in _BLOCKS:
            self._end_block()
            if tag in LISTS:
                self._counters.pop()
            self._preformatted -= tag in _PREFORMATTED
            self._open.pop()
            self._widen_gap(tag)

    def _add_text(self, text: str) -> None:
        if not self._preformatted:
            if self._after_space and text.isspace() and text.isascii():
                return
            text = _SPACE.sub(" ", text)
            if self._after_space:
                text = text.lstrip(" ")
        bare = text.strip()
        if len(bare) == 1 and (self._in_link or bare > "\ud7ff") and _ANCHOR_MARK.match(bare):
            return  # a link to the heading itself, or a sign of an icon font
        if text:
            self._parts.append(text)
            self._after_space = text[-1] == " "
            if self._in_link:
                self._linked += len(bare) - bare.count(" ")

    def _open_block(self, tag: str, attributes: dict[str, str | None]) -> None:
        self._end_block()
        self._widen_gap(tag)
        at = self._open[-1]
        is_region = _is_region(tag, attributes, at)
        if tag in LISTS:
            numbered = tag == "ol"
            self._counters.append(_integer(attributes.get("start"), 1) - 1 if numbered else None)
        elif tag == "li":
            self._bullet = self._next_bullet(attributes.get("value"))
        self._preformatted += tag in _PREFORMATTED
        self._open.append(
            _Context(
                tag=at.tag if tag in _TRANSPARENT else tag,
                list_depth=at.list_depth + (tag in _BULLETED),
                outer_list=at.outer_list or (next(self._numbers) if tag in LISTS else 0),
                region=next(self._numbers) if is_region else at.region,
                in_header=at.in_header or (tag == "header" and not at.in_content),
                in_content=at.in_content or tag in _CONTENT or attributes.get("role") == "main",
                row=next(self._numbers) if tag == "tr" else at.row,
            )
        )

    def _next_bullet(self, value: str | None) -> str:
        number = self._counters[-1] if self._counters else None
        if number is None:
            return "• "
        self._counters[-1] = number = _integer(value, number + 1)
        return f"{number}. "

    def _widen_gap(self, tag: str) -> None:
        at = self._open[-1]
        inside = at.list_depth or at.row
        self._gap = max(self._gap, 2 if tag in _SPACED and not inside else 1)

    def _end_block(self) -> None:
        text = "".join(self._parts)
        text = text.strip("\n").rstrip() if self._preformatted else text.strip()
        if text:
            at = self._open[-1]
            deeper = at.list_depth + (not self._bullet) if at.list_depth else 0
            links = max(self._links, int(self._linked > 0))
            self.blocks.append(
                Block(
                    text=text,
                    tag=at.tag,
                    links=links,
                    linked=self._linked,
                    outer_list=at.outer_list,
                    region=at.region,
                    in_header=at.in_header,
                    gap=self._gap,
                    row=at.row,
                    indentation="" if self._preformatted else "  " * deeper,
                    bullet=self._bullet,
                )
            )
            self._gap, self._bullet = 0, ""
        self._start_block()


def _integer(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else default


def _is_hidden(attributes: dict[str, str | None]) -> bool:
    if attributes.get("hidden", "until-found") != "until-found":
        return True
    style = attributes.get("style")
    return attributes.get("aria-hidden") == "true" or bool(style and _HIDDEN.search(style))


def _is_region(tag: str, attributes: dict[str, str | None], at: _Context) -> bool:
    """Return True for an element whose name, role or class calls it navigation, footer,
    advertisement or the like."""
    if tag in _WRAPPERS:
        return False
    if tag in ("nav", "search", "dialog"):
        return True
    if tag == "footer":
        return at.tag != "blockquote"
    role = attributes.get("role") or ""
    if tag == "aside" or role == "complementary":
        return not at.in_content or _has_region_name(attributes)
    return role.lower() in _REGION_ROLES or _has_region_name(attributes)


def _has_region_name(attributes: dict[str, str | None]) -> bool:
    return _is_region_name(attributes.get("class") or "", attributes.get("id") or "")


@lru_cache(maxsize=8192)
def _is_region_name(classes: str, identifier: str) -> bool:
    names = _DESCRIPTIVE.sub(" ", f"{classes} {identifier}"[:512])
    return bool(_REGION.search(f" {_BORDER.sub(' ', names).lower()} "))
