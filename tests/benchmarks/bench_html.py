"""Extraction of the main content against Trafilatura and Resiliparse: recall, leakage and speed.

    python tests/benchmarks/bench_html.py [--pages GLOB] [--repeats N]

Recall of content and leakage of boilerplate are fractions of characters on the marked pages of
`tests/golden/pages/`. Speed is measured on the files of GLOB (default: the marked pages), decoded
before, in CPU seconds of one process; the extractors take turns. Peers that are not installed are
left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.text.sources.main_content import extract_main_content

sys.path.append(str(Path(__file__).parents[1] / "support"))
from marked_pages import MarkedPage, marked_pages, rates

Extract = Callable[[str], str]


def extractors() -> dict[str, Extract]:
    """Ours and the installed peers; datatrove's settings are those of its Trafilatura step,
    without its memory of paragraphs of earlier pages."""
    found: dict[str, Extract] = {"ours": extract_main_content}
    try:
        from resiliparse.extract.html2text import extract_plain_text

        found["resiliparse"] = lambda page: extract_plain_text(
            page, main_content=True, alt_texts=False
        )
        found["resiliparse, whole page"] = lambda page: extract_plain_text(page, alt_texts=False)
    except ImportError:
        print("resiliparse is not installed")
    try:
        import trafilatura

        datatrove = {"favor_precision": True, "include_comments": False}
        found["trafilatura"] = lambda page: trafilatura.extract(page) or ""
        found["trafilatura, recall"] = lambda page: (
            trafilatura.extract(page, favor_recall=True) or ""
        )
        found["trafilatura, datatrove"] = lambda page: trafilatura.extract(page, **datatrove) or ""
    except ImportError:
        print("trafilatura is not installed")
    return found


def print_rates(pages: Sequence[MarkedPage], found: dict[str, Extract]) -> None:
    """Print recall and leakage per kind and extractor."""
    kinds = sorted({page.kind for page in pages})
    print(f"{'recall / leakage':24s}", *(f"{name:>24s}" for name in found))
    for kind in (*kinds, "all"):
        chosen = [page for page in pages if kind in (page.kind, "all")]
        measured = (rates(chosen, extract) for extract in found.values())
        cells = (f"{recall:16.3f} / {leakage:.3f}" for recall, leakage in measured)
        print(f"{kind:24s}", *(f"{cell:>24s}" for cell in cells))


def print_speed(pages: Sequence[str], found: dict[str, Extract], repeats: int) -> None:
    """Print pages and megabytes per CPU second, medians."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for extract in found.values():
        extract(pages[0])  # imports and tables
    for _ in range(repeats):
        for name, extract in found.items():
            started = time.process_time()
            for page in pages:
                extract(page)
            seconds[name].append(time.process_time() - started)
    size = sum(len(page.encode("utf-8", "replace")) for page in pages) / 1e6
    print(f"{len(pages)} pages, {size:.2f} MB")
    for name, spent in seconds.items():
        took = statistics.median(spent)
        ratio = took / statistics.median(seconds["ours"])
        print(f"{name:24s} {len(pages) / took:9.1f} pages/s {size / took:7.2f} MB/s", end=" ")
        print(f"{ratio:6.2f} times our seconds")


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--pages")
    asked.add_argument("--repeats", type=int, default=5)
    options = asked.parse_args()
    marked, found = marked_pages(), extractors()
    print_rates(marked, found)
    paths = sorted(Path("/").glob(options.pages.lstrip("/"))) if options.pages else []
    pages = [path.read_text("utf-8", "replace") for path in paths]
    print_speed(pages or [page.html for page in marked], found, options.repeats)


if __name__ == "__main__":
    main()
