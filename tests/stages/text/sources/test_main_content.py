"""Main content of pages: fifty marked pages of ten kinds, layout of the text, odd markup.

`docs/benchmarks.md` compares the rates with other extractors.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marked_pages import leaked, marked_pages, missing, rates, squeeze

from stages.text.sources.main_content import extract_main_content

PAGES = marked_pages()
KINDS = sorted({page.kind for page in PAGES})
LEAKAGE = {
    "article": 0.07,
    "forum": 0.14,
    "glossary": 0.1,
    "list": 0.15,
    "news": 0.1,
    "table": 0.08,
}
"""Maximum fraction of boilerplate per kind; 0 for the other kinds."""


def text_of(body: str) -> str:
    """The text of a page with one more paragraph, so that it has content."""
    text = extract_main_content(f"<html><body>{body}<p>And the last words.</p></body></html>")
    assert text.endswith("And the last words.")
    return text.removesuffix("And the last words.").rstrip()


@pytest.mark.parametrize("kind", KINDS)
def test_content_stays_and_boilerplate_goes(kind: str) -> None:
    pages = [page for page in PAGES if page.kind == kind]
    assert {page.name: missing(page, extract_main_content(page.html)) for page in pages} == {
        page.name: [] for page in pages
    }
    recall, leakage = rates(pages, extract_main_content)
    assert recall == 1
    assert leakage <= LEAKAGE.get(kind, 0)


def test_the_pages_are_fifty_of_ten_kinds_and_their_marks_are_unambiguous() -> None:
    assert Counter(page.kind for page in PAGES) == dict.fromkeys(KINDS, 5)
    assert len(KINDS) == 10
    for page in PAGES:
        assert page.content and page.boilerplate
        content = squeeze("".join(page.content))
        assert not [piece for piece in page.boilerplate if squeeze(piece) in content]


def test_a_broken_extractor_is_seen_in_the_rates() -> None:
    assert rates(PAGES, lambda html: "") == (0, 0)
    without_lists = [page.html.replace("<ul", "<ul hidden") for page in PAGES]
    changed = dict(zip((page.html for page in PAGES), without_lists, strict=True))
    recall, _ = rates(PAGES, lambda html: extract_main_content(changed[html]))
    assert recall < 0.9
    assert any(leaked(page, page.html) for page in PAGES)


def test_items_of_nested_lists_keep_their_level_and_numbers() -> None:
    page = (
        "<ul><li>first<ul><li>inner<ol start=3><li>three<li value=7>seven<li>eight</ol></ul>"
        "<li><p>second</p><p>goes on</p></ul>"
    )
    assert text_of(page).splitlines() == [
        "  • first",
        "    • inner",
        "      3. three",
        "      7. seven",
        "      8. eight",
        "  • second",
        "    goes on",
    ]


@pytest.mark.parametrize("depth", range(6))
def test_a_list_of_prose_stays_at_every_depth(depth: int) -> None:
    """Libraries take a list next to the body for navigation."""
    items = "<ul><li>Bring a coat.</li><li>Bring a friend.</li></ul>"
    page = "<div>" * depth + "<p>To all:</p>" + items + "</div>" * depth
    assert text_of(page) == "To all:\n\n  • Bring a coat.\n  • Bring a friend."


def test_rows_are_lines_and_cells_are_separated_by_tabs() -> None:
    rows = "<tr><th>x<th>y<tr><td>1<td><a href=/2>2</a><tr><td>3<td>4<br>5"
    assert text_of(f"<table><caption>Values</caption>{rows}</table>") == "\n".join(
        ["Values", "x\ty", "1\t2", "3\t4", "5"]
    )


def test_terms_and_definitions_are_lines() -> None:
    assert text_of("<dl><dt>Luff<dt>Leech<dd>Edges of a sail.</dl>") == (
        "Luff\nLeech\nEdges of a sail."
    )


def test_code_keeps_its_white_space() -> None:
    code = "def area(w, h):\n\tif not w:\n\t    return 0\n\n\n    return w  *  h"
    for page in (f"<pre>\n{code}\n</pre>", f"<ul><li>See<pre><code>{code}</code></pre></ul>"):
        assert code in text_of(page)
    assert text_of("<p>Call <code>a   b</code>\n now.") == "Call a b now."


def test_links_in_prose_headings_and_character_references() -> None:
    page = (
        "<h2>Tea <a class=headerlink href=#tea>¶</a></h2><p>Boil&nbsp;water, see <a href=/k>the "
        "kettle</a>,\n  &amp; pour&#8230; &lt;slowly&gt;.<p>It is <b>h</b>ot<br>and <i>strong</i>."
    )
    assert text_of(page) == (
        "Tea\n\nBoil\xa0water, see the kettle, & pour… <slowly>.\n\nIt is hot\nand strong."
    )


@pytest.mark.parametrize(
    "markup",
    [
        "<script>if (a<b) { x('<p>no</p>') }</script>",
        "<style>p{}</style>",
        "<noscript>Please enable scripts</noscript>",
        "<template><p>row</p></template>",
        "<p hidden>secret</p>",
        "<div style='color: red; DISPLAY : none'>secret</div>",
        "<div aria-hidden=true>×</div>",
        "<select><option>red<option>blue</select><button>Send</button>",
        "<!-- <p>comment</p> -->",
        "<svg><text>logo</text></svg><canvas>none</canvas>",
        "<p><a href=/1>One</a> | <a href=/2>Two</a></p>",
        "<h3>See as well</h3><ul><li><a href=/1>One</a><li><a href=/2>Two</a></ul>",
    ],
)
def test_markup_without_content(markup: str) -> None:
    assert text_of(markup) == ""


@pytest.mark.parametrize(
    "attributes",
    [
        "class='elementor-widget elementor-widget-text-editor'",
        "class='post category-social-media tag-ads'",
        "class='has-sidebar no-menu'",
        "class='navy shared headline'",
        "id=legend",
    ],
)
def test_class_names_that_only_look_like_navigation(attributes: str) -> None:
    assert text_of(f"<div {attributes}>Kept in full.</div>") == "Kept in full."


def test_a_class_name_never_takes_the_whole_page() -> None:
    """Wrappers around everything are often called after the sidebar that they contain."""
    prose = "".join(f"<p>Sentence {number} of a long page.</p>" for number in range(20))
    page = f"<div class='sidebar layout'>{prose}<div class=footer>Company, city</div></div>"
    found = extract_main_content(page)
    assert found.count("Sentence") == 20
    assert "Company" not in found


@given(st.integers(0, len(PAGES) - 1), st.data())
def test_any_damage_leaves_a_text(at: int, data: st.DataObject) -> None:
    html = PAGES[at].html
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(html))] * 2)))
    damaged = html[:start] + data.draw(st.text("<>/\"'=&; \x00ab\ud800漢")) + html[end:]
    assert extract_main_content(damaged) == extract_main_content(damaged)


def test_a_body_that_a_script_shows_is_read() -> None:
    hidden = "<body style='visibility: hidden' aria-hidden=true><p>Shown by a script.</p></body>"
    assert extract_main_content(f"<html>{hidden}</html>") == "Shown by a script."
