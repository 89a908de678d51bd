"""The filter stage: language, the quality rules of Gopher, C4 and FineWeb, masking of personal data. Documents in; fewer out, cleaner.

    run(store, recipe, config, {"extract": …}, engine) -> manifest: documents- and rejects- parts

The rules are those of datatrove's filters, with its thresholds for English and spaced scripts and FineWeb2's for Chinese (`rules_of`); their reasons
are datatrove's, with the rule's name before. Compiled kernels measure every signal at once (signals.py); a decision is a threshold over signals, which
stay in the rows of kept and rejected documents, so that other thresholds are counted without the texts (`recount`).
Order: block-lists → language → repetition → Gopher quality → C4 → FineWeb → quality model → masking.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from model.config import STRICT
from model.errors import ConfigError
from tasks.corpus import blocklist, quality_model
from tasks.corpus.blocklist import Blocklist
from tasks.corpus.document import PartWriter, read_rows, text_hash
from tasks.corpus.engine import EngineConfig, books, run_ranks
from tasks.corpus.language import detect
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage
from tasks.corpus.pii import mask
from tasks.corpus.quality_model import Models
from tasks.corpus.signals import LineRules, Measured, measure
from tasks.corpus.textnorm import script
from tasks.corpus.words import CHINESE, splitter

STAGE = Stage("filter", 3)
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
CHINESE_STOP_WORDS = tuple("的了是在和有我不这這他也就人与與为為而之以其于於者")


@dataclass(frozen=True)
class FilterConfig:
    """Which languages and which rules."""

    __pydantic_config__ = STRICT

    languages: tuple[str, ...]
    """ISO 639 codes to keep (zh, and apart from it yue Cantonese, wuu, lzh Classical Chinese); empty keeps all."""
    min_language_score: Annotated[float, Field(ge=0, le=1)]
    """Least score of the language model."""
    gopher: bool
    """Gopher's quality rules: length, word length, symbols, bullets, ellipses, letters, stop words."""
    repetition: bool
    """Gopher's repetition rules: duplicated lines, paragraphs and n-grams."""
    c4: bool
    """C4's rules as FineWeb uses them (lines without end punctuation stay): long words, short lines, javascript, policies, lorem ipsum, brackets, five sentences."""
    fineweb: bool
    """FineWeb's own rules: end punctuation of lines, short lines, duplicated lines, lists."""
    crawl_rules_on: tuple[str, ...]
    """Sources to which C4's and FineWeb's rules apply: they were made for crawled pages and misjudge encyclopaedic lists and poems."""
    min_quality: dict[str, Annotated[float, Field(ge=0, le=1)]]
    """Least score of the quality model by language, {"en": 0.1}; a language without one has no bound. It holds for the sources of `crawl_rules_on`."""
    mask_personal_data: bool
    """Replace e-mail and IP addresses, phone and Chinese ID numbers by tags."""


def run(
    store: Store,
    recipe: str,
    config: FilterConfig,
    inputs: Mapping[str, Manifest],
    engine: EngineConfig,
    progress: Progress = lambda done, total, unit: None,
    rebuild: bool = False,
) -> Manifest:
    """Filter the input "extract", by the lists of "blocklist" and the models of "quality_model" where these are given.

    `info`: pieces of personal data masked, by kind; entries of the block-lists, by kind.
    """

    def body(work: Work) -> Result:
        source = work.inputs["extract"]
        lists, judges = work.inputs.get("blocklist"), work.inputs.get("quality_model")
        more: dict[str, Any] = {"models": quality_model.of_manifest(store, judges)} if judges else {}
        entries = blocklist.compile_lists([store.path(lists, f) for f in lists.files], work.scratch / "blocklist") if lists else {}
        if lists:
            more["blocklist"] = str(work.scratch / "blocklist")
        items = [{"path": str(store.path(source, part)), "rows": part.rows} | more for part in source.parts()]
        summaries = run_ranks(work, "tasks.corpus.quality:filter_rank", config, items, engine)
        kinds = sorted({kind for s in summaries for kind in s["info"]["masked"]})
        masked = {kind: sum(s["info"]["masked"].get(kind, 0) for s in summaries) for kind in kinds}
        return books(summaries, masked=masked, blocklist=entries)

    return run_stage(store, STAGE, recipe, config, inputs, body, progress, rebuild)


