"""The embedded sample against its truth file: every plant found where it should be, recall and precision measured, nothing lost on the way.

One run of the demo's corpus stages serves all tests. tests/samples/README.md says what is planted.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from shingling import similarity

from flows import recipes
from tasks.corpus.document import text_hash
from tasks.corpus.manifest import Manifest, Store

STAGES = ("extract", "filter", "dedup", "decontaminate")


@dataclass(frozen=True)
class Sample:
    """Truth, and what became of it."""

    truth: dict[str, Any]
    wiki: dict[str, Any]
    main_text: dict[str, str]
    store: Store
    manifests: dict[str, Manifest]
    documents: dict[str, list[dict[str, Any]]]
    """Kept documents by stage."""
    rejects: dict[str, list[dict[str, Any]]]

    def page(self, url: str, stage: str = "decontaminate") -> dict[str, Any] | None:
        """The crawled document of a URL after a stage."""
        return next((row for row in self.documents[stage] if row["url"] == url and row["source"] == "commoncrawl"), None)

    def article(self, title: str, stage: str = "extract") -> dict[str, Any]:
        """The Wikipedia document of a title."""
        return next(row for row in self.documents[stage] if row["title"] == title and row["source"] == "wikipedia")

    def fate(self, url: str) -> tuple[str, str, str]:
        """(stage, reason, value) of a crawled page's removal, or ("kept", "", "")."""
        for stage in STAGES:
            for row in self.rejects[stage]:
                if row["url"] == url and row["source"] == "commoncrawl":
                    return stage, row["reason"], row["value"]
        return ("kept", "", "") if self.page(url) else ("lost", "", "")

    def fates(self, urls: Iterable[str]) -> dict[str, tuple[str, str, str]]:
        return {url: self.fate(url) for url in urls}


@pytest.fixture(scope="module")
def found(sample, sample_run):
    store, manifests = sample_run
    from corpora import rows_of

    whole = json.loads((sample / "truth.json").read_text(encoding="utf-8"))
    rows = {prefix: {stage: rows_of(store, manifests[stage], prefix) for stage in STAGES} for prefix in ("documents-", "rejects-")}
    return Sample(whole["crawl"], whole["wiki"], whole["main_text"], store, manifests, rows["documents-"], rows["rejects-"])


def share(found: Iterable[bool]) -> float:
    answers = list(found)
    return sum(answers) / len(answers)


def test_at_every_stage_kept_and_rejected_rows_are_what_the_books_say(found):
    for stage in STAGES:
        manifest = found.manifests[stage]
        assert manifest.seen == manifest.kept + sum(manifest.rejected.values())
        assert len(found.documents[stage]) == manifest.kept
        assert Counter(row["reason"] for row in found.rejects[stage]) == Counter(manifest.rejected)
    for before, after in pairwise(STAGES):
        assert found.manifests[after].seen == found.manifests[before].kept
        ids = {row["id"] for row in found.documents[after] + found.rejects[after]}
        assert ids == {row["id"] for row in found.documents[before]}


def test_no_record_has_another_ones_identity(found):
    ids = [row["id"] for row in found.documents["extract"] + found.rejects["extract"]]
    assert len(set(ids)) == len(ids)


def test_every_page_of_the_crawl_is_a_document_or_a_reject_once(found):
    named = {url for kind in found.truth.values() if isinstance(kind, list) for url in kind if isinstance(url, str)}
    named |= {pair["b"] for pair in found.truth["near_duplicates"]} | set(found.truth["chain"]["urls"])
    rows = Counter(row["url"] for row in found.documents["extract"] + found.rejects["extract"] if row["source"] == "commoncrawl")
    assert {url: rows[url] for url in named if rows[url] != 1} == {}
    whole = [
        row for row in found.rejects["extract"] if row["reason"] != "clipped_archive" and row["source"] == "commoncrawl" and row["url"]
    ]
    kept = [row for row in found.documents["extract"] if row["source"] == "commoncrawl"]
    assert len(whole) + len(kept) == found.truth["responses"]


