"""Encodings of text from outside: labels, marks, detection, damage."""

import codecs
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.formats.text_encoding import (
    UndecodableText,
    codec_of,
    declared_charset,
    decode_text,
    find_encoding,
)

TEXTS = {
    "chinese": "清晨的集市上人来人往，卖菜的大婶把新摘的黄瓜整齐地摆在竹筐里。远处传来吆喝声。",
    "taiwan": "清晨的市集上人來人往，賣菜的大嬸把新摘的黃瓜整齊地擺在竹籃裡。遠處傳來吆喝聲。",
    "japanese": "朝の市場には多くの人が集まり、採れたてのきゅうりが並ぶ。遠くで笛が聞こえます。",
    "korean": "이른 아침 시장에는 많은 사람들이 모여들고, 갓 딴 오이를 가지런히 늘어놓는다.",
    "russian": "Ранним утром на рынке собирается много народу, и торговка раскладывает огурцы.",
    "french": "Tôt le matin, le marché se remplit déjà ; les élèves pressés traversent la forêt.",
    "polish": "Wcześnie rano na targu zbiera się dużo ludzi, a przekupka układa świeże ogórki.",
    "greek": "Νωρίς το πρωί στην αγορά μαζεύεται πολύς κόσμος και οι μαθητές περνούν βιαστικά.",
    "thai": "เช้าตรู่ที่ตลาดมีผู้คนมากมายมารวมกัน แม่ค้าขายผักวางแตงกวาอย่างเป็นระเบียบ",
}
ENCODINGS = {  # codec: (language, a label of the standard)
    "utf-8": ("french", "utf-8"),
    "gb18030": ("chinese", "gb2312"),
    "big5hkscs": ("taiwan", "big5"),
    "cp932": ("japanese", "x-sjis"),
    "euc_jp": ("japanese", "euc-jp"),
    "iso2022_jp": ("japanese", "iso-2022-jp"),
    "cp949": ("korean", "ks_c_5601-1987"),
    "cp1251": ("russian", "windows-1251"),
    "koi8-r": ("russian", "koi8-r"),
    "cp1252": ("french", "iso-8859-1"),
    "iso8859-2": ("polish", "latin2"),
    "cp1253": ("greek", "windows-1253"),
}
UNKNOWN = ["", "none", "null", "undefined", "x-unknown", "text/html", "en", "auto", "\0", "binary"]
MISSPELLED = {
    "utf8mb4": "utf-8",
    "UTF-8; charset=utf-8": "utf-8",
    '"utf-8"': "utf-8",
    "utf_8": "utf-8",
    "win-1251": "cp1251",
    "cp-1251": "cp1251",
    "windows1251": "cp1251",
    "iso-8559-1": "cp1252",
    "iso 8859-2": "iso8859-2",
    "latin-1": "cp1252",
    "gb-2312": "gb18030",
    "cp936": "gb18030",
    "shift jis": "cp932",
    "charset=koi8-r": "koi8-r",
}
VALID = [label for _, label in ENCODINGS.values()]
LABELS = [*VALID, *UNKNOWN, *MISSPELLED]


@pytest.mark.parametrize("codec", ENCODINGS)
@pytest.mark.parametrize("label", LABELS)
def test_any_label_over_any_encoding(label, codec):
    """Find the text itself, or all its bytes in the encoding that the label declares."""
    text = TEXTS[ENCODINGS[codec][0]] * 2
    data = text.encode(codec)
    declared = codec_of(label)
    try:
        found = decode_text(data, [label])
    except UndecodableText as error:
        pytest.fail(f"{label} over {codec}: {error}")
    believed = declared and declared not in ("utf-8", codec)
    assert found == text or (believed and found == data.decode(declared))
    assert "\ufffd" not in found
    if not declared or declared == codec or codec in ("utf-8", "iso2022_jp"):
        assert found == text


def test_there_are_36_labels_and_12_encodings():
    assert (len(LABELS), len(ENCODINGS)) == (36, 12)


@pytest.mark.parametrize(("label", "codec"), MISSPELLED.items())
def test_misspelled_labels(label, codec):
    assert codec_of(label) == codecs.lookup(codec).name


@pytest.mark.parametrize("label", UNKNOWN)
def test_unknown_labels_declare_nothing(label):
    assert codec_of(label) == ""


@pytest.mark.parametrize("label", ["rot13", "idna", "unicode_escape", "zlib", "utf-7", "base64"])
def test_codecs_that_are_no_charsets(label):
    assert codec_of(label) == ""


