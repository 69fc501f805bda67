"""Limits of pages, and what blocks record."""

from __future__ import annotations

import pytest

from stages.text.sources.page_blocks import MAX_DEPTH, MAX_TAG, PageTooComplex, page_blocks

DEEP = 100_000
FLAT = 10_000


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("<div>" * DEEP + "x", "nested"),
        ("<ul><li>" * DEEP + "x" + "</li></ul>" * DEEP, "nested"),
        ("<svg>" + "<div/>" * 8 * MAX_DEPTH + "<p>x", "nested"),
        ("<x-card/>" * 8 * MAX_DEPTH + "<p>x", "nested"),
        ("<b>" * 8 * MAX_DEPTH + "<p>x", "nested"),
        ("<p " + " ".join(f"a{number}" for number in range(DEEP)) + ">x", "a tag"),
        ("<p " + " ".join(f"a{number}='>'" for number in range(DEEP)) + ">x", "a tag"),
    ],
)
def test_pages_that_take_quadratic_time_are_refused(page: str, reason: str) -> None:
    with pytest.raises(PageTooComplex, match=reason):
        page_blocks(page)


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * (MAX_DEPTH - 1) + "x" + "</div>" * (MAX_DEPTH - 1),
        "<p>x" * FLAT,
        "<ul>" + "<li>x" * FLAT + "</ul>",
        "<table>" + "<tr><td>x" * FLAT + "</table>",
        "x<br>" * FLAT,
        "<a name=1>x" * FLAT,
        "x<svg><g>" + "<path d='M 0 0'/>" * FLAT + "</g></svg>",
        f"<p>x<img src='data:image/png;base64,{'A' * 400 * MAX_TAG}'>",
        f"<script>{'if (a<b && c <div.x) {} ' * FLAT}</script>x",
        f"<p>x<!-- {'<div>' * FLAT} -->",
    ],
)
def test_large_pages_that_are_flat(page: str) -> None:
    assert {block.text[0] for block in page_blocks(page)} == {"x"}


def test_what_a_block_records() -> None:
    page = (
        "<header><a href=/>Site</a></header><nav><ul><li><a href=/1>One</a></ul></nav>"
        "<main>To <a href=/x>them</a> all<ol><li>step<p>more</ol>"
        "<table><tr><td>a<td>b</table></main>"
    )
    site, menu, line, step, more, left, right = page_blocks(page)
    assert site.in_header and site.linked == len("Site")
    assert menu.region and menu.outer_list and menu.bullet == "• "
    assert (line.text, line.links, line.linked, line.plain) == ("To them all", 1, 4, 5)
    assert line.region == site.region == line.outer_list == 0
    assert (step.bullet, step.indentation) == ("1. ", "  ")
    assert (more.bullet, more.indentation, more.tag) == ("", "    ", "p")
    assert step.outer_list == more.outer_list not in (0, menu.outer_list)
    assert left.row == right.row != 0
