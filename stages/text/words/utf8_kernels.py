"""Words and lines in a text's UTF-8, compiled: their bounds, how marks are split off plain words,
and all features of ASCII words."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.text.numba_kernels import inline_kernel, kernel
from stages.text.words.word_borders import UNSPACED_RANGES

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_SPACES = (0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
MAX_HASHED = 128  # bytes of a word; xxh3 uses another algorithm for longer input
_WINDOW = 8  # characters: the longest word that `split_word` keeps whole by a list
_LINE_FEED, _HYPHEN, _FULL_STOP, _ZERO, _BRACKET = b"\n-.0["
_BULLET = ord("•")
_LINE_BREAKS = (10, 11, 12, 13, 28, 29, 30, 0x85, 0x2028, 0x2029)  # as `str.splitlines`

_LOWER, _UPPER, _DIGIT, _MARK, _OPENING, _CLOSING, _WIDE = (1 << bit for bit in range(7))
_LETTER, _ALNUM = _LOWER | _UPPER, _LOWER | _UPPER | _DIGIT
_KINDS = np.array(
    [
        _LOWER * (97 <= byte <= 122)
        | _UPPER * (65 <= byte <= 90)
        | _DIGIT * (48 <= byte <= 57)
        | _MARK * (byte < 128 and not chr(byte).isalnum())
        | _OPENING * (byte in b"([{\"'")
        | _CLOSING * (byte in b")]}\"',;:!?.")
        | _WIDE * (byte >= 128)
        for byte in range(256)
    ],
    np.uint8,
)
"""Classes of a byte of UTF-8, as bits."""
_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    ),
    "<u8",
)
"""The beginning of the secret of xxh3."""


def utf8(text: str) -> bytes:
    """Encode a text as the kernels read it: lone surrogates pass."""
    return text.encode("utf-8", "surrogatepass")


def as_array(data: bytes) -> Bytes:
    """Return the same bytes as an array, shape (B,)."""
    return np.frombuffer(data, np.uint8)


@inline_kernel
def _code_point(data: Bytes, at: int) -> tuple[np.int64, int]:
    """Return the character that begins at a byte, and its size in bytes."""
    lead = np.int64(data[at])
    if lead < 0x80:
        return lead, 1
    size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    point = lead & (0x7F >> size)
    for k in range(1, size):
        point = point << 6 | data[at + k] & 0x3F
    return point, size


@inline_kernel
def _is_space(point: np.int64) -> bool:
    """Return the same as `str.isspace`."""
    if point < 0x80:
        return bool(point == 32 or 9 <= point <= 13 or 28 <= point <= 31)
    return bool(0x2000 <= point <= 0x200A or point in _SPACES)


@inline_kernel
def _is_unspaced(point: np.int64) -> bool:
    if point >= 0x0E00:
        for first, last in UNSPACED_RANGES:
            if first <= point <= last:
                return True
    return False


@kernel("Tuple((int64[::1], int64[::1]))(Array(uint8, 1, 'C', readonly=True))")
def word_bounds(data: Bytes) -> tuple[Places, Places]:
    """Return the starts and stops of words in a text's UTF-8, shape (N,) each: runs between white
    space, and each character of a script that is written without spaces."""
    starts = np.empty(len(data) // 2 + 1, np.int64)
    stops = np.empty_like(starts)
    count = at = 0
    inside = False
    while at < len(data):
        point, size = _code_point(data, at)
        alone = _is_unspaced(point)
        ends = alone or _is_space(point)
        if inside and ends:
            stops[count] = at
            count += 1
        if alone or not (inside or ends):
            starts[count] = at
        if alone:
            stops[count] = at + size
            count += 1
        inside = not ends
        at += size
    if inside:
        stops[count] = at
        count += 1
    return starts[:count].copy(), stops[:count].copy()


@inline_kernel
def _has_end_mark(data: Bytes, start: int, stop: int, end_marks: Bytes) -> bool:
    """Return whether a line ends with one of the marks, but not with an ellipsis."""
    dots = 0
    while dots < 3 and start < stop - dots and data[stop - dots - 1] == _FULL_STOP:
        dots += 1
    if dots < 3 and start < stop:
        for mark in end_marks:
            if data[stop - 1] == mark:
                return True
    return False


@kernel("int64(Array(uint8, 1, 'C', readonly=True))")
def bullet_lines(data: Bytes) -> int:
    """Count the lines that begin with a bullet or a hyphen after white space."""
    count = at = 0
    indented = True
    while at < len(data):
        point, size = _code_point(data, at)
        count += indented and point in (_HYPHEN, _BULLET)
        indented = point == _LINE_FEED or (indented and _is_space(point))
        at += size
    return count


@kernel(
    "Tuple((int64[::1], int64[::1]))"
    "(Array(uint8, 1, 'C', readonly=True), Array(uint8, 1, 'C', readonly=True), int64, int64)"
)
def c4_lines(
    data: Bytes, end_marks: Bytes, min_words: int, longest_word: int
) -> tuple[Places, Places]:
    """Return the starts and stops, without white space around them, of lines that C4 may keep:
    those with an end mark and enough words, and any with a bracket, which may be a citation."""
    starts = np.empty(len(data) // 2 + 1, np.int64)
    stops = np.empty_like(starts)
    count = at = words = word = longest = stop = 0
    start = -1
    bracket = False
    while at <= len(data):
        point, size = _code_point(data, at) if at < len(data) else (np.int64(_LINE_FEED), 1)
        if not _is_space(point):
            start = at if start < 0 else start
            words += word == 0
            word += 1
            longest = max(longest, word)
            bracket |= point == _BRACKET
            stop = at + size
        else:
            word = 0
        if point in _LINE_BREAKS:
            kept = bracket or (words >= min_words and _has_end_mark(data, start, stop, end_marks))
            if start >= 0 and longest <= longest_word and kept:
                starts[count], stops[count] = start, stop
                count += 1
            start, words, longest, bracket = -1, 0, 0, False
        at += size
    return starts[:count].copy(), stops[:count].copy()


@inline_kernel
def _kinds(data: Bytes, start: int, stop: int) -> int:
    """Return the classes that occur among the bytes."""
    kinds = 0
    for at in range(start, stop):
        kinds |= _KINDS[data[at]]
    return kinds


@inline_kernel
def _marks(data: Bytes, start: int, stop: int) -> tuple[int, int]:
    """Count the marks that `split_word` splits off the front and the back of a plain word, which
    has ASCII letters alone or digits alone between them. Return -1 for any other word."""
    if stop - start == 1:
        return 0, 0
    front = (_KINDS[data[start]] & _OPENING) // _OPENING
    back = (_KINDS[data[stop - 1]] & _CLOSING) // _CLOSING
    start, stop = start + front, stop - back
    kinds = _kinds(data, start, stop)
    if kinds != _DIGIT and (kinds == 0 or kinds & ~_LETTER):
        return -1, -1
    abbreviated = stop - start < _WINDOW or not _KINDS[data[stop - 1]] & _LOWER
    if kinds != _DIGIT and back and data[stop] == _FULL_STOP and abbreviated:
        return -1, -1
    return front, back


@kernel("int64[::1](Array(uint8, 1, 'C', readonly=True), int64[::1], int64[::1])")
def words_to_split(data: Bytes, starts: Places, stops: Places) -> Places:
    """Return the words that are not plain, for `split_word`."""
    found = np.empty(len(starts), np.int64)
    count = 0
    for k in range(len(starts)):
        found[count] = k
        count += _marks(data, starts[k], stops[k])[0] < 0
    return found[:count].copy()


@kernel(
    "Tuple((int64[::1], int64[::1]))"
    "(Array(uint8, 1, 'C', readonly=True), int64[::1], int64[::1], int64[::1])"
)
def token_bounds(
    data: Bytes, starts: Places, stops: Places, sizes: Places
) -> tuple[Places, Places]:
    """Return the starts and stops of tokens, shape (T,) each; `sizes` are the bytes of the tokens
    of words that are not plain, in order."""
    firsts = np.empty(3 * len(starts) + len(sizes), np.int64)
    lasts = np.empty_like(firsts)
    count = cut = 0
    for k in range(len(starts)):
        start, stop = starts[k], stops[k]
        front, back = _marks(data, start, stop)
        if front >= 0:
            edges = (start, start + front, stop - back, stop)
            for piece in range(3):
                if edges[piece] < edges[piece + 1]:
                    firsts[count], lasts[count] = edges[piece], edges[piece + 1]
                    count += 1
            continue
        while start < stop:
            firsts[count], lasts[count] = start, start + sizes[cut]
            start, cut, count = lasts[count], cut + 1, count + 1
    return firsts[:count].copy(), lasts[:count].copy()


@inline_kernel
def _read(data: Bytes, at: int, size: int) -> np.uint64:
    """Return an integer of `size` bytes, little-endian."""
    value = np.uint64(0)
    for k in range(size):
        value |= np.uint64(data[at + k]) << np.uint64(8 * k)
    return value


@inline_kernel
def _swap_bytes(value: np.uint64) -> np.uint64:
    """Return the value with its bytes reversed."""
    swapped = np.uint64(0)
    for _ in range(8):
        swapped = swapped << np.uint64(8) | value & np.uint64(0xFF)
        value >>= np.uint64(8)
    return swapped


@inline_kernel
def _fold_product(a: np.uint64, b: np.uint64) -> np.uint64:
    """Return the low half of the 128-bit product xor its high half."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    lows = (a & low) * (b & low)
    first = (a >> half) * (b & low) + (lows >> half)
    second = (a & low) * (b >> half) + (first & low)
    return a * b ^ ((a >> half) * (b >> half) + (first >> half) + (second >> half))


