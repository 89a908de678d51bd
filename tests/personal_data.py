"""Made-up personal data of every kind in the forms in which it stands in English and Chinese texts, and what only looks like it. All is random.

before, text, after = planted(chance, "zh", "IPv4")           # the text shall go, what stands around it stay
text = lookalike(chance, "en", "version")                    # shall stay
recall, precision, wrong = score("zh", plants=200, seed=7)
"""

import ipaddress
import random
from collections import Counter
from collections.abc import Callable

from tasks.corpus.pii import mask

FRAMES = {
    "en": ("Please write or call: {}.", "Contact {} for more.", "({})", "Reach us at {}, any day", "{}", "It was {} that stood on the form", "Info\n{}\nOpen daily"),
    "zh": ("请联系{}，谢谢。", "联系方式：{}；", "（{}）", "如有问题可发至{}。", "{}", "登记的是{}，请核对", "服务\n{}\n欢迎来访"),
}  # fmt: skip
NAMED = {"en": ("Tel: ", "Phone ", "Fax: ", "Call ", "phone number: "), "zh": ("电话：", "联系电话: ", "传真:", "热线", "手机号码：")}


def digits(chance: random.Random, count: int, first: str = "0123456789") -> str:
    return chance.choice(first) + "".join(chance.choices("0123456789", k=count - 1))


def luhn(head: str) -> str:
    """With its check digit."""
    total = sum(d if place % 2 else sum(divmod(2 * d, 10)) for place, d in enumerate(map(int, reversed(head))))
    return head + str(-total % 10)


def iban(country: str, rest: str) -> str:
    check = 98 - int("".join(str(int(c, 36)) for c in f"{rest}{country}00")) % 97
    return f"{country}{check:02d}{rest}"


def identity(chance: random.Random) -> str:
    head = f"{chance.choice((11, 12, 31, 32, 33, 37, 44, 50, 51, 61))}{digits(chance, 4)}{chance.randint(1940, 2015)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}{digits(chance, 3)}"
    return head + "10X98765432"[sum(int(d) * (2 ** (17 - place) % 11) for place, d in enumerate(head)) % 11]


def _email(chance: random.Random) -> str:
    name = chance.choice(
        (
            "ann",
            "j.smith",
            "li_wei",
            "info",
            "zhang.san",
            "K-Brown",
            "x" + digits(chance, 3),
            digits(chance, 9, "123456789"),
            "1" + digits(chance, 10, "35"),
        )
    )
    more = chance.choice(("", "", "", "+news", ".office", "_2"))
    return f"{name}{more}@{chance.choice(('', '', 'mail.', 'cs.'))}{chance.choice(('host', 'example', 'qq', '163', 'tower-light', 'univ'))}.{chance.choice(('com', 'org', 'cn', 'com.cn', 'co.uk', 'edu.cn', 'de', 'museum'))}"


def _ipv4(chance: random.Random) -> str:
    while True:
        found = ipaddress.ip_address(chance.randrange(1 << 24, 223 << 24))
        if found.is_global:
            return str(found)


def _ipv6(chance: random.Random) -> str:
    groups = [f"{chance.choice(('2001', '2a00', '2400', '2607', '240e'))}", *(f"{chance.randrange(1, 1 << 16):x}" for _ in range(7))]
    return (
        ":".join(groups)
        if chance.random() < 0.5
        else ":".join(groups[: chance.randint(2, 4)]) + "::" + ":".join(groups[5 : chance.randint(6, 8)])
    )


def _international(chance: random.Random) -> str:
    forms = ("+44 20 ···· ····", "+49 30 ······", "+49 (0)30 ·······", "+33 1 ·· ·· ·· ··", "+1 (2··) 5··-····", "+1-6··-2··-····", "+81-3-····-····", "+852 2··· ····",
             "+8869········", "+61 4·· ··· ···", "+7 495 ···-··-··", "+1.2125······", "0044 20 ···· ····", "+91 98··· ·····", "+3531·······")  # fmt: skip
    return _filled(chance, chance.choice(forms))


def _filled(chance: random.Random, form: str) -> str:
    signs = {"·": "0123456789", "^": "123456789", "~": "0123456789abcdef"}
    return "".join(chance.choice(signs.get(c, c)) for c in form)


