"""Masking of personal data and secrets with typed placeholders.

    email     [EMAIL]      local@domain.tld
    ip        [IP]         IPv4 and IPv6 addresses that are reachable from the internet
    phone     [PHONE]      numbers of a numbering plan (libphonenumber, by `phonenumbers`)
    us_ssn    [SSN]        social security numbers that can have been issued, written 3-2-4
    cn_id     [ID]         resident identity numbers with their checksum (GB 11643-1999)
    card      [CARD]       payment cards with their checksum (ISO/IEC 7812, Luhn)
    secret    [SECRET]     keys and tokens with a recognizable form

Each recognizer is a cheap pattern and a check that rejects look-alikes: a checksum, a numbering
plan, an address range. Overlapping matches are masked once, as the entity listed first in
`ENTITIES`. The patterns are written here because Presidio and scrubadub need a language model per
document, or lack Chinese identity numbers and secrets; telephone numbers come from a library.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from operator import attrgetter
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from pipeline.stage import Section
from stages.text.words.word_borders import JOINED, LATIN, LATIN_END, LATIN_LETTERS, LATIN_START

PiiEntity = Literal["secret", "email", "cn_id", "card", "us_ssn", "ip", "phone"]
ENTITIES: tuple[PiiEntity, ...] = get_args(PiiEntity)
"""Entities in order of precedence where matches overlap."""
PLACEHOLDERS: dict[PiiEntity, str] = {
    "secret": "[SECRET]",
    "email": "[EMAIL]",
    "cn_id": "[ID]",
    "card": "[CARD]",
    "us_ssn": "[SSN]",
    "ip": "[IP]",
    "phone": "[PHONE]",
}


class PiiParams(Section):
    """Entities that are masked with placeholders such as `[EMAIL]`, in kept and dropped text."""

    renamed: ClassVar[Mapping[str, str]] = {"kinds": "entities", "regions": "phone_regions"}

    entities: tuple[PiiEntity, ...] = ()
    """Entities to mask: keys and tokens, e-mail, Chinese resident ids, payment cards, US social
    security numbers, public IP addresses, phone numbers. Default: none."""
    phone_regions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = ("US", "CN")
    """ISO 3166 codes of the countries whose phone numbers may lack a prefix. Default: [US, CN]."""


@dataclass(frozen=True, slots=True, order=True)
class PiiSpan:
    """A span of a text with its entity."""

    start: int
    stop: int
    entity: PiiEntity


def mask_pii(
    text: str, entities: Sequence[PiiEntity], regions: Sequence[str]
) -> tuple[str, Counter[str]]:
    """Return the text with placeholders, and the number of placeholders of each entity.

    Args:
        text: any text.
        entities: what is masked.
        regions: ISO 3166 codes of the countries whose phone numbers may lack a prefix.
    """
    found = find_pii(text, entities, regions)
    if not found:
        return text, Counter()
    pieces, at = [], 0
    for span in found:
        pieces += [text[at : span.start], PLACEHOLDERS[span.entity]]
        at = span.stop
    return "".join([*pieces, text[at:]]), Counter(span.entity for span in found)


def find_pii(text: str, entities: Sequence[PiiEntity], regions: Sequence[str]) -> list[PiiSpan]:
    """Return the spans of these entities in the text, in order and without overlaps."""
    found: list[PiiSpan] = []
    taken = bytearray(len(text))  # 1 within a span
    digits = _ENOUGH_DIGITS.search(text) is not None
    for entity in ENTITIES:
        if entity not in entities or (entity in _NUMBERS and not digits):
            continue
        for start, stop in _RECOGNIZERS[entity](text, regions):
            if taken.find(1, start, stop) < 0:
                taken[start:stop] = b"\1" * (stop - start)
                found.append(PiiSpan(start, stop, entity))
    return sorted(found, key=attrgetter("start"))


Span = tuple[int, int]
Recognizer = Callable[[str, Sequence[str]], Iterator[Span]]

_NUMBERS = frozenset({"cn_id", "card", "us_ssn", "phone"})
_ENOUGH_DIGITS = re.compile(r"\d(?:[ ().\-]{0,3}\d){6}")

_LOCAL = re.compile(r"[A-Za-z0-9\u00c0-\u024f.%+'_-]{1,64}\Z")
_JOINED_TOP_LEVEL = """
    嘉里大酒店 電訊盈科 香格里拉 组织机构 中文网 天主教 我爱你 新加坡 淡马锡 飞利浦 中信 中国
    中國 世界 企业 佛山 信息 健康 公司 公益 台湾 台灣 商城 商店 商标 嘉里 在线 大拿 娱乐 家電
    广东 微博 慈善 手机 招聘 政务 政府 新闻 时尚 書籍 机构 游戏 澳門 点看 移动 网址 网店 网站
    网络 联通 谷歌 购物 通販 集团 食品 餐厅 香港 ファッション アマゾン クラウド グーグル
    ポイント みんな ストア セール コム 닷넷 닷컴 삼성 한국 ไทย คอม ລາວ ישראל קום الجزائر
    السعودية المغرب الاردن البحرين امارات ابوظبي ارامكو اتصالات العليان موريتانيا فلسطين كاثوليك
    پاکستان مليسيا سورية سوريا شبكة بازار بيتك بھارت ڀارت تونس عراق عرب عمان قطر كوم مصر موقع
    همراه ایران
