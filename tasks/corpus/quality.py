"""The filter stage: clean-up of lines, language, the quality rules of Gopher, C4 and FineWeb, masking of personal data. Documents in; fewer out, cleaner.

    run(store, recipe, config, {"extract": …}, engine) -> manifest: documents- and rejects- parts

The rules are those of datatrove's filters, with its thresholds for English and spaced scripts and FineWeb2's for Chinese (`rules_of`); their reasons
are datatrove's, with the rule's name before. Compiled kernels measure every signal at once (signals.py); a decision is a threshold over signals, which
stay in the rows of kept and rejected documents, so that other thresholds are counted without the texts (recount.py).
Order: clean-up of lines (lines.py, opt-in) → block-lists → language → repetition → Gopher quality → C4 → FineWeb → quality model → masking.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from model.config import STRICT
from tasks.corpus import blocklist, lines, quality_model
from tasks.corpus.blocklist import Blocklist
from tasks.corpus.document import PartWriter, read_rows, text_hash
from tasks.corpus.engine import EngineConfig, books, run_ranks
from tasks.corpus.language import detect
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage
from tasks.corpus.pii import mask
from tasks.corpus.quality_model import Models
from tasks.corpus.textnorm import CHINESE, script

if TYPE_CHECKING:
    from tasks.corpus.signals import Measured

STAGE = Stage("filter", 3)
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
Limits = tuple[tuple[str, float], ...]
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
    mask_personal_data: bool
    """Replace e-mail and IP addresses, phone, Chinese identity, card and bank account numbers by tags."""
    thresholds: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    """Other limits than the rules' own, by reason for every language or by reason@language: {"gopher_short_doc": 30, "fineweb_list_ratio@zh": 0.2}.
    quality_low@en is the least score of the quality model for English; without it the score decides nothing."""
    clean_lines: tuple[lines.Kind, ...]
    """Lines to take out of crawled pages before they are judged: notice (cookies, copyright, javascript), navigation, signs (mostly digits and signs), capitals,
    repeated (within a document), menu (six short lines in a row without an end); empty takes none."""

    def __post_init__(self) -> None:
        if wrong := misnamed(self.thresholds):
            raise ValueError(wrong)

    @property
    def limits(self) -> "Limits":
        """The thresholds, as rules_of takes them."""
        return tuple(sorted(self.thresholds.items()))


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

    `info`: pieces of personal data masked, and lines taken out of what is kept, by kind; entries of the block-lists, by kind.
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
        figures = {name: _total(s["info"][name] for s in summaries) for name in ("masked", "lines_removed")}
        return books(summaries, **figures, blocklist=entries)

    return run_stage(store, STAGE, recipe, config, inputs, body, progress, rebuild)


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sorted(sum(map(Counter, counts), Counter[str]()).items()))


def prepare(config: FilterConfig) -> None:
    """Load what every rank needs: the language model, and the splitters of the languages that may stay."""
    from tasks.corpus.words import splitter

    detect("a text with letters")
    for language in config.languages:
        splitter(language)


def filter_rank(config: FilterConfig, item: Mapping[str, Any], out: PartWriter) -> dict[str, Any]:
    """One part: documents in, kept and rejected out."""
    masked, removed = Counter[str](), Counter[str]()
    lists = blocklist.shared(item["blocklist"]) if "blocklist" in item else None
    models = quality_model.shared(item["models"]) if "models" in item else None
    for row in read_rows([Path(item["path"])]):
        text, gone = row["text"], None
        if config.clean_lines and row["source"] in config.crawl_rules_on:
            row["text"], gone = lines.clean(text, config.clean_lines)
        reason, value = ("lines_empty", f"{gone.total()} lines") if gone and not row["text"] else judge(config, row, lists, models)
        if gone is not None and row["signals"]:
            row["signals"]["lines_removed"] = gone.total()
        if reason:
            out.reject(row | {"text": row["text"] or text}, reason, value)
            continue
        removed.update(gone or {})
        if config.mask_personal_data:
            row["text"], counts = mask(row["text"])
            row["masked"] = counts.total()
            masked.update(counts)
        row["text_hash"] = text_hash(row["text"])
        out.keep(row)
    return {"masked": masked, "lines_removed": removed}


def judge(config: FilterConfig, row: dict[str, Any], lists: Blocklist | None = None, models: Models | None = None) -> tuple[str, str]:
    """Reason and value of a rejection, ('', '') for a document that stays. Fills language, language_score, script, words, signals; C4 may drop lines of
    the text."""
    from tasks.corpus.words import splitter

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
    broken = decide(rules_of(row["language"], config.limits), found.values)
    if broken:
        return broken.reason, f"{found.values[broken.signal]:.4g}"
    if row["text"] and not found.text:
        return "c4_empty", f"{row['words']} words"
    row["text"], row["words"] = found.text, found.words
    return "", ""


def signals_of(text: str, language: str, repetition: bool, gopher: bool, c4: bool, fineweb: bool) -> "Measured":
    """What the families of rules that are asked for measure, by the language's words, stop words and rules about lines."""
    from tasks.corpus.signals import LineRules, measure
    from tasks.corpus.words import splitter

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


def misnamed(thresholds: Iterable[str]) -> str:
    """What is wrong with the names of thresholds, '' if nothing."""
    for name in thresholds:
        reason, at, language = name.partition("@")
        known = sorted(rule.reason for rule in rules_of(language)) if at else sorted(reasons())
        if reason not in known:
            near = get_close_matches(reason, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            return f"no rule is called {reason!r}{f' for {language}' if at else ''}{hint}; there are {', '.join(known)}"
    return ""


@cache
def reasons() -> frozenset[str]:
    """The reasons of all rules, of whatever language."""
    return frozenset(rule.reason for language in ("en", "zh") for rule in rules_of(language))


@cache
def rules_of(language: str, limits: Limits = ()) -> tuple[Rule, ...]:
    """The rules for a language in datatrove's order, then the score of the quality model, which has no bound of its own. `limits` are other limits, by reason or,
    which counts more, by reason@language.

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
    rules = (
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
        Rule("quality_low", "quality", least=0),
    )
    changed = dict(limits)
    return tuple(_limited(rule, changed.get(f"{rule.reason}@{language}", changed.get(rule.reason))) for rule in rules)


def _limited(rule: Rule, limit: float | None) -> Rule:
    if limit is None:
        return rule
    return replace(rule, most=limit) if rule.least == -math.inf else replace(rule, least=limit)