def _american(chance: random.Random) -> str:
    area, middle, last = digits(chance, 3, "23456789"), digits(chance, 3, "23456789"), digits(chance, 4)
    return chance.choice(
        (
            f"({area}) {middle}-{last}",
            f"{area}-{middle}-{last}",
            f"{area}.{middle}.{last}",
            f"1-{area}-{middle}-{last}",
            f"({area}){middle}-{last}",
            f"{area} {middle} {last}",
        )
    )


def _mobile(chance: random.Random) -> str:
    a, b, c = "1" + digits(chance, 2, "3456789"), digits(chance, 4), digits(chance, 4)
    return chance.choice(("", "", "", "+86 ", "+86", "0086-", "86-")) + chance.choice(
        (f"{a}{b}{c}", f"{a}{b}{c}", f"{a} {b} {c}", f"{a}-{b}-{c}")
    )


def _landline(chance: random.Random) -> str:
    area = chance.choice(("010", "021", "020", "0571", "0755", "028", "0531"))
    local = digits(chance, 8 if area != "0531" else 7, "2345678")
    return chance.choice(
        (
            f"{area}-{local}",
            f"({area}){local}",
            f"（{area}）{local}",
            f"{area} {local}",
            f"{area}-{local}-{digits(chance, 3)}",
            f"400-{digits(chance, 3)}-{digits(chance, 4)}",
            f"{area}-{local[:4]} {local[4:]}",
        )
    )


def _named(chance: random.Random, language: str) -> str:
    """Only the word before it tells."""
    chinese, english = (
        ("6·······", "8···-····", "021^·······", "5······"),
        ("2·········", "5··-····", "020 7··· ····", "06 ·· ·· ·· ··", "030 ······"),
    )
    return _filled(chance, chance.choice(chinese if language == "zh" else english))


def _card(chance: random.Random) -> str:
    number = luhn(chance.choice(("4", "51", "55", "6225", "6011", "3528")).ljust(4, chance.choice("0123456789")) + digits(chance, 11))
    if chance.random() < 0.15:
        number = luhn("37" + digits(chance, 12))
        return chance.choice((number, f"{number[:4]} {number[4:10]} {number[10:]}"))
    if chance.random() < 0.2:
        number = luhn("62" + digits(chance, 16))
        return chance.choice((number, " ".join((number[:4], number[4:8], number[8:12], number[12:16], number[16:]))))
    return chance.choice(
        (number, "-".join(number[n : n + 4] for n in range(0, 16, 4)), " ".join(number[n : n + 4] for n in range(0, 16, 4)))
    )


def _account(chance: random.Random) -> str:
    number = chance.choice(
        (
            iban("DE", digits(chance, 18)),
            iban("GB", "NWBK" + digits(chance, 14)),
            iban("FR", digits(chance, 23)),
            iban("NL", "ABNA" + digits(chance, 10)),
            iban("CH", digits(chance, 17)),
        )
    )
    return chance.choice((number, " ".join(number[n : n + 4] for n in range(0, len(number), 4))))


KINDS: dict[str, tuple[str, Callable[[random.Random], str]]] = {
    "e-mail": ("email", _email),
    "IPv4": ("ip", _ipv4),
    "IPv6": ("ip", _ipv6),
    "phone, international": ("phone", _international),
    "phone, North American": ("phone", _american),
    "phone, Chinese mobile": ("phone", _mobile),
    "phone, Chinese landline": ("phone", _landline),
    "phone, named only": ("phone", lambda chance: ""),
    "Chinese identity number": ("id", identity),
    "payment card": ("card", _card),
    "bank account (IBAN)": ("account", _account),
}
"""Kind of plant: kind of tag, and how one is made."""


def planted(chance: random.Random, language: str, kind: str) -> tuple[str, str, str]:
    """(what comes before, what shall go, what comes after)."""
    before, after = chance.choice(FRAMES[language]).split("{}")
    if kind == "phone, named only":
        return before + chance.choice(NAMED[language]), _named(chance, language), after
    return before, KINDS[kind][1](chance), after


