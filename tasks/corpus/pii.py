"""Masking of personal data: e-mail, IP addresses, phone numbers, Chinese ID numbers. Text in; text with a tag in their place, and how many of each.

    mask("write to ann@host.org")  ==  ("write to <EMAIL>", {"email": 1})

A tag, not an invented address, stands in the text: nothing a model says can then be somebody's. What only looks like personal data (prices, dates,
versions, ISBNs, order numbers) stays: a number counts by its form, its borders and, where it has one, its check digit.
"""

import ipaddress
import re
from collections import Counter

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d]|\.\d)")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:])")
_CHINESE_ID = re.compile(r"(?<![\dA-Za-z])\d{17}[\dXx](?![\dA-Za-z])")
_CHINESE_MOBILE = re.compile(r"(?<![\d.-])(?:(?:\+|00)86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}(?![\d-]|\.\d)")
_PHONE = re.compile(r"(?<![A-Za-z0-9_.+])\+[1-9]\d{0,2}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{1,5}){2,6}(?![\d]|[.,]\d)")
_NORTH_AMERICAN = re.compile(
    r"(?<![A-Za-z0-9_.+-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}([ .-]))[2-9]\d{2}(?:\1|[ .-])\d{4}(?![A-Za-z0-9_-]|\.\d)"
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_INNER = [
    ipaddress.ip_network(n)
    for n in ("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3")
]


def mask(text: str) -> tuple[str, Counter[str]]:
    """Text with personal data replaced by <EMAIL>, <IP>, <ID>, <PHONE>, and the count of each kind (email, ip, id, phone)."""
    counts: Counter[str] = Counter()
    for kind, tag, pattern, holds in _KINDS:

        def put(match: re.Match[str], kind: str = kind, tag: str = tag, holds: object = holds) -> str:
            if callable(holds) and not holds(match.group()):
                return match.group()
            counts[kind] += 1
            return tag

        text = pattern.sub(put, text)
    return text, counts


def is_outer_ip(found: str) -> bool:
    """Whether an IPv4 or IPv6 address can be somebody's: not one of a private, loopback, link-local or multicast network."""
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified or address.is_site_local)
    return not any(address in network for network in _INNER)


def is_chinese_id(found: str) -> bool:
    """Whether 18 characters are a resident identity number: a date of birth in place and the check digit of GB 11643-1999 (ISO 7064 MOD 11-2)."""
    year, month, day = int(found[6:10]), int(found[10:12]), int(found[12:14])
    if not (1900 <= year <= 2099 and 1 <= month <= 12 and 1 <= day <= 31):
        return False
    total = sum(int(digit) * weight for digit, weight in zip(found, _WEIGHTS, strict=False))
    return "10X98765432"[total % 11] == found[17].upper()


def is_long_number(found: str) -> bool:
    """Whether an international number has as many digits as E.164 allows one to have: 8 to 15."""
    return 8 <= sum(c.isdigit() for c in found) <= 15


_KINDS = (
    ("email", "<EMAIL>", _EMAIL, None),
    ("ip", "<IP>", _IPV4, is_outer_ip),
    ("ip", "<IP>", _IPV6, is_outer_ip),
    ("id", "<ID>", _CHINESE_ID, is_chinese_id),
    ("phone", "<PHONE>", _CHINESE_MOBILE, None),
    ("phone", "<PHONE>", _PHONE, is_long_number),
    ("phone", "<PHONE>", _NORTH_AMERICAN, None),
)
