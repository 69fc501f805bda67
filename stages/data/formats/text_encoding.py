"""Encodings of text from outside: one resolver for every reader of a user's bytes.

The evidence, strongest first: a byte-order mark, bytes that are valid UTF-8, a declared label as
the WHATWG Encoding Standard reads it, and the detector of Firefox (chardetng, Sivonen 2020). A text
is decoded strictly: bytes that the encoding does not explain are an error with its place, never
U+FFFD. Damage in a few places does not change the encoding, so a damaged text is not read as
another one in an encoding that accepts any byte.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

UTF8_BOM = codecs.BOM_UTF8
WINDOW = 1 << 16
"""Bytes that the detector sees, from the first one outside ASCII on."""
_BOMS = (  # UTF-32 first: its mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (UTF8_BOM, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SPELLINGS = tuple(  # of labels outside the standard, as pages carry them
    (re.compile(pattern), label)
    for pattern, label in (
        (r"utf[-_ ]*8.*", "utf-8"),
        (r"iso[-_ ]*8[58]{2}9[-_ ]*(\d+).*", r"iso-8859-\1"),
        (r"(?:x-)?(?:windows|win|cp|ansi|ibm)[-_ ]*(\d{3,4})", r"windows-\1"),
        (r"(?:x-)?(?:windows|win|cp|ansi|ibm)[-_ ]*(\d{3,4})", r"cp\1"),
        (r"koi8?[-_ ]*([ru]).*", r"koi8-\1"),
        (r"(?:x-)?gb[-_ ]*(2312|18030|k).*", r"gb\1"),
        (r"(?:x-)?s(?:hift)?[-_ ]*jis.*", "shift_jis"),
        (r"(?:x-)?euc[-_ ]*(jp|kr|cn)", r"euc_\1"),
        (r"(?:x-)?big[-_ ]*5.*", "big5"),
        (r"x-(.+)", r"\1"),
    )
)
_SUPERSETS = {  # what the standard decodes a label with, where Python has a narrower codec too
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "cp950": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-16-le",
    "utf-32": "utf-32-le",
    "utf-8-sig": "utf-8",
}
_MULTIBYTE = ("gb18030", "big5hkscs", "cp932", "euc_jp", "cp949")
_LATIN = {"cp1250", "cp1252", "cp1254", "cp1257", "cp1258"}
_NO_CHARSETS = {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined", "utf-7"}
_ESCAPE_SEQUENCE = re.compile(rb"\x1b\$[@AB()]")  # to a character set of two bytes (ISO 2022)
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_HALVES = re.compile(rb"[\x01-\x08\x0e-\x1f]")  # bytes of characters of UTF-16, not of others
_CONTROL = re.compile("[\0-\x08\x0e-\x1f\x7f-\x9f\uf8f0-\uf8f3]")  # the last: of cp932 for 0xff
_STRAY = re.compile("[\0-\x08\x0e-\x1f\x7f]")  # as exports of databases contain them
_TOUCHES_LETTER = re.compile(rb"[A-Za-z][\x80-\xff]|[\x80-\xff][A-Za-z]")
_META = re.compile(
    rb"""<meta[^>]+charset\s*=\s*["']?\s*([^\s"'/>;]+)|<\?xml[^>]+encoding\s*=\s*["']([^"']+)""",
    re.IGNORECASE,
)
_HEAD = 1024  # bytes in which a page declares its encoding, by the standard


class UndecodableText(ValueError):
    """Bytes that are text in no encoding, or damaged text.

    Attributes:
        offset: position of the first byte without meaning.
        line: number of its line, from 1.
        text: the text, such bytes as `\\xNN`.
    """

    def __init__(self, reason: str, offset: int, line: int, text: str) -> None:
        super().__init__(reason)
        self.offset = offset
        self.line = line
        self.text = text


def decode_text(data: bytes, labels: Sequence[str | None] = (), *, truncated: bool = False) -> str:
    """Return the text that bytes stand for, without its byte-order mark.

    Args:
        data: all bytes of the text.
        labels: declared charsets, most trusted first; unknown and empty ones declare nothing.
        truncated: whether the text may end within a character, which is dropped.

    Raises:
        UndecodableText: there is no encoding in which all bytes have a meaning.
    """
    with suppress(UnicodeDecodeError):
        text = data.decode()
        switches = b"\0" in data or b"\x1b" in data or (labels and b"~{" in data)
        if not text.isascii() or not switches:  # ASCII may stand for UTF-16, ISO 2022 or HZ
            return text.removeprefix("\ufeff")
    codec = find_encoding(data, labels, whole=not truncated)
    try:
        text = codecs.getincrementaldecoder(codec)().decode(data, not truncated)
    except UnicodeDecodeError as error:
        at = error.start
        reason = f"byte 0x{data[at]:02x} at {at} is not {display_name(codec)}"
        line = data.count(b"\n", 0, at) + 1
        text = data.decode(codec, "backslashreplace")
        raise UndecodableText(reason, at, line, text) from error
    return text.removeprefix("\ufeff")


def find_encoding(sample: bytes, labels: Sequence[str | None] = (), *, whole: bool = True) -> str:
    """Return the Python codec of a text; UTF-8 if no encoding fits.

    Args:
        sample: its bytes, or its beginning.
        labels: declared charsets, most trusted first.
        whole: whether the sample is the whole text; else it may end within a character.
    """
    return leading_encoding(sample) or inner_encoding(sample, labels, whole=whole)


def inner_encoding(sample: bytes, labels: Sequence[str | None] = (), *, whole: bool = True) -> str:
    """Return the same for bytes from the middle of a text, which begin with no mark."""
    declared = [codec for label in labels if (codec := codec_of(label or ""))]
    if codec := _seven_bit_encoding(sample, declared, whole):
        return codec
    if _decodes(sample, "utf-8", whole) or _is_damaged_utf8(sample, "utf-8" in declared):
        return "utf-8"
    for codec in declared:
        if _decodes(sample, codec, whole):
            found = _detect(sample, whole) if codec == "cp1252" else codec  # the default of servers
            return codec if found in _LATIN or not _decodes(sample, found, whole) else found
        if codec in _MULTIBYTE and _repaired(sample, codec) is not None:
            return codec
    return _detect(sample, whole)


def leading_encoding(sample: bytes) -> str:
    """Return the encoding that a byte-order mark or NUL bytes show; empty if neither does."""
    return next((codec for mark, codec in _BOMS if sample.startswith(mark)), "") or (
        _wide_encoding(sample)
    )


@lru_cache(4096)
def codec_of(label: str) -> str:
    """Return the Python codec for a charset label, such as pages declare; empty if it names none.

    The labels are those of the WHATWG Encoding Standard (section 4.2), of Python, and common
    misspellings of both.
    """
    from resiliparse.parse.encoding import map_encoding_to_html5

    label = label.strip("\"'`<>()[]{}\\=:;,. \t\r\n").lower()
    label = re.split("[,;]", label.removeprefix("charset=").strip("\"' "))[0].strip("\"' ")
    spelled = (pattern.sub(form, label) for pattern, form in _SPELLINGS if pattern.fullmatch(label))
    for name in (label, *spelled):
        found = map_encoding_to_html5(name, fallback_utf8=False) if name else None
        with suppress(LookupError, ValueError):  # a NUL in the label is a ValueError
            codec = codecs.lookup(found or name)
            if codec._is_text_encoding and codec.name not in _NO_CHARSETS:
                return _SUPERSETS.get(codec.name, codec.name)
    return ""


def display_name(codec: str) -> str:
    """Return the name of a codec for messages."""
    return codec.upper().replace("_", "-")


def declared_charset(page: bytes) -> str:
    """Return the label in the head of an HTML or XML page; empty if it declares none."""
    found = _META.search(page, 0, _HEAD)
    return (found[1] or found[2]).decode("ascii", "ignore") if found else ""


def _wide_encoding(sample: bytes) -> str:
    """Return UTF-16 or UTF-32 for a text without byte-order mark that can only be that: half of
    its bytes are NUL if it is Latin; of other scripts, those of spaces and line ends."""
    nuls = sample.count(b"\0")
    few = 4 * nuls < len(sample)
    if not nuls or (few and _decodes(sample, "utf-8", False)) or _is_damaged_utf8(sample, False):
        return ""
    if few and 100 * len(_HALVES.findall(sample)) < len(sample):
        return ""  # NULs within a text of single bytes
    little = sample[1::2].count(b"\0") > nuls // 2
    for codec in ("utf-32-le", "utf-32-be", "utf-16-le" if little else "utf-16-be"):
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(codec)().decode(sample)
            if text and not _CONTROL.search(text):
                return codec
    return ""


def _seven_bit_encoding(sample: bytes, declared: Sequence[str], whole: bool) -> str:
    """Return the encoding of a text whose bytes are ASCII, but which switches character sets."""
    candidates = [codec for codec in declared if codec.startswith(("iso2022", "hz"))]
    escaped = _ESCAPE_SEQUENCE.search(sample) is not None
    if not sample.isascii() or not (candidates or escaped):
        return ""
    if escaped:
        candidates += ["iso2022_jp_2", "iso2022_kr"]
    found = (codec for codec in candidates if _decodes(sample, codec, whole))
    return next(found, candidates[0] if escaped else "")


def _decodes(sample: bytes, codec: str, whole: bool = True) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(sample, whole)
    except UnicodeDecodeError:
        return False
    return True


def _is_damaged_utf8(sample: bytes, declared: bool) -> bool:
    """Return whether nearly all bytes outside ASCII are in characters of UTF-8, or most if UTF-8 is
    declared. In a text in another encoding, up to two thirds are by chance (EUC-JP). So it is if
    nearly all lines outside ASCII are valid: the damage is in one place, however large."""
    outside = sum(len(run) for run in re.findall(rb"[\x80-\xff]+", sample))
    valid = len(re.sub("[\0-\x7f]+", "", sample.decode("utf-8", "ignore")).encode())
    if valid >= 6 and valid >= (2 if declared else 9) * (outside - valid):
        return True
    lines = [line for line in sample.split(b"\n") if not line.isascii()]
    return len(lines) >= 4 and 4 * sum(_decodes(line, "utf-8") for line in lines) >= 3 * len(lines)


def _detect(sample: bytes, whole: bool) -> str:
    """Return the most likely encoding of a text that is not UTF-8; UTF-8 if it is no text."""
    first = _NOT_ASCII.search(sample)
    start = max(0, first.start() - 1) if first else 0
    window = sample[start : start + WINDOW]
    codec = _guess(window, whole and start + WINDOW >= len(sample))
    binary = _is_binary(window.decode(codec, "ignore"))
    if codec in _MULTIBYTE and not binary:
        return codec
    # The detector excludes an encoding at the first byte that has no meaning in it.
    third = len(window) // 3
    thirds = [_guess(window[at : at + third]) for at in (0, third, 2 * third)]
    for damaged in dict.fromkeys((*_MULTIBYTE, *thirds)):
        repaired = _repaired(window, damaged)
        likely = damaged in _MULTIBYTE and damaged in thirds
        if repaired not in (None, window) and (likely or _guess(repaired or b"") == damaged):
            return damaged
    return "utf-8" if binary else codec


def _is_binary(text: str) -> bool:
    """Return whether a text has characters that texts lack, but for a few stray controls."""
    stray = len(_STRAY.findall(text))
    return stray > max(1, len(text) // 100) or _CONTROL.search(_STRAY.sub("", text)) is not None


def _guess(window: bytes, whole: bool = False) -> str:
    from chardetng_py import EncodingDetector

    detector = EncodingDetector()
    detector.feed(window, last=whole)
    codec = codec_of(detector.guess(tld=None, allow_utf8=False))
    latin = codec in _LATIN or codec in ("iso8859-2", "iso8859-4")
    if latin and not _TOUCHES_LETTER.search(window) and _decodes(window, "cp1252"):
        return "cp1252"  # signs such as that of the pound, which are letters of Polish
    return codec


def _repaired(sample: bytes, codec: str) -> bytes | None:
    """Return a text without the bytes that an encoding does not explain; None if there are more
    than damage in a few places leaves."""
    kept = sample.decode(codec, "ignore").encode(codec, "ignore")
    outside = sum(len(run) for run in re.findall(rb"[\x80-\xff]+", sample))
    limit = max(min(2, outside // 20), outside // 50)
    return kept if len(sample) - len(kept) <= limit else None