"""
"""Top-level domains of the root zone (IANA) in scripts whose words touch others: only a list shows
where an address ends and the text behind it begins."""
_TOP_LEVEL = (
    rf"(?:(?:[{LATIN_LETTERS}]{{2,24}}|xn--[A-Za-z0-9-]{{1,58}}[A-Za-z0-9])(?![{LATIN}-])"
    rf"|[^\W\d_{LATIN_LETTERS}{JOINED}]{{2,24}}(?![^\W{JOINED}]|-)"
    rf"|{'|'.join(_JOINED_TOP_LEVEL.split())})"
)
_DOMAIN = re.compile(rf"(?:[^\W_](?:[\w-]{{0,62}}[^\W_])?\.){{1,8}}{_TOP_LEVEL}")
_NO_LOCAL_AFTER = frozenset("/%+._-")


def _email_spans(text: str, _: Sequence[str]) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        local, domain = _LOCAL.search(text, max(0, at - 65), at), _DOMAIN.match(text, at + 1)
        if local and domain:
            name, before = local[0], text[local.start() - 1 : local.start()]
            whole = before not in _NO_LOCAL_AFTER and len(name) <= 64
            if whole and name[0] not in ".'" and name[-1] != "." and ".." not in name:
                yield local.start(), domain.end()
        at = text.find("@", at + 1)


_IPV4 = re.compile(rf"(?<![{LATIN}.\-])(?:[0-9]{{1,3}}\.){{3}}[0-9]{{1,3}}(?![{LATIN}\-]|\.\d)")
_SMALL = 25
_IPV6 = re.compile(
    rf"(?<![{LATIN}:.])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{0,4}}(?![{LATIN}:])"
)


def _ip_spans(text: str, _: Sequence[str]) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        octets = [int(octet) for octet in match[0].split(".")]
        # Four small numbers are a version or a section, unless equal: a public resolver.
        if (max(octets) >= _SMALL or len(set(octets)) == 1) and _is_public(match[0]):
            yield match.span()
    for match in _IPV6.finditer(text):
        groups = [group for group in match[0].split(":") if group]
        # `a::b` is a name in C++ and a slice in Python.
        if len(groups) > 2 and max(map(len, groups)) > 2 and _is_public(match[0]):
            yield match.span()


def _is_public(written: str) -> bool:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


_CARD = re.compile(rf"(?<![{LATIN}.\-])\d(?:[ \-]?\d){{12,18}}(?![{LATIN}\-]|\.\d)")
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|62\d{14,17}"
)
"""Visa, Mastercard (two ranges), American Express, Diners Club, Discover, JCB, UnionPay."""


def _card_spans(text: str, _: Sequence[str]) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        number = re.sub(r"\D", "", match[0])
        if _ISSUERS.fullmatch(number) and has_luhn_checksum(number) and len(set(number)) > 2:
            yield match.span()


def has_luhn_checksum(number: str) -> bool:
    """Return whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in number[-2::-2])
    return (sum(doubled) + sum(map(int, number[-1::-2]))) % 10 == 0


_CN_ID = re.compile(rf"(?<![{LATIN}.\-])[1-9]\d{{16}}[\dXx](?![{LATIN}\-])")
_WEIGHTS = tuple(pow(2, power, 11) for power in range(17, -1, -1))


def _resident_id_spans(text: str, _: Sequence[str]) -> Iterator[Span]:
    for match in _CN_ID.finditer(text):
        if is_resident_id(match[0]):
            yield match.span()


def is_resident_id(number: str) -> bool:
    """Return whether 18 characters are a resident identity number: a province, a date of birth,
    and the check character of ISO 7064 MOD 11-2 (GB 11643-1999)."""
    if not 11 <= int(number[:2]) <= 91:
        return False
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    values = [10 if digit in "Xx" else int(digit) for digit in number]
    weighed = sum(weight * value for weight, value in zip(_WEIGHTS, values, strict=True))
    return born.year >= 1850 and weighed % 11 == 1


_SSN = re.compile(rf"(?<![{LATIN}.\-/])(\d{{3}})([ \-])(\d{{2}})\2(\d{{4}})(?![{LATIN}\-/]|\.\d)")
_ADVERTISED = frozenset({"078-05-1120", "219-09-9999"})


def _ssn_spans(text: str, _: Sequence[str]) -> Iterator[Span]:
    """Yield numbers that can have been issued: not with area 000, 666 or 900-999, group 00 or
    serial 0000."""
    for match in _SSN.finditer(text):
        area, _, group, serial = match.groups()
        issued = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
        if issued and f"{area}-{group}-{serial}" not in _ADVERTISED:
            yield match.span()