def test_ordinary_pages_survive_extraction_and_filter(found):
    fates = found.fates(found.truth["kept"])
    lost = {url: fate for url, fate in fates.items() if fate[0] in ("extract", "filter", "lost")}
    prose = [url for url in found.truth["kept"] if url not in found.truth["layouts"]]
    assert share(url not in lost for url in prose) >= 0.99, lost
    assert share(url not in lost for url in found.truth["kept"]) >= 0.97, lost


def test_main_text_is_found_and_little_else(found):
    recall, precision = [], []
    for url, true in found.main_text.items():
        row = found.page(url, "extract")
        if row is not None:
            wanted, got = Counter(pieces(true)), Counter(pieces(row["text"]))
            both = sum((wanted & got).values())
            recall.append(both / wanted.total())
            precision.append(both / max(1, got.total()))
    assert len(recall) >= 0.99 * len(found.main_text)
    assert sum(recall) / len(recall) >= 0.99
    assert sum(precision) / len(precision) >= 0.97


def pieces(text: str) -> list[str]:
    """Words, and Chinese characters one by one."""
    return "".join(f" {c} " if "\u3400" <= c <= "\u9fff" else c for c in text).split()


def test_near_duplicates_are_found(found):
    pairs = found.truth["near_duplicates"]
    fates = {pair["b"]: (found.fate(pair["a"]), found.fate(pair["b"])) for pair in pairs}
    assert share(sum(fate[0] == "dedup" for fate in both) == 1 for both in fates.values()) >= 0.99, fates


def test_exact_duplicates_are_found_and_one_stays(found):
    for a, b in found.truth["exact_duplicates"]:
        fates = [found.fate(a)[0], found.fate(b)[0]]
        assert sorted(fates) == ["dedup", "kept"], (a, b, found.fate(a), found.fate(b))


def test_every_removal_has_verified_evidence_with_a_document_that_stays(found):
    from corpora import rows_of

    evidence = rows_of(found.store, found.manifests["dedup"], "duplicates-")
    text = {row["id"]: row["text"] for row in found.documents["filter"]}
    stays = {row["id"] for row in found.documents["dedup"]}
    assert {row["id"] for row in evidence} == {row["id"] for row in found.rejects["dedup"]}
    for row in evidence:
        assert row["kept_id"] in stays
        assert row["id"] not in stays
        measured = similarity(text[row["id"]], text[row["kept_id"]])
        assert row["similarity"] == pytest.approx(measured, abs=1e-6)
        assert measured >= recipes.demo().dedup.threshold


def test_removals_are_the_planted_ones(found):
    """Precision of dedup: what goes was planted, or is as similar as a plant to what stays."""
    planted = {url for pair in found.truth["exact_duplicates"] for url in pair} | set(found.truth["chain"]["urls"])
    planted |= {pair[end] for pair in found.truth["near_duplicates"] for end in "ab"}
    removed = {row["url"] for row in found.rejects["dedup"]}
    assert len(removed & planted) >= 0.99 * len(removed), removed - planted


def test_pages_that_are_only_alike_stay(found):
    for pair in found.truth["near_but_kept"]:
        assert found.fates((pair["a"], pair["b"])) == dict.fromkeys((pair["a"], pair["b"]), ("kept", "", ""))


def test_a_chain_loses_its_middle_only(found):
    fates = [found.fate(url)[0] for url in found.truth["chain"]["urls"]]
    assert fates in (["kept", "dedup", "kept"], ["dedup", "kept", "dedup"]), fates
    if fates[1] == "kept":  # then both ends went for B itself
        evidence = {row["id"] for row in found.rejects["dedup"]}
        assert {found.page(url, "filter")["id"] for url in found.truth["chain"]["urls"][::2]} <= evidence


@pytest.mark.parametrize(
    "kind",
    ["spam", "repetition", "short", "links_only", "lorem", "unnatural", "other_language"],
)
def test_pages_of_no_use_are_all_rejected(kind, found):
    fates = found.fates(found.truth[kind])
    assert {stage for stage, _, _ in fates.values()} <= {"extract", "filter"}, fates