@pytest.mark.parametrize(
    ("codec", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
@pytest.mark.parametrize("language", ["french", "chinese"])
def test_byte_order_marks_are_evidence_and_no_text(codec, mark, language):
    text = TEXTS[language]
    assert decode_text(mark + text.encode(codec), ["windows-1252"]) == text


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("language", ["french", "chinese"])
def test_wide_text_without_a_mark(codec, language):
    text = TEXTS[language] + "\n" + TEXTS[language]
    assert decode_text(text.encode(codec)) == text


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("kind", ["replaced", "cut"])
def test_damage_is_an_error_and_no_other_encoding(language, kind):
    codec = {"greek": "cp1253", "thai": "cp874"}.get(language) or next(
        (c for c, (name, _) in ENCODINGS.items() if name == language and c != "utf-8"), ""
    )
    text = TEXTS[language] * 8
    data = bytearray(text.encode(codec))
    if kind == "replaced":
        data[len(data) // 2 - 1 : len(data) // 2 + 1] = b"\xff\xff"
    else:
        data = data[:-1]
    if kind == "cut" and codec not in ("gb18030", "big5hkscs", "cp932", "euc_jp"):
        assert decode_text(bytes(data)) == text[:-1]
    elif codec in ("cp1251", "cp1252", "iso8859-2"):  # in which 0xff is a letter
        assert codecs.lookup(find_encoding(bytes(data))).name == codec
    else:
        with pytest.raises(UndecodableText, match=r"byte 0x\w\w at \d+ is not"):
            decode_text(bytes(data))


def test_damaged_utf8_is_an_error_with_its_place():
    data = TEXTS["french"].encode() + b" \xe9 " + TEXTS["french"].encode()
    with pytest.raises(UndecodableText, match="byte 0xe9 at 90 is not UTF-8") as caught:
        decode_text(data, ["iso-8859-1"])
    assert (caught.value.offset, caught.value.line) == (90, 1)
    assert " \\xe9 " in caught.value.text
    assert "\ufffd" not in caught.value.text


def test_a_truncated_text_loses_its_last_character():
    data = TEXTS["chinese"].encode()
    assert decode_text(data[:-1], truncated=True) == TEXTS["chinese"][:-1]
    with pytest.raises(UndecodableText):
        decode_text(data[:-1])
    half = TEXTS["chinese"].encode("gb18030")[:-1]
    assert decode_text(half, ["gbk"], truncated=True) == TEXTS["chinese"][:-1]


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff", b"\xff\xfeodd", bytes(range(256)) * 3]
)
def test_binary_content_is_no_text(data):
    with pytest.raises(UndecodableText):
        decode_text(data)


def test_terminal_colours_are_text():
    assert decode_text(b"\x1b[1mbold\x1b(B\x1b[m") == "\x1b[1mbold\x1b(B\x1b[m"


def test_a_charset_that_switches_in_ascii_needs_its_label():
    text = TEXTS["chinese"]
    assert decode_text(text.encode("hz"), ["hz-gb-2312"]) == text
    assert decode_text(b"a ~{ b") == "a ~{ b"


def test_the_label_of_a_server_yields_to_the_bytes():
    for codec, language in (("cp1251", "russian"), ("gb18030", "chinese"), ("cp949", "korean")):
        assert decode_text(TEXTS[language].encode(codec), ["iso-8859-1"]) == TEXTS[language]
    western = "Fünf große Äpfel für die Tür".encode("latin-1")
    assert decode_text(western, ["iso-8859-1"]) == "Fünf große Äpfel für die Tür"


@pytest.mark.parametrize(
    ("page", "label"),
    [
        (b'<html><head><META charset="Shift_JIS">', "Shift_JIS"),
        (b'<meta http-equiv=Content-Type content="text/html; charset=gb2312">', "gb2312"),
        (b"<meta charset=utf-8/>", "utf-8"),
        (b'<?xml version="1.0" encoding="koi8-r"?><html>', "koi8-r"),
        (b"<html>" + b" " * 2000 + b"<meta charset=big5>", ""),
    ],
)
def test_charsets_that_pages_declare(page, label):
    assert declared_charset(page) == label


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x1b\ufeff")))
def test_utf8_is_always_itself(text):
    assert decode_text(text.encode()) == text
    assert decode_text(codecs.BOM_UTF8 + text.encode(), ["koi8-r"]) == text


@given(st.binary(max_size=300), st.sampled_from(LABELS))
def test_any_bytes_are_a_text_or_an_error(data, label):
    try:
        found = decode_text(data, [label])
    except UndecodableText as error:
        assert 0 <= error.offset < len(data)
        found = error.text
    assert found.encode().decode() == found
    assert (
        "\ufffd" not in found
        or "\ufffd".encode() in data
        or b"\xff\xfd" in data
        or (b"\xfd\xff" in data or b"\x84\x31\xa4\x37" in data)
    )
    assert find_encoding(data, [label]) == find_encoding(data, [label])


ROOT = Path(__file__).parents[4]
NO_USER_TEXT = {
    "stages/data/formats/surrogates.py",  # half a pair has no other form
    "stages/data/tar_format.py",  # names of pax keys, compared with known ones
    "stages/distributed/output_capture.py",  # what programs print
    "stages/text/python_docs/installed_files.py",  # names of modules
}


def test_no_reader_replaces_what_it_cannot_decode():
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "stages").rglob("*.py")
        if re.search(
            """errors=.replace|\\(.*["']replace["']\\)|read_text\\(enc""", path.read_text()
        )
    }
    assert found == NO_USER_TEXT


@pytest.mark.parametrize("stray", ["\0", "\x02", "\x1a", "\x1b", "\x1f", "\x7f"])
@pytest.mark.parametrize("codec", ENCODINGS)
def test_a_stray_control_character_changes_no_encoding(codec, stray):
    text = TEXTS[ENCODINGS[codec][0]]
    data = f"{text}\n{text}{stray}\n{text}\n{text}".encode(codec)
    assert decode_text(data) == data.decode(codec)


@pytest.mark.parametrize(
    "text", ["It costs £5", "from £500 to £1,000", "¥500 each", "±5 %", "½ cup"]
)
def test_signs_that_touch_no_letter_are_no_letters(text):
    assert decode_text(text.encode("cp1252")) == text


@pytest.mark.parametrize("text", ["mała", "Łódź leży nad rzeką", "żółw i łoś"])
def test_polish_letters_stay(text):
    assert decode_text(text.encode("cp1250")) == text