_PHONE_START = rf"(?<![{LATIN}.\-/+=#@])"
_PHONE = re.compile(
    _PHONE_START + r"(?<!\d:)(?:\+|00(?=[1-9]))?(?:\(\d{2,5}\)|\d)(?:[ .\-]?\d){5,16}"
    rf"(?![{LATIN}\-/=@]|[.:,]\d)"
    rf"|{_PHONE_START}(?:\+?\d{{1,3}} ?)?\(\d{{2,5}}\) ?\d(?:[ .\-]?\d){{4,11}}{LATIN_END}"
)
_CN_MOBILE = re.compile(r"1[3-9]\d{9}")
_DATED = re.compile(r"(?:19|20)\d\d[ .\-/]|\d{1,2}[.\-/]\d{1,2}[.\-/](?:19|20)\d\d")
_GROUPED = {(3, 3, 4), (3, 4, 4), (3, 8), (4, 7), (4, 8)}


def _phone_spans(text: str, regions: Sequence[str]) -> Iterator[Span]:
    for match in _PHONE.finditer(text):
        written = match[0]
        if (
            _has_phone_form(written)
            and not _DATED.match(written)
            and _is_in_numbering_plan(written, regions)
        ):
            yield match.span()


def _has_phone_form(written: str) -> bool:
    """Return whether a number has a prefix, is a Chinese mobile number, or is written in the usual
    groups: ten digits in a row, or two groups of five, may be any number."""
    if written.startswith(("+", "00")) or "(" in written or _CN_MOBILE.fullmatch(written):
        return True
    groups = tuple(map(len, re.findall(r"\d+", written)))
    alike = len(set(re.findall(r"\D", written))) == 1
    decimal = "." in written and len(groups) == 2
    trunk = written[0] == "0" and 2 <= len(groups) <= 5 and min(groups) > 1
    return alike and not decimal and (groups in _GROUPED or trunk)


def _is_in_numbering_plan(written: str, regions: Sequence[str]) -> bool:
    import phonenumbers

    if written.startswith("00"):
        written = f"+{written[2:]}"
    for region in (None,) if written.startswith("+") else regions:
        try:
            number = phonenumbers.parse(written, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            return True
    return False


_SECRET = re.compile(
    rf"""(?x)
    -----BEGIN\ (?:[A-Z]+\ ){{0,3}}PRIVATE\ KEY-----
        (?:(?!-----)[\s\S]){{0,16384}}+-----END\ (?:[A-Z]+\ ){{0,3}}PRIVATE\ KEY-----
    | (?<![{LATIN}\-])eyJ[A-Za-z0-9_\-]{{8,}}\.eyJ[A-Za-z0-9_\-]{{8,}}
        \.[A-Za-z0-9_\-]{{16,}}                                     # JSON Web Token
    | {LATIN_START}(?:
          (?:AKIA|ASIA)[A-Z2-7]{{16}}{LATIN_END}                    # Amazon Web Services
        | (?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{{36,}}{LATIN_END}     # GitHub
        | github_pat_[A-Za-z0-9_]{{40,}}{LATIN_END}
        | glpat-[A-Za-z0-9_\-]{{20,}}                               # GitLab
        | hf_[A-Za-z0-9]{{30,}}{LATIN_END}                          # Hugging Face
        | sk-(?:proj-|ant-[a-z0-9]+-)?[A-Za-z0-9_\-]{{32,}}         # OpenAI, Anthropic
        | [sr]k_(?:live|test)_[A-Za-z0-9]{{16,}}{LATIN_END}         # Stripe
        | xox[abeoprs]-[A-Za-z0-9\-]{{10,}}                         # Slack
        | AIza[A-Za-z0-9_\-]{{35}}                                  # Google
        | pypi-AgE[A-Za-z0-9_\-]{{50,}}                             # Python Package Index
        | npm_[A-Za-z0-9]{{36}}{LATIN_END}
        | SG\.[A-Za-z0-9_\-]{{22}}\.[A-Za-z0-9_\-]{{43}}           # SendGrid
    )
    """
)
_SIGNS = (
    *("PRIVATE KEY", "AKIA", "ASIA", "_", "glpat-", "sk-", "xox", "AIza", "pypi-", "SG.", "eyJ"),
)
"""Every match above contains one of these substrings; searching for them is cheap."""
_PASSWORD_IN_URL = re.compile(
    r"://[^\s/:@]{1,64}:(?!(?i:password|passwd|passwort|pass|pwd|pw|secret|token|key)@)"
    r"([^\s/:@<>{}$*%\[\]]{3,128})@"
)
"""A password in a URL; the placeholders of manuals do not match."""


def _secret_spans(text: str, _: Sequence[str]) -> Iterator[Span]:
    if any(sign in text for sign in _SIGNS):
        for match in _SECRET.finditer(text):
            yield match.span()
    if "://" in text and "@" in text:
        for match in _PASSWORD_IN_URL.finditer(text):
            yield match.span(1)


_RECOGNIZERS: dict[PiiEntity, Recognizer] = {
    "secret": _secret_spans,
    "email": _email_spans,
    "cn_id": _resident_id_spans,
    "card": _card_spans,
    "us_ssn": _ssn_spans,
    "ip": _ip_spans,
    "phone": _phone_spans,
}