def filter_rank(config: FilterConfig, item: Mapping[str, Any], out: PartWriter) -> dict[str, Any]:
    """One part: documents in, kept and rejected out."""
    masked: dict[str, int] = {}
    lists = blocklist.shared(item["blocklist"]) if "blocklist" in item else None
    models = quality_model.shared(item["models"]) if "models" in item else None
    for row in read_rows([Path(item["path"])]):
        reason, value = judge(config, row, lists, models)
        if reason:
            out.reject(row, reason, value)
            continue
        if config.mask_personal_data:
            row["text"], counts = mask(row["text"])
            row["masked"] = sum(counts.values())
            for kind, count in counts.items():
                masked[kind] = masked.get(kind, 0) + count
        row["text_hash"] = text_hash(row["text"])
        out.keep(row)
    return {"masked": masked}


def judge(config: FilterConfig, row: dict[str, Any], lists: Blocklist | None = None, models: Models | None = None) -> tuple[str, str]:
    """Reason and value of a rejection, ('', '') for a document that stays. Fills language, language_score, script, words, signals; C4 may drop lines of
    the text."""
    listed = lists.find(row["url"]) if lists else ("", "")
    if listed[0]:
        return listed
    row["language"], row["language_score"] = detect(row["text"])
    row["script"] = script(row["text"]) if row["language"] in CHINESE else ""
    if config.languages and row["language"] not in config.languages:
        return "language", row["language"]
    if row["language_score"] < config.min_language_score:
        return "language_score", f"{row['language']} {row['language_score']:.3f}"
    missing = splitter(row["language"]).missing
    if missing:
        return "no_word_splitter", missing
    crawl = row["source"] in config.crawl_rules_on
    found = signals_of(row["text"], row["language"], config.repetition, config.gopher, config.c4 and crawl, config.fineweb and crawl)
    found.values["quality"] = models.score(row["text"], row["language"], quality_model.half_of(row)) if models and crawl else None
    row["signals"], row["words"] = found.values, int(found.values["words"] or 0)
    broken = decide(rules_of(row["language"], config.min_quality.get(row["language"], 0.0)), found.values)
    if broken:
        return broken.reason, f"{found.values[broken.signal]:.4g}"
    if row["text"] and not found.text:
        return "c4_empty", f"{row['words']} words"
    row["text"], row["words"] = found.text, found.words
    return "", ""


def signals_of(text: str, language: str, repetition: bool, gopher: bool, c4: bool, fineweb: bool) -> Measured:
    """What the families of rules that are asked for measure, by the language's words, stop words and rules about lines."""
    chinese = language in CHINESE
    stop_words = CHINESE_STOP_WORDS if chinese else STOP_WORDS
    lines = LineRules(0, 0) if chinese else LineRules(max_word_length=1000, min_words=3)
    return measure(text, splitter(language), stop_words, lines, repetition=repetition, gopher=gopher, c4=c4, fineweb=fineweb)


@dataclass(frozen=True)
class Rule:
    """A document goes whose signal lies outside of [least, most]; one without the signal stays."""

    reason: str
    signal: str
    least: float = -math.inf
    most: float = math.inf


def decide(rules: Sequence[Rule], signals: Mapping[str, float | None]) -> Rule | None:
    """The first rule that a document breaks."""
    for rule in rules:
        value = signals[rule.signal]
        if value is not None and not rule.least <= value <= rule.most:
            return rule
    return None


