"""Lines of files in any encoding."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.formats.encoded_lines import EncodedLines, readable

PLAIN = "number,name\n" * 3
CHINESE = (
    "甲,清晨的集市上人来人往，卖菜的大婶把新摘的黄瓜摆在竹筐里\n乙,远处传来卖豆浆的吆喝声\n" * 20
)
JAPANESE = "一,朝の市場には多くの人が集まり、採れたてのきゅうりが並びます\n" * 20
WIDE_ENDS = "\u0a05 \u0a0a \u0a00\n"  # a byte of these letters is that of a line end
CASES = [
    ("utf-8", "utf-8", CHINESE),
    ("utf-8-sig", "utf-8", CHINESE),
    ("utf-16", "utf-16-le", CHINESE + WIDE_ENDS),
    ("utf-16-le", "utf-16-le", CHINESE + WIDE_ENDS),
    ("utf-16-be", "utf-16-be", CHINESE + WIDE_ENDS),
    ("utf-32", "utf-32-le", CHINESE + WIDE_ENDS),
    ("gb18030", "gb18030", CHINESE),
    ("shift_jis", "cp932", JAPANESE),
    ("euc_jp", "euc_jp", JAPANESE),
    ("iso2022_jp", "iso2022_jp_2", JAPANESE),
]


def lines_of(data, *args, **options):
    return EncodedLines(io.BufferedReader(io.BytesIO(data)), *args, **options)


@pytest.mark.parametrize(("encoding", "codec", "text"), CASES)
def test_lines_of_any_encoding(encoding, codec, text):
    text = PLAIN + text + "the last one"
    data = text.encode(encoding)
    lines = lines_of(data)
    assert [line.decode() for line in lines] == text.splitlines(keepends=True)
    assert (lines.encoding, lines.bytes_read) == (codec, len(data))
    assert list(lines_of(data).decoded()) == text.splitlines(keepends=True)


@pytest.mark.parametrize(("encoding", "codec", "text"), CASES)
def test_parts_are_read_as_the_whole(encoding, codec, text):
    data = (PLAIN + text).encode(encoding)
    whole = lines_of(data)
    found = []
    ends = [whole.bytes_read for _ in whole]
    for start, end in zip([0, *ends[6::7]], [*ends[6::7], len(data)], strict=True):
        found += lines_of(data, whole.encoding, start=start, end=end)
    assert b"".join(found).decode() == PLAIN + text


def test_ascii_stays_undecided_and_unchanged():
    lines = lines_of(PLAIN.encode())
    assert b"".join(lines).decode() == PLAIN
    assert lines.encoding == ""


def test_a_damaged_line_of_utf8_is_marked():
    data = CHINESE.encode() + b"caf\xe9\n" + CHINESE.encode()
    lines = lines_of(data)
    broken = [line for line in lines if lines.reason(line)]
    assert lines.reason(broken[0]) == "byte 0xe9 at character 3 is not UTF-8"
    assert [readable(line) for line in broken] == ["caf\\xe9\n"]
    found = [line for line in lines_of(data).decoded() if lines.reason(line)]
    assert [readable(line) for line in found] == ["caf\\xe9\n"]


def test_a_damaged_line_of_another_encoding_is_not_utf8():
    data = CHINESE.encode("gb18030") + b"ok \xff end\n" + CHINESE.encode("gb18030")
    lines = lines_of(data)
    broken = [line for line in lines if lines.reason(line)]
    assert [readable(line) for line in broken] == ["ok \\xff end\n"]
    assert lines.reason(broken[0]) == "byte 0xff at character 3 is not GB18030"
    with pytest.raises(UnicodeDecodeError):
        broken[0].decode()


def test_a_mark_within_a_file_is_no_mark():
    lines = lines_of(b"{}\n\xff\xfe\n" + CHINESE.encode())
    broken = [bool(lines.reason(line)) for line in lines]
    assert broken == [False, True, *[False] * 40]


def test_a_carriage_return_ends_a_line_of_text():
    assert list(lines_of(b"a\rb\r\nc\r").decoded()) == ["a\r", "b\r\n", "c\r"]


def test_joined_files_with_byte_order_marks():
    data = b"\xef\xbb\xbf{}\n\xef\xbb\xbf{}\n"
    assert list(lines_of(data)) == [b"{}\n", b"{}\n"]


@given(st.binary(max_size=400))
def test_any_bytes_are_lines(data):
    lines = lines_of(data)
    found = list(lines)
    assert lines.bytes_read == len(data)
    for line in found:
        text = readable(line)
        assert text.encode().decode() == text
        if not lines.reason(line):
            assert line.decode() == text


@pytest.mark.parametrize(("codec", "text"), [("cp1252", "un café noir"), ("cp1251", "чёрный кофе")])
def test_a_line_of_utf8_behind_those_of_single_bytes_is_utf8(codec, text):
    first = f"{text}\n".encode(codec) + b"plain\n" * 20_000
    joined = EncodedLines(io.BufferedReader(io.BytesIO(first + f"{text} ±\n".encode())))
    lines = [line.decode() for line in joined]
    assert (joined.encoding, lines[0], lines[-1]) == (codec, f"{text}\n", f"{text} ±\n")
