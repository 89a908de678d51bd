"""Masking of personal data: planted strings of every kind go, what only looks like them stays."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from personal_data import digits, iban, identity, luhn, score

from tasks.corpus.pii import is_account, is_card, is_chinese_id, mask

PLANTED = {
    "email": ["ann@host.org", "a.b+c@mail.example.co.uk", "lan_ting@lanting-mail.cn", "X-1@y-z.io"],
    "ip": ["8.8.4.4", "203.0.113.7", "93.184.216.34", "2001:4860:4860::8888", "2a00:1450:4001:81b::200e"],
    "id": ["320106198409217323", "110108197203150847", "11010519491231002X"],
    "phone": [
        "13812345678", "138 1234 5678", "138-1234-5678", "+86 13712345678", "0086-136-0011-2233", "+44 20 7946 0958", "+1 (212) 555-0142",
        "+49 30 23125 117", "+33 1 99 00 27 41", "(212) 555-0142", "212-555-0142", "+861 3712345678",
    ],
}  # fmt: skip
LOOKALIKES = [
    "1,299.50", "2019-2023", "20240317-000481", "978-0-306-40615-7", "2019-06-16", "10:30 to 17:45", "4.0.12.300", "3.11.4", "192.168.1.20", "51.4779, -0.0015",
    "12-345-678", "35.00", "13812345678901", "110105194912310021", "128.50", "10.0.0.1", "127.0.0.1", "::1", "12:30:45", "v1.2.3", "user@host", "3.14159265358979",
    "ISBN 978-7-5327-1234-5", "1998 2003 2011", "+5", "a@b", "QQ 12345678", "1000000000000000000",
]  # fmt: skip
FRAMES = ["Reach us: {}.", "({})", "请联系{}，谢谢。", "{}", "one {} two", "电话：{}；"]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in PLANTED.items() for text in texts])
def test_planted_personal_data_goes_whole_wherever_it_stands(kind, text):
    for frame in FRAMES:
        masked, counts = mask(frame.format(text))
        assert counts == {kind: 1} and masked == frame.format(f"<{kind.upper()}>"), masked


@pytest.mark.parametrize("text", LOOKALIKES)
def test_what_only_looks_like_personal_data_stays(text):
    for frame in FRAMES:
        assert mask(frame.format(text)) == (frame.format(text), {})


def test_recall_and_precision_over_shuffled_plants():
    chance = random.Random(5)
    items = [(kind, text) for kind, texts in PLANTED.items() for text in texts] * 20 + [("", text) for text in LOOKALIKES] * 20
    chance.shuffle(items)
    masked, counts = mask(" ; ".join(text for _, text in items))
    assert dict(counts) == {kind: 20 * len(texts) for kind, texts in PLANTED.items()}
    assert all(text in masked for text in LOOKALIKES)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_kind_is_found_and_little_else_in_either_language(language):
    """The table of tests/benchmarks/pii_quality.py, smaller."""
    recall, precision, wrong = score(language, 120, seed=11)
    assert {kind: value for kind, value in recall.items() if value < 0.95} == {}, wrong
    assert {kind: value for kind, value in precision.items() if value < 0.95} == {}, wrong
    assert (len(recall), len(precision)) == (11, 6)


@given(st.randoms(use_true_random=False))
def test_another_check_digit_makes_another_number(chance):
    """Of ten last digits one is right: for cards, accounts and identity numbers alike."""
    for number, holds in (
        (luhn("4" + digits(chance, 14)), is_card),
        (iban("DE", digits(chance, 18)), is_account),
        (identity(chance), is_chinese_id),
    ):
        assert [c for c in ("0123456789X" if holds is is_chinese_id else "0123456789") if holds(number[:-1] + c)] == [number[-1]]


def test_half_of_a_number_is_not_taken_for_a_whole_one():
    """A number is looked at with some characters before it, which may end another."""
    assert mask("at 192.168.1.20 and 1998 2003 2011 or 10.99.88.77 ;") == ("at 192.168.1.20 and 1998 2003 2011 or 10.99.88.77 ;", {})
    assert mask("1" * 5000 + " 13812345678")[0] == "1" * 5000 + " 13812345678"[:0] + " <PHONE>"


@given(st.integers(0, 999), st.dates(), st.integers(0, 999))
def test_exactly_one_check_digit_makes_an_id(region, born, order):
    head = f"{110000 + region}{born:%Y%m%d}{order:03d}".replace(" ", "0")
    good = [c for c in "0123456789X" if is_chinese_id(head + c)] if len(head) == 17 else [1]
    assert len(good) == (1 if len(head) != 17 or 1900 <= born.year <= 2099 else 0)


@given(st.text(alphabet=st.sampled_from("0123456789.+-: ()@abXx电话"), max_size=80))
def test_masking_is_idempotent_and_never_fails(text):
    once, _ = mask(text)
    assert mask(once)[0] == once or len(mask(once)[0]) < len(once)


def test_the_sample_plants_and_lookalikes(sample):
    truth = json.loads((sample / "truth.json").read_text())["crawl"]
    assert [row["text"] for row in truth["pii"] if sum(mask(f"an {row['text']} is")[1].values()) != 1] == []
    assert [row["text"] for row in truth["not_pii"] if mask(f"an {row['text']} is")[1]] == []