@cache
def rules_of(language: str, min_quality: float = 0.0) -> tuple[Rule, ...]:
    """The rules for a language in datatrove's order, then the bound of the quality model's score.

    English: datatrove's thresholds, C4 without its line-end rule (as FineWeb uses it). Other languages: the same without the English stop words.
    Chinese: the thresholds of FineWeb2 for cmn_Hani (https://github.com/huggingface/fineweb-2, configs/cmn_Hani.yml and fineweb-2-pipeline.py), with stop
    words for both scripts and for Classical Chinese. FineWeb2 leaves C4 out; of it the rules that need no spaces between words stand here: lines with
    javascript or a policy, pages with lorem ipsum or a curly bracket.
    """
    chinese = language in CHINESE

    def pick(spaced: float, han: float) -> float:
        return han if chinese else spaced

    def share(name: str, most: float) -> Rule:
        return Rule(f"gopher_rep_{name}", f"gopher_rep_{name}", most=most)

    top = ((2, pick(0.2, 0.256)), (3, pick(0.18, 0.201)), (4, pick(0.16, 0.171)))
    repeated = zip(
        range(5, 11), (0.198, 0.182, 0.167, 0.154, 0.14, 0.127) if chinese else (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True
    )
    whole = () if chinese else (share("dup_para_frac", 0.3), share("dup_para_char_frac", 0.2))
    return (
        Rule("gopher_rep_empty", "characters", least=1),
        *whole,
        share("dup_line_frac", pick(0.3, 0.287)),
        *(() if chinese else (share("dup_line_char_frac", 0.2),)),
        *(share(f"top_{n}_gram", most) for n, most in top),
        *(share(f"duplicated_{n}_n_grams", most) for n, most in repeated),
        Rule("gopher_short_doc", "gopher_words", least=50),
        Rule("gopher_long_doc", "gopher_words", most=100_000),
        Rule("gopher_below_avg_threshold", "gopher_word_length", least=pick(3, 1)),
        Rule("gopher_above_avg_threshold", "gopher_word_length", most=pick(10, 5)),
        Rule("gopher_too_many_hashes", "gopher_hashes", most=0.1),
        Rule("gopher_too_many_ellipsis", "gopher_ellipses", most=0.1),
        Rule("gopher_too_many_bullets", "gopher_bullet_lines", most=0.9),
        Rule("gopher_too_many_end_ellipsis", "gopher_ellipsis_lines", most=0.3),
        Rule("gopher_below_alpha_threshold", "gopher_letter_words", least=pick(0.8, 0.735)),
        *((Rule("gopher_enough_stop_words", "gopher_stop_words", least=2),) if chinese or language == "en" else ()),
        Rule("c4_lorem_ipsum", "c4_lorem_ipsum", most=0),
        Rule("c4_curly_bracket", "c4_curly_bracket", most=0),
        *(() if chinese else (Rule("c4_too_few_sentences", "c4_sentences", least=5),)),
        Rule("fineweb_empty", "fineweb_lines", least=1),
        Rule("fineweb_line_punct_ratio", "fineweb_line_punct_ratio", least=pick(0.12, 0.106)),
        Rule("fineweb_short_line_ratio", "fineweb_short_line_ratio", most=pick(0.67, 999)),
        Rule("fineweb_char_dup_ratio", "fineweb_char_dup_ratio", most=pick(0.01, 0.1)),
        Rule("fineweb_list_ratio", "fineweb_list_ratio", most=pick(0.3, 0.178)),
        Rule("quality_low", "quality", least=min_quality),
    )


@dataclass(frozen=True)
class Recount:
    """What a filter's output would hold under other thresholds."""

    documents: int
    words: int
    """Of the texts as they came in."""
    rejected: Mapping[str, int]
    """Documents by reason."""


def recount(rows: Iterable[Mapping[str, Any]], limits: Mapping[str, float], min_quality: Mapping[str, float] = {}) -> Recount:
    """Count kept and rejected rows of a filter's output (language, signals, reason if rejected) anew, with other limits by the rules' reasons.
    `min_quality` is the bound of the quality model's score by language, as in FilterConfig; a limit of quality_low counts for all languages.

    What was rejected for something else than a rule (its language) stays rejected. ConfigError names a reason that no rule has.
    """
    known = {rule.reason for language in ("en", "zh") for rule in rules_of(language)}
    for reason in limits:
        if reason not in known:
            raise ConfigError(f"no rule is called {reason!r}; there are {', '.join(sorted(known))}")
    documents = words = 0
    rejected: Counter[str] = Counter()
    rules: dict[str, list[Rule]] = {}
    for row in rows:
        signals, reason = row["signals"], row.get("reason") or ""
        if signals is not None and reason in ("", *known):
            language = row["language"]
            if language not in rules:
                rules[language] = [_limited(rule, limits) for rule in rules_of(language, min_quality.get(language, 0.0))]
            broken = decide(rules[language], signals)
            reason = broken.reason if broken else ""
        if reason:
            rejected[reason] += 1
        else:
            documents, words = documents + 1, words + int(signals["words"] if signals else row["words"] or 0)
    return Recount(documents, words, dict(rejected))


def _limited(rule: Rule, limits: Mapping[str, float]) -> Rule:
    limit = limits.get(rule.reason)
    if limit is None:
        return rule
    return replace(rule, most=limit) if rule.least == -math.inf else replace(rule, least=limit)
