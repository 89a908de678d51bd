"""Properties of model/evaluate.py: scores equal their definitions, ties are wrong, files are read or refused by line."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model import evaluate, tokenizer
from model.config import qwen3
from model.errors import EmptyError, InputError
from model.transformer import Transformer

DATA = Path(__file__).resolve().parents[2].parent / "shared/data/eval"
real = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent: the real evaluation sets are not read")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tokenizer.train(["the lamp of the lighthouse was lit every night; 灯塔的灯每夜点亮。 Question: Answer:"] * 5, 512)


@pytest.fixture(scope="module")
def model(words: Tokenizer) -> Transformer:
    made = Transformer(qwen3(32, 2, 4, 2, 48, 32), tokenizer.vocab_size(words))
    made.init_weights(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return made


@pytest.fixture(scope="module")
def flat(words: Tokenizer) -> Transformer:
    """Every token equally likely after anything."""
    made = Transformer(qwen3(16, 1, 2, 1, 16, 32), tokenizer.vocab_size(words))
    made.init_weights(0)
    torch.nn.init.zeros_(made.embed.weight)
    return made


@torch.no_grad()
def reference(model: Transformer, ids: list[int], first: int) -> float:
    """Σ ln p by one pass over one sequence, in the order of the definition."""
    logits = model.eval()(torch.tensor([ids]))[0].double()
    return sum(float(logits[t - 1, ids[t]] - logits[t - 1].logsumexp(0)) for t in range(first, len(ids)))


@given(st.integers(1, 200), st.integers(8, 40))
def test_windows_score_every_token_but_the_first_once_behind_half_a_context(length: int, context: int) -> None:
    scored = []
    for start, stop, first in evaluate.windows(length, context):
        assert 0 <= start < stop <= length and stop - start <= context and first >= 1
        assert start == 0 or first >= context // 2
        scored += range(start + first, stop)
    assert scored == list(range(1, length))


def test_log_likelihoods_equal_single_passes_in_any_batch(model: Transformer, words: Tokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    sequences = [
        (tuple(torch.randint(0, 250, (length,), generator=generator).tolist()), first)
        for length, first in [(9, 1), (3, 2), (32, 20), (1, 1), (9, 8), (2, 1), (9, 1)]
    ]
    expected = [reference(model, list(ids), first) for ids, first in sequences]
    for batch in (1, 3, 100):
        assert evaluate.log_likelihoods(model, words, sequences, batch) == pytest.approx(expected, abs=1e-4)


def test_bits_per_byte_of_a_flat_model_counts_tokens(flat: Transformer, words: Tokenizer) -> None:
    rows = [{"text": "the lamp was lit", "language": "en"}, {"text": "灯塔的灯" * 30, "language": "zh"}, {"text": ""}]
    result = evaluate.bits_per_byte(flat, words, rows)
    sizes = [len(tokenizer.encode(words, row["text"])) + 1 for row in rows]
    bits = [math.log2(words.get_vocab_size()) + (size - 1) * math.log2(flat.vocab) for size in sizes]
    assert result["bits_per_byte/en"] == pytest.approx(bits[0] / 16)
    assert result["bits_per_byte/zh"] == pytest.approx(bits[1] / 360)
    assert result["bits_per_byte"] == pytest.approx((bits[0] + bits[1]) / 376)
    assert (result["bits_per_byte/n"], result["bits_per_byte/en/n"], result["bits_per_byte/zh/n"]) == (2, 1, 1)


def test_bits_per_byte_of_a_short_document_is_its_code_length(model: Transformer, words: Tokenizer) -> None:
    text = "the lamp 灯塔"
    ids = [*tokenizer.encode(words, text), tokenizer.END_OF_TEXT]
    assert len(ids) < 32
    nats = math.log(words.get_vocab_size()) - reference(model, ids, 1)
    result = evaluate.bits_per_byte(model, words, [{"text": text}])
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)


def test_bits_per_byte_do_not_depend_on_batches(model: Transformer, words: Tokenizer) -> None:
    rows = [{"text": "the lamp of the night " * n, "language": "en"} for n in range(1, 12)]
    one = evaluate.bits_per_byte(model, words, rows, batch=1)
    many = evaluate.bits_per_byte(model, words, iter(rows), batch=16)
    assert one == pytest.approx(many, rel=1e-6)


def test_held_out_documents_without_text_are_refused(model: Transformer, words: Tokenizer) -> None:
    with pytest.raises(EmptyError, match="no held-out document"):
        evaluate.bits_per_byte(model, words, [{"text": ""}])


def test_minimal_pairs_count_the_more_probable_sentence_and_average_files(model: Transformer, words: Tokenizer) -> None:
    sentences = ["the lamp was lit", "every lamp", "the night of the lamp", "a lighthouse lit the night", "night night", "was the lit lamp"]
    pairs = [{"sentence_good": good, "sentence_bad": bad} for good in sentences for bad in sentences if good != bad]
    files = {"one": pairs[:20], "two": pairs[20:]}
    result = evaluate.minimal_pairs(model, words, files, batch=7)
    for name, rows in files.items():
        right = [
            reference(model, tokenizer.encode(words, row["sentence_good"]), 1)
            > reference(model, tokenizer.encode(words, row["sentence_bad"]), 1)
            for row in rows
        ]
        share = sum(right) / len(rows)
        assert result[f"minimal_pairs/{name}"] == share
        assert result[f"minimal_pairs/{name}/stderr"] == pytest.approx(math.sqrt(share * (1 - share) / len(rows)))
    assert result["minimal_pairs"] == pytest.approx((result["minimal_pairs/one"] + result["minimal_pairs/two"]) / 2)
    assert result["minimal_pairs/n"] == 30
    assert 0 < result["minimal_pairs"] < 1


def test_ties_are_wrong_and_long_pairs_are_counted_aside(flat: Transformer, model: Transformer, words: Tokenizer) -> None:
    same = [{"sentence_good": "the lamp", "sentence_bad": "the lamp"}] * 3 + [{"sentence_good": "lamp " * 99, "sentence_bad": "lamp"}]
    for one in (flat, model):
        result = evaluate.minimal_pairs(one, words, {"same": same}, batch=2)
        assert (result["minimal_pairs/same"], result["minimal_pairs/same/n"], result["minimal_pairs/same/set_aside"]) == (0, 3, 1)
    choice = evaluate.multiple_choice(flat, words, {"same": [{"query": "the", "choices": ["lamp", "lamp"], "gold": 0}]})
    assert (choice["choice/same"], choice["choice_norm/same"], choice["choice/same/chance"]) == (0, 0, 0.5)
    with pytest.raises(EmptyError, match="none of 1 items fits"):
        evaluate.minimal_pairs(model, words, {"long": same[3:]})


def test_choices_are_scored_after_the_query_by_sum_and_by_byte(flat: Transformer, words: Tokenizer) -> None:
    # a flat model prefers fewer tokens by sum, and fewer tokens a byte by norm
    rows = [
        {"query": "every night", "choices": ["lamp", "zzzzzz"], "gold": 0},
        {"query": "every night", "choices": ["lamp", "zzzzzz"], "gold": 1},
        {"query": "every night", "choices": ["z", "the lighthouse lamp", "zzzz"], "gold": 1},
    ]
    counts = [[len(tokenizer.encode(words, f" {choice}")) for choice in row["choices"]] for row in rows]
    assert counts[2][0] < counts[2][1] and counts[2][1] / 19 < counts[2][0]
    result = evaluate.multiple_choice(flat, words, {"set": rows})
    assert result["choice/set"] == pytest.approx(1 / 3)
    assert result["choice_norm/set"] == pytest.approx(2 / 3)
    assert result["choice/set/chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    assert (result["choice"], result["choice_norm"]) == (result["choice/set"], result["choice_norm/set"])


def test_a_long_query_loses_its_beginning_and_a_long_choice_is_set_aside(model: Transformer, words: Tokenizer) -> None:
    query = "every lighthouse " * 30 + "lit the"
    row = {"query": query, "choices": ["lamp", "night"], "gold": 0}
    pieces = evaluate._question(row, words, 32)
    whole = tokenizer.encode(words, query) + tokenizer.encode(words, " lamp")
    assert list(pieces[0][0]) == whole[-32:] and pieces[0][1] == 32 - len(tokenizer.encode(words, " lamp"))
    result = evaluate.multiple_choice(model, words, {"x": [row, row | {"choices": ["lamp", "z" * 99]}]})
    assert (result["choice/x/n"], result["choice/x/set_aside"]) == (1, 1)


def test_questions_are_followed_by_answer(words: Tokenizer) -> None:
    ids, first = evaluate._question({"query": "Question: who lit the lamp?\n", "choices": ["every night", "x"], "gold": 0}, words, 64)[0]
    assert words.decode(ids[:first]) == "Question: who lit the lamp?\nAnswer:"
    assert words.decode(ids[first:]) == " every night"
    assert list(ids) == tokenizer.encode(words, "Question: who lit the lamp?\nAnswer: every night")


def test_samples_continue_or_answer_each_prompt(model: Transformer, words: Tokenizer) -> None:
    for as_chat in (False, True):
        rows = evaluate.samples(model, words, ("the lamp", "灯"), 4, as_chat)
        assert [row["prompt"] for row in rows] == ["the lamp", "灯"]
        assert all(row["finished"] in ("stop", "length") and isinstance(row["text"], str) for row in rows)
    assert evaluate.samples(model, words, (), 4) == []


PAIR = {"sentence_good": "a", "sentence_bad": "b"}
CHOICE = {"query": "q", "choices": ["a", "b"], "gold": 1}


def write(path: Path, *lines: str) -> Path:
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_plain_and_zipped_files_are_read(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.jsonl.gz"):
        pairs = [PAIR | {"item": f"line {number}"} for number in (1, 3)]
        assert evaluate.read_pairs(write(tmp_path / name, json.dumps(PAIR), "", json.dumps(PAIR))) == pairs
        assert evaluate.read_choices(write(tmp_path / name, json.dumps(CHOICE | {"id": 7}))) == [CHOICE | {"id": 7, "item": "7"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sentence_good": "a"', "line 2: "),
        ("[1]", "line 2: sentence_good, sentence_bad missing"),
        ('{"sentence_good": "a"}', "line 2: sentence_bad missing"),
        ('{"sentence_good": "a", "sentence_bad": 3}', "line 2: sentence_bad missing, empty or of a wrong type"),
        ('{"sentence_good": "", "sentence_bad": "b"}', "line 2: sentence_good missing, empty"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluate.read_pairs(write(tmp_path / "x.jsonl", json.dumps(PAIR), line))
    assert "x.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"gold": 2}, {"gold": -1}, {"gold": True}, {"choices": ["a"]}, {"choices": ["a", 1]}, {"choices": ["a", ""]}]
)
def test_a_row_that_is_no_choice_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"x\.jsonl (line|item) 2"):
        evaluate.read_choices(write(tmp_path / "x.jsonl", json.dumps(CHOICE), json.dumps(CHOICE | change)))


def test_damaged_empty_and_absent_files_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.jsonl.gz", *[json.dumps(PAIR)] * 500).read_bytes()
    (tmp_path / "clipped.jsonl.gz").write_bytes(whole[:-20])
    (tmp_path / "latin.jsonl").write_bytes(b'{"sentence_good": "caf\xe9"}\n')
    (tmp_path / "none.jsonl").write_bytes(b"")
    for name in ("clipped.jsonl.gz", "latin.jsonl", "none.jsonl", "absent.jsonl"):
        with pytest.raises(InputError, match=name):
            evaluate.read_pairs(tmp_path / name)


@real
@pytest.mark.realdata
def test_every_real_set_is_read(words: Tokenizer) -> None:
    pairs = [evaluate.read_pairs(path) for path in sorted((DATA / "blimp/data").glob("*.jsonl.gz"))]
    assert len(pairs) == 33 and all(len(rows) == 1000 for rows in pairs)
    for name, least in (("commonsense_reasoning/copa", 90), ("commonsense_reasoning/piqa", 1500), ("world_knowledge/arc_easy", 2000)):
        assert len(evaluate.read_choices(DATA / f"llm-foundry/{name}.jsonl.gz")) >= least
    with pytest.raises(InputError, match="query, choices, gold missing"):
        evaluate.read_choices(DATA / "llm-foundry/symbolic_problem_solving/svamp.jsonl.gz")


def test_shots_stand_before_the_question_and_are_not_scored(model: Transformer, words: Tokenizer) -> None:
    rows = [{"query": f"Question: lamp {n}", "choices": ["lit", "night"], "gold": n % 2} for n in range(4)]
    result = evaluate.multiple_choice(model, words, {"set": rows}, shots=1)
    assert set(result) >= {"choice_1shot/set", "choice_norm_1shot", "choice_1shot/set/chance"} and result["choice_1shot/set/n"] == 3
    shown = "Question: lamp 0\nAnswer: lit\n\nQuestion: lamp 3\nAnswer:"
    expected = []
    for choice in (" lit", " night"):
        before, ids = tokenizer.encode(words, shown), tokenizer.encode(words, choice)
        if len(before) + len(ids) > model.room:  # the shot goes before the question loses anything
            before = tokenizer.encode(words, shown.split("\n\n")[1])
        expected.append(((*before, *ids), len(before)))
    assert evaluate._question(rows[3], words, model.room, [shown.split("Question: lamp 3")[0]]) == expected
    with pytest.raises(EmptyError, match="1 items are too few for 1 shots"):
        evaluate.multiple_choice(model, words, {"set": rows[:1]}, shots=1)


def test_similarity_is_the_rank_correlation_of_cosines_of_mean_states(model: Transformer, words: Tokenizer) -> None:
    from scipy.stats import spearmanr

    texts = ["the lamp", "every night", "灯塔", "the lighthouse was lit", "a", "night lamp"]
    rows = [{"text_a": a, "text_b": b, "score": float(n % 7)} for n, (a, b) in enumerate((a, b) for a in texts for b in texts if a < b)]

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(torch.tensor([tokenizer.encode(words, text)]), hidden=True)[0].mean(0)

    cosines = [float(torch.cosine_similarity(vector(row["text_a"]), vector(row["text_b"]), dim=0)) for row in rows]
    found: list[evaluate.Item] = []
    result = evaluate.similarity(model, words, {"set": rows}, batch=4, found=found)
    assert [item.value for item in found] == pytest.approx(cosines, abs=1e-5)
    assert result["similarity/set"] == pytest.approx(spearmanr(cosines, [row["score"] for row in rows]).statistic, abs=1e-6)
    assert result["similarity"] == result["similarity/set"] and result["similarity/n"] == len(rows)


def test_bits_per_byte_are_told_by_source_too(model: Transformer, words: Tokenizer) -> None:
    rows = [{"text": "the lamp", "language": "en", "source": "books"}, {"text": "灯塔", "language": "zh", "source": "wikipedia"}]
    result = evaluate.bits_per_byte(model, words, rows)
    assert result["bits_per_byte/books"] == result["bits_per_byte/en"] and result["bits_per_byte/wikipedia/n"] == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "one,two\n", "row 1: it must be two texts and a number"),
        ("a.jsonl", '{"text_a": "x", "text_b": "y", "score": "5"}\n', "line 1: score"),
    ],
)
def test_pairs_without_a_score_are_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        evaluate.read_similarities(tmp_path / name)
    (tmp_path / "good.csv").write_text('"one, two",three,4.5\n')
    assert evaluate.read_similarities(tmp_path / "good.csv") == [{"text_a": "one, two", "text_b": "three", "score": 4.5, "item": "line 1"}]
