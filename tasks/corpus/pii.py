"""Masking of personal data: e-mail and IP addresses, phone, identity, card and bank account numbers. Text in; text with tags, and how many of each.

    mask("write to ann@host.org")  ==  ("write to <EMAIL>", {"email": 1})

A tag, not an invented address, stands in the text: nothing a model says can then be somebody's. What only looks like personal data (prices, dates,
versions, ISBNs, order numbers, coordinates) stays: a number counts by its form, its borders, the word before it and, where it has one, its check digit.
Recall and precision by kind and language: tests/benchmarks/pii_quality.py.

Only stretches that could hold one are looked at closely, found by one sign each (`@`, two colons, a run of digits): most of a text has none.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

_EMAIL_NAME = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}$")
_EMAIL_HOST = re.compile(r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,24})(?![A-Za-z0-9])")
_FILES = frozenset(["png", "jpg", "jpeg", "gif", "svg", "webp", "avif", "ico", "css", "js", "map", "woff", "mp4"])
"""Ends of names like logo@2x.png."""
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:])")
_ACCOUNT = re.compile(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_RUN = re.compile(r"[+(（\d][\d .()（）+\u00a0\u2010-\u2015-]{5,}[\dXx]")
"""Where a number of at least seven digits and signs could be."""
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d]|\.\d)")
_CHINESE_ID = re.compile(r"(?<![\dA-Za-z])\d{17}[\dXx](?![\dA-Za-z])")
_CARD = re.compile(
    r"(?<![\dA-Za-z.,+-])(?:\d{13,19}|\d{4}(?:([ -])\d{4}(?:\1\d{4}){1,2}\1\d{1,4}|([ -])\d{6}\2\d{5}))(?![\dA-Za-z-]|[.,]\d)"
)
_CHINESE_MOBILE = re.compile(r"(?<![\d.-])(?:(?:\+|00)?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}(?![\d-]|\.\d)")
_PHONE = re.compile(r"(?<![A-Za-z0-9_.+])(?:\+|00(?=\d{1,3}[ -]))[1-9]\d{0,2}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{1,5}){2,6}(?![\d]|[.,]\d)")
_CHINESE_LANDLINE = re.compile(
    r"(?<![\dA-Za-z.-])(?:(?:[(（]0(?:10|2\d|[3-9]\d\d)[)）] ?|0(?:10|2\d|[3-9]\d\d)[ -])[2-8](?:\d{3}[ -]?\d{3,4}|\d{2}[ -]?\d{4})(?:-\d{1,5})?|[48]00([ -])\d{3}\1?\d{4})(?![\dA-Za-z-]|\.\d)"
)
_NORTH_AMERICAN = re.compile(
    r"(?<![A-Za-z0-9_.+-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}([ .-]))[2-9]\d{2}(?:\1|[ .-])\d{4}(?![A-Za-z0-9_-]|\.\d)"
)
_NAMED = re.compile(
    r"(?<![\d.#-])(?!(?:19|20)\d\d(?:[ -](?:19|20)\d\d|(?:0[1-9]|1[0-2])[0-3]\d)(?!\d))"  # no years, no date
    r"(?:(?:[(（](?:0\d{1,4}|[2-9]\d\d)[)）] ?|(?:0\d{2,3}|[2-9]\d\d)[ .-]?)?\d{3,4}[ .-]?\d{4}(?:-\d{1,5})?|0\d(?:[ .-]\d\d){4}|0\d{2,4}[ /-]\d{3,8}(?:[ -]\d{2,4})?)"
    r"(?![\dA-Za-z-]|\.\d| ?[元万亿%])"
)
_NAMING = re.compile(
    r"(?:电话|電話|手机|手機|座机|热线|熱線|传真|傳真|(?<![a-z])(?:tel|telephone|phone|mobile|cell|fax|call))(?:号码|號碼| number|s)?[^\w\n]{0,3}$",
    re.I,
)
"""Before a phone number in any form."""
_VERSION = re.compile(r"(?:(?<![a-z])v|ver(?:sion|\.)?|release|build|firmware|section|chapter|§|版本|版|固件|章节|第)[^\w\n]{0,3}$", re.I)
"""Before four numbers with full stops that are no address."""
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CARDS = re.compile(r"(?:4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7]|35|64|65)\d{14}|6011\d{12}|3[47]\d{13}|62\d{14,17})")
"""Digits of Visa, Mastercard, JCB, Discover, American Express, UnionPay cards."""
_INNER = [
    ipaddress.ip_network(n)
    for n in ("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3")
]
CONTEXT = 24
"""Characters before a number in which the word that names it may stand."""


def mask(text: str) -> tuple[str, Counter[str]]:
    """Text with <EMAIL>, <IP>, <ID>, <CARD>, <ACCOUNT>, <PHONE> in place of personal data, and the count of each kind (email, ip, id, …)."""
    counts: Counter[str] = Counter()
    if "@" in text:
        text = _mask_emails(text, counts)
    if _COLONS.search(text):
        text = _replaced(_IPV6, text, "ip", is_outer_ip, counts)
    text = _replaced(_ACCOUNT, text, "account", is_account, counts)
    pieces, done, before = [], 0, 0
    for run in _RUN.finditer(text):
        start, end = max(before, done, run.start() - CONTEXT), min(len(text), run.end() + 2)
        window, before = text[start:end], run.end()  # half of the number before could look like a whole one
        masked = _mask_numbers(window, counts)
        if masked is not window:
            pieces += [text[done:start], masked]
            done = end
    return "".join([*pieces, text[done:]]), counts


def _mask_emails(text: str, counts: Counter[str]) -> str:
    pieces, done, at = [], 0, text.find("@")
    while at >= 0:
        host, name = _EMAIL_HOST.match(text, at), _EMAIL_NAME.search(text[max(done, at - 65) : at])
        if host and name and host[1].lower() not in _FILES:
            pieces += [text[done : at - len(name[0])], "<EMAIL>"]
            done = host.end()
            counts["email"] += 1
        at = text.find("@", at + 1)
    return "".join([*pieces, text[done:]])


def _mask_numbers(window: str, counts: Counter[str]) -> str:
    """The window itself, not a copy, where nothing is masked."""
    for kind, pattern, holds in _NUMBERS:
        window = _replaced(pattern, window, kind, holds, counts)
    return window


def _replaced(pattern: re.Pattern[str], text: str, kind: str, holds: Callable[[str, str], bool], counts: Counter[str]) -> str:
    pieces, done = [], 0
    for match in pattern.finditer(text):
        if holds(match.group(), text[max(0, match.start() - CONTEXT) : match.start()]):
            pieces += [text[done : match.start()], f"<{kind.upper()}>"]
            done = match.end()
            counts[kind] += 1
    return "".join([*pieces, text[done:]]) if pieces else text


def is_outer_ip(found: str, before: str = "") -> bool:
    """Whether an IPv4 or IPv6 address can be somebody's: not one of a private, loopback, link-local or multicast network, nor a version."""
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return int(address) >> 125 == 1  # global unicast, 2000::/3
    return not any(address in network for network in _INNER) and not _VERSION.search(before)


