"""Which addresses are one: a normal form of URLs, and its keys for a whole part.

    normal_url("http://www.Example.org:80/a/?b=2&utm_source=x&a=1#top") == "example.org/a?a=1&b=2"

Left out are the scheme, `www.`, a port that is the scheme's own, user and password, the fragment, a slash at the end of the path and parameters that
only say where a reader came from (TRACKING). The host is lower case, what need not be percent-encoded is not, parameters are sorted. All else counts: the
path's case, the order of equal parameters, index.html.
"""

import re
from collections.abc import Sequence
from urllib.parse import quote, unquote_to_bytes, urlsplit

import numpy as np
import xxhash

TRACKING = re.compile(r"utm_\w+|gclid|dclid|fbclid|msclkid|yclid|igshid|mc_[ce]id|_ga|_gl|spm|scm", re.IGNORECASE)
KEYS = np.dtype([("high", "<u8"), ("low", "<u8"), ("date", "<i8")])
"""xxh3-128 of the normal form, and the date's digits as YYYYMMDDhhmmss (0 where it has none, -1 where there is no address)."""
NONE = np.uint64(xxhash.xxh3_128_intdigest(b"") >> 64)
"""`high` of no address."""
FORM = 1
"""Version of the normal form: raised when normal_url gives other forms, since an index holds their keys."""


def normal_url(url: str) -> str:
    """The normal form, '' for none. What cannot be parsed stays as it is."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return url
    if not host:
        return url
    host = host.rstrip(".").removeprefix("www.")
    place = f"[{host}]" if ":" in host else host
    if port and (parts.scheme.lower(), port) not in (("http", 80), ("https", 443)):
        place += f":{port}"
    fields = [field for field in parts.query.split("&") if field and not TRACKING.fullmatch(field.partition("=")[0])]
    query = "&".join(sorted((_encoded(field, "=+:@!$'()*,;/?") for field in fields), key=lambda field: field.partition("=")[0]))
    return place + _encoded(parts.path, "/:@!$&'()*+,;=").rstrip("/") + (f"?{query}" if query else "")


def date_number(date: str) -> int:
    """2026-10-03T12:00:00Z -> 20261003120000; what is not said counts as nought."""
    digits = re.sub(r"[^0-9]", "", date)[:14]
    return int(digits.ljust(14, "0")) if digits else 0


def keys(urls: Sequence[str | None], dates: Sequence[str | None]) -> np.ndarray:
    """KEYS of each."""
    made = np.empty(len(urls), KEYS)
    for row, (url, date) in enumerate(zip(urls, dates, strict=True)):
        normal = normal_url(url or "")
        key = xxhash.xxh3_128_intdigest(normal.encode("utf-8", "surrogatepass"))
        made[row] = key >> 64, key & (2**64 - 1), date_number(date or "") if normal else -1
    return made


def _encoded(text: str, safe: str) -> str:
    """Percent-encoded where it must be, and nowhere else; a character of the syntax that was encoded stays so."""
    pieces = re.split(r"(%[0-9A-Fa-f]{2})", text)
    out = []
    for piece in pieces:
        if len(piece) == 3 and piece[0] == "%":
            byte = unquote_to_bytes(piece)
            out.append(byte.decode() if re.fullmatch(rb"[A-Za-z0-9._~-]", byte) else piece.upper())
        else:
            out.append(quote(piece, safe=safe, errors="surrogatepass"))
    return "".join(out)