@inline_kernel
def _xxh3(data: Bytes, start: int, size: int) -> np.uint64:
    """Return xxh3-64 of 1 to 128 bytes, by four algorithms for four ranges of sizes."""
    if size <= 3:
        ends = _read(data, start, 1) << np.uint64(16) | _read(data, start + size - 1, 1)
        middle = _read(data, start + size // 2, 1) << np.uint64(24)
        value = ends | middle | np.uint64(size << 8)
        value ^= _SECRET[0] >> np.uint64(32) ^ _SECRET[0] & np.uint64(0xFFFFFFFF)
        value = (value ^ value >> np.uint64(33)) * np.uint64(0xC2B2AE3D27D4EB4F)
        value = (value ^ value >> np.uint64(29)) * np.uint64(0x165667B19E3779F9)
        return np.uint64(value ^ value >> np.uint64(32))
    if size <= 8:
        value = _read(data, start, 4) << np.uint64(32)
        value = value + _read(data, start + size - 4, 4) ^ _SECRET[1] ^ _SECRET[2]
        value ^= (value << np.uint64(49) | value >> np.uint64(15)) ^ (
            value << np.uint64(24) | value >> np.uint64(40)
        )
        value *= np.uint64(0x9FB21C651E98DF25)
        value = (value ^ (value >> np.uint64(35)) + np.uint64(size)) * np.uint64(0x9FB21C651E98DF25)
        return np.uint64(value ^ value >> np.uint64(28))
    if size <= 16:
        low = _read(data, start, 8) ^ _SECRET[3] ^ _SECRET[4]
        high = _read(data, start + size - 8, 8) ^ _SECRET[5] ^ _SECRET[6]
        value = np.uint64(size) + _swap_bytes(low) + high + _fold_product(low, high)
    else:
        value = np.uint64(size) * np.uint64(0x9E3779B185EBCA87)
        for k in range((size + 31) // 32):
            for side, at in enumerate((start + 16 * k, start + size - 16 * (k + 1))):
                value += _fold_product(
                    _read(data, at, 8) ^ _SECRET[4 * k + 2 * side],
                    _read(data, at + 8, 8) ^ _SECRET[4 * k + 2 * side + 1],
                )
    value = (value ^ value >> np.uint64(37)) * np.uint64(0x165667919E3779F9)
    return value ^ value >> np.uint64(32)


@inline_kernel
def _fold_ascii(data: Bytes, start: int, stop: int, folded: Bytes, equal_digits: bool) -> int:
    """Write an ASCII word folded as by `word_table.fold_word`; return its size in bytes."""
    while not _KINDS[data[start]] & _ALNUM:
        start += 1
    while not _KINDS[data[stop - 1]] & _ALNUM:
        stop -= 1
    size = 0
    for at in range(start, stop):
        kind = _KINDS[data[at]]
        digit = equal_digits and kind & _DIGIT != 0
        if digit and at > start and _KINDS[data[at - 1]] & _DIGIT:
            continue
        folded[size] = _ZERO if digit else data[at] + 32 * (kind & _UPPER > 0)
        size += 1
    return size


@kernel(
    "Tuple((uint64[::1], boolean[::1], boolean[::1], uint64[::1], int64[::1]))"
    "(Array(uint8, 1, 'C', readonly=True), int64[::1], int64[::1], boolean)"
)
def ascii_features(
    data: Bytes, starts: Places, stops: Places, equal_digits: bool
) -> tuple[Hashes, Flags, Flags, Hashes, Places]:
    """Return the columns `hashes`, `symbol`, `letter` and `folded` of `WordArrays`, shape (N,)
    each, and the rows without values: words that are long, empty or not ASCII."""
    hashes, folded = np.zeros(len(starts), np.uint64), np.zeros(len(starts), np.uint64)
    symbol, letter = np.zeros(len(starts), np.bool_), np.zeros(len(starts), np.bool_)
    others = np.empty(len(starts), np.int64)
    buffer = np.empty(MAX_HASHED, np.uint8)
    left = 0
    for k in range(len(starts)):
        start, size = starts[k], stops[k] - starts[k]
        kinds = _kinds(data, start, stops[k]) if 0 < size <= MAX_HASHED else _WIDE
        if kinds & _WIDE:
            others[left] = k
            left += 1
            continue
        hashes[k] = _xxh3(data, start, size)
        letter[k] = kinds & _LETTER != 0
        symbol[k] = kinds & _ALNUM == 0
        if kinds == _LOWER:
            folded[k] = hashes[k]
        elif not symbol[k]:
            folded[k] = _xxh3(buffer, 0, _fold_ascii(data, start, stops[k], buffer, equal_digits))
    return hashes, symbol, letter, folded, others[:left].copy()