def is_chinese_id(found: str, before: str = "") -> bool:
    """Whether 18 characters are a resident identity number: a date of birth in place and the check digit of GB 11643-1999 (ISO 7064 MOD 11-2)."""
    year, month, day = int(found[6:10]), int(found[10:12]), int(found[12:14])
    if not (1900 <= year <= 2099 and 1 <= month <= 12 and 1 <= day <= 31):
        return False
    total = sum(int(digit) * weight for digit, weight in zip(found, _WEIGHTS, strict=False))
    return "10X98765432"[total % 11] == found[17].upper()


def is_card(found: str, before: str = "") -> bool:
    """Whether digits are a payment card's: as many as its scheme's, and the check digit of ISO/IEC 7812 (Luhn)."""
    number = "".join(filter(str.isdigit, found))
    if not _CARDS.fullmatch(number):
        return False
    return sum(d if place % 2 == 0 else d // 5 + d * 2 % 10 for place, d in enumerate(map(int, reversed(number)))) % 10 == 0


def is_account(found: str, before: str = "") -> bool:
    """Whether letters and digits are an international bank account number: 15 to 34 and the check digits of ISO 13616 (MOD 97)."""
    plain = found.replace(" ", "")
    if (before[-1:].isalnum() and before[-1:].isascii()) or not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def is_international(found: str, before: str = "") -> bool:
    """Whether a number with a country's code has as many digits as E.164 allows one to have, 8 to 15, and is no decimal fraction."""
    digits = sum(c.isdigit() for c in found)
    fraction = re.fullmatch(r"\+\d+\.\d{1,8}", found)
    return 8 <= digits - 2 * found.startswith("00") <= 15 and not fraction


def is_named(found: str, before: str) -> bool:
    """Whether the word before a number says that it is a phone's."""
    return _NAMING.search(before) is not None


_NUMBERS: tuple[tuple[str, re.Pattern[str], Callable[[str, str], bool]], ...] = (
    ("ip", _IPV4, is_outer_ip),
    ("id", _CHINESE_ID, is_chinese_id),
    ("card", _CARD, is_card),
    ("phone", _CHINESE_MOBILE, lambda found, before: True),
    ("phone", _PHONE, is_international),
    ("phone", _CHINESE_LANDLINE, lambda found, before: True),
    ("phone", _NORTH_AMERICAN, lambda found, before: True),
    ("phone", _NAMED, is_named),
)