def test_each_is_rejected_for_a_reason_of_its_kind(found):
    reasons = {kind: [found.fate(url)[1] for url in found.truth[kind]] for kind in ("other_language", "lorem", "repetition")}
    assert set(reasons["other_language"]) == {"language"}, reasons
    assert any("lorem" in reason for reason in reasons["lorem"]), reasons
    assert share(any(word in reason for word in ("rep", "dup", "gram")) for reason in reasons["repetition"]) >= 0.5, reasons


def test_personal_data_is_masked(found):
    missed, asked = [], 0
    for plant in found.truth["pii"]:
        row = found.page(plant["url"], "filter")
        assert row is not None, found.fate(plant["url"])
        asked += 1
        if plant["text"] in row["text"]:
            missed.append(plant)
    assert asked == len(found.truth["pii"])
    assert missed == []
    for url in {plant["url"] for plant in found.truth["pii"]}:
        assert found.page(url, "filter")["masked"] >= 1


def test_look_alikes_of_personal_data_stay(found):
    touched = [
        plant
        for plant in found.truth["not_pii"]
        if (before := found.page(plant["url"], "extract")) is not None
        and plant["text"] in before["text"]
        and plant["text"] not in found.page(plant["url"], "filter")["text"]
    ]
    assert touched == []
    looked_at = [
        plant for plant in found.truth["not_pii"] if plant["text"] in (found.page(plant["url"], "extract") or {"text": ""})["text"]
    ]
    assert len(looked_at) >= 0.9 * len(found.truth["not_pii"])


def test_only_pages_with_personal_data_are_masked(found):
    planted = {plant["url"] for plant in found.truth["pii"]}
    masked = {row["url"] for row in found.documents["filter"] if row["masked"]}
    assert masked == planted


def test_contaminated_pages_are_removed_and_attributed(found):
    for url in found.truth["contaminated"]:
        stage, reason, value = found.fate(url)
        assert stage == "decontaminate", (url, stage, reason)
        assert "facts" in f"{reason} {value}", (reason, value)


def test_decontamination_removes_little_else(found):
    others = [row["url"] or row["title"] for row in found.rejects["decontaminate"] if row["url"] not in found.truth["contaminated"]]
    assert len(others) <= 0.02 * found.manifests["decontaminate"].seen, others


def test_pages_of_any_charset_are_read_right(found):
    wrong = [
        (plant["url"], plant["encoding"])
        for plant in found.truth["charset"]
        if plant["expect_contains"] not in (found.page(plant["url"], "extract") or {"text": ""})["text"]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("not_html", {"not_html"}),
        ("not_found", {"http_status"}),
        ("redirect", {"http_status", "redirect"}),
        ("empty", {"empty"}),
        ("deep", {"too_deep"}),
        ("huge", {"too_many_nodes"}),
        ("clipped", {"clipped_archive"}),
        ("truncated", {"truncated"}),
    ],
)
def test_bad_records_are_set_aside_under_their_reason(kind, reasons, found):
    fates = found.fates(found.truth[kind])
    assert {stage for stage, _, _ in fates.values()} == {"extract"}, fates
    assert {reason for _, reason, _ in fates.values()} <= reasons, fates


def test_rejects_lead_back_to_their_bytes(found, sample):
    for row in found.documents["extract"] + found.rejects["extract"]:
        if row["source"] == "commoncrawl" and row["origin_length"] > 0:
            raw = (sample / "commoncrawl" / row["origin_file"]).read_bytes()[row["origin_offset"] :][: row["origin_length"]]
            assert raw[:3] == b"\x1f\x8b\x08"
            assert len(raw) == row["origin_length"]