def _date(chance: random.Random) -> str:
    year, month, day = chance.randint(1900, 2030), chance.randint(1, 12), chance.randint(1, 28)
    return chance.choice((f"{year}-{month:02d}-{day:02d}", f"{day:02d}.{month:02d}.{year}", f"{month}/{day}/{year}", f"{year}{month:02d}{day:02d}", f"{year}-{year + 4}", f"{year}.{month}.{day}", f"{year}年{month}月{day}日",
                          f"{year}-{month:02d}-{day:02d} 12:{day:02d}:05", f"{year}-{month:02d}-{day:02d}T08:30:{day:02d}+08:00", f"{year}{month:02d}{day:02d}083015"))  # fmt: skip


LOOKALIKES: dict[str, tuple[str, ...]] = {
    "version": ("v^.1·.·.·", "version ^.·.·.1·", "^.1·.2·", "10.0.1····.1··", "Chrome/120.0.5···.71", "版本^.2.0.1·"),
    "ISBN": ("978-·-···-·····-·", "978··········", "ISBN 7-····-····-X", "ISSN ····-····"),
    "price": ("^·,···.··", "$^,···,···", "^······元", "^·······.··", "¥^····.00", "^ ··· ···"),
    "order number": ("2025····-······", "NO.············", "^·············", "A·········", "·····-······", "^···················", "1···············", "#········", "QQ ^········", "SF·············"),
    "coordinate": ("^·.····, -1··.····", "+^·.······", "^·°2·'1·.··\"N", "^.··············"),
    "hash": ("~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~", "~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~", "~~~~~~~", "~~~~~~~~-~~~~-~~~~-~~~~-~~~~~~~~~~~~", "1·········", "16···········"),
    "time or ratio": ("1·:3·:5·", "1·:^", "16:9:4", "1·:30-2^:45", "00:1a:2b:3c:4d:~~", "Gen 1:26-2:^"),
    "handle or file": ("@lighthouse", "user@localhost", "icon@^x.png", "react@1·.2.0", "std::vector", "Foo::bar", "a::b", "ab::cd", "::1", "fe80::1", "R@D", "5 @ 3.50"),
    "inner address": ("192.168.1·.2·", "10.2·.0.^·", "127.0.0.1", "0.0.0.0", "255.255.255.0", "^.9··.1.1"),
    "count or score": ("^· ^· ^· ^·", "^·-^·", "+^··", "^········", "^.·······", "1998 2003 2011", "······", "GB/T ·····-20··", "第^······号", "〔20··〕^·号"),
}  # fmt: skip
"""What stays: · stands for a digit, ^ for one from 1 on, ~ for one of base 16."""
MADE: dict[str, Callable[[random.Random], str]] = {
    "date": _date,
    "wrong check digit": lambda c: _next_digit(
        c.choice((identity(c), luhn("4" + digits(c, 14)), luhn("6225" + digits(c, 11)), iban("DE", digits(c, 18))))
    ),
}
"""More of it."""


def _next_digit(number: str) -> str:
    """With another last digit."""
    return number[:-1] + str((int(number[-1].replace("X", "9")) + 1) % 10)


def lookalike(chance: random.Random, language: str, name: str) -> str:
    """A text that shall stay as it is."""
    before, after = chance.choice(FRAMES[language]).split("{}")
    text = MADE[name](chance) if name in MADE else _filled(chance, chance.choice(LOOKALIKES[name]))
    return before + text + after


def score(language: str, plants: int, seed: int) -> tuple[dict[str, float], dict[str, float], Counter[str]]:
    """Recall by kind of plant, precision by kind of tag, what was masked wrongly by its name."""
    chance = random.Random(seed)
    recall, right, wrong, stray = {}, Counter[str](), Counter[str](), Counter[str]()
    for kind, (tag, _) in KINDS.items():
        found = 0
        for _ in range(plants):
            before, text, after = planted(chance, language, kind)
            masked, counts = mask(before + text + after)
            good = masked == f"{before}<{tag.upper()}>{after}"
            found += good
            right[tag] += good
            if not good and counts:
                wrong.update(counts)
                stray[f"{kind}: {text!r} gave {masked!r}"] += 1
        recall[kind] = found / plants
    for name in (*LOOKALIKES, *MADE):
        for _ in range(plants):
            text = lookalike(chance, language, name)
            masked, counts = mask(text)
            if masked != text:
                wrong.update(counts)
                stray[f"{name}: {text!r} gave {masked!r}"] += 1
    return recall, {tag: right[tag] / max(1, right[tag] + wrong[tag]) for tag in right}, stray