def test_redirects_disambiguations_and_other_namespaces_of_wikis_are_set_aside(found):
    counts = Counter(row["reason"] for row in found.rejects["extract"] if row["source"] == "wikipedia")
    assert counts["redirect"] == len(found.wiki["redirects"])
    assert counts["disambiguation"] == len(found.wiki["disambiguation"])
    assert counts["namespace"] == len(found.wiki["other_namespace"])
    kept = Counter(row["snapshot"][:2] for row in found.documents["extract"] if row["source"] == "wikipedia")
    assert kept == Counter(found.wiki["articles"])


def test_wiki_articles_survive_the_filter(found):
    lost = [(row["url"], row["reason"], row["value"]) for row in found.rejects["filter"] if row["source"] == "wikipedia"]
    assert len(lost) <= 0.01 * sum(found.wiki["articles"].values()), lost


def test_variant_markup_is_resolved_to_the_script_of_the_page(found):
    wrong = []
    for plant in found.wiki["variant_markup"]:
        text = found.article(plant["title"])["text"]
        if plant["expect_contains"] not in text or plant["expect_absent"] in text:
            wrong.append(plant)
    assert wrong == []
    assert not [row["title"] for row in found.documents["extract"] if "-{" in row["text"] or "}-" in row["text"]]


def test_wikitext_leaves_no_markup(found):
    marked = [
        row["title"]
        for row in found.documents["extract"]
        if row["source"] == "wikipedia" and any(m in row["text"] for m in ("{{", "[[", "<ref", "'''", "{|"))
    ]
    assert marked == []


def test_the_script_column_tells_traditional_from_simplified(found):
    chinese = [row for row in found.documents["filter"] if row["source"] == "wikipedia" and row["snapshot"].startswith("zh")]
    traditional = {row["title"] for row in chinese if row["script"] == "Hant"}
    assert traditional == set(found.wiki["traditional"])
    assert {row["script"] for row in chinese} == {"Hans", "Hant"}
    assert {row["script"] for row in found.documents["filter"] if row["language"] == "en"} == {""}


def test_languages_are_recognised(found):
    wrong = [
        (row["title"], row["language"])
        for row in found.documents["filter"]
        if row["source"] == "wikipedia" and not row["snapshot"].startswith(row["language"])
    ]
    assert wrong == []


def test_filtered_documents_carry_their_signals_and_hash(found):
    for row in found.documents["filter"]:
        assert row["text_hash"] == text_hash(row["text"])
        assert row["words"] > 0
        assert 0 < row["language_score"] <= 1.001


def test_every_licence_is_stated(found):
    licences = {
        source: {row["license"] for row in found.documents["decontaminate"] if row["source"] == source}
        for source in ("commoncrawl", "wikipedia", "files")
    }
    assert licences == {"commoncrawl": {"Common Crawl terms of use"}, "wikipedia": {"CC BY-SA 4.0"}, "files": {"CC0-1.0"}}


def test_every_kind_of_local_file_gives_documents(found):
    kinds = {row["origin_file"].rpartition(".")[2] for row in found.documents["decontaminate"] if row["source"] == "files"}
    assert kinds == {"txt", "md", "jsonl", "html", "epub"}


def test_shards_hold_the_whole_corpus_and_tokens_spell_its_texts(found):
    from model.shards import Shard
    from model.tokenizer import load
    from tasks.corpus.document import read_rows

    manifest, tokens = found.manifests["encode"], found.manifests["tokenizer"]
    tokenizer = load(found.store.dir(tokens.address) / "tokenizer")
    text = {row["id"]: row["text"] for row in found.documents["decontaminate"]}
    for file in manifest.files:
        if file.path.endswith(".bin"):
            prefix = found.store.dir(manifest.address) / file.path.removesuffix(".bin")
            listed = [row["id"] for row in read_rows([prefix.with_name(prefix.name + ".documents.parquet")])]
            shard = Shard(str(prefix))
            assert len(shard) == len(listed)
            for number, id in enumerate(listed):
                assert tokenizer.decode(shard[number][:-1].tolist(), skip_special_tokens=False) == text.pop(id)
    assert text == {}
