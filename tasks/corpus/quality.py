"""The filter stage: language, the quality rules of Gopher, C4 and FineWeb, masking of personal data. Documents in; fewer out, cleaner.

    run(store, recipe, config, {"extract": …}, engine) -> manifest: documents- and rejects- parts

The rules are datatrove's filters, with its thresholds for English and spaced scripts and FineWeb2's for Chinese (`Rules`); their reasons are
datatrove's, with the rule's name before. Words are split once a document: each filter would do it again, which is 85% of their time.
Order: too short to tell → language → repetition → Gopher quality → C4 → FineWeb → masking.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from model.config import STRICT
from tasks.corpus.document import PartWriter, read_rows, text_hash
from tasks.corpus.engine import EngineConfig, books, run_ranks
from tasks.corpus.language import detect
from tasks.corpus.manifest import Manifest, Progress, Result, Stage, Store, Work, run_stage
from tasks.corpus.pii import mask
from tasks.corpus.textnorm import script

STAGE = Stage("filter", 1)
CHINESE = ("zh", "yue", "wuu", "lzh")
CHINESE_STOP_WORDS = list("的了是在和有我不这這他也就人与與为為而之以其于於者")


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
    """Filter the input "extract". `info`: pieces of personal data masked, by kind."""

    def body(work: Work) -> Result:
        source = work.inputs["extract"]
        items = [{"path": str(store.path(source, part)), "rows": part.rows} for part in source.parts()]
        summaries = run_ranks(work, "tasks.corpus.quality:filter_rank", config, items, engine)
        kinds = sorted({kind for s in summaries for kind in s["info"]["masked"]})
        return books(summaries, masked={kind: sum(s["info"]["masked"].get(kind, 0) for s in summaries) for kind in kinds})

    return run_stage(store, STAGE, recipe, config, inputs, body, progress, rebuild)


def filter_rank(config: FilterConfig, item: Mapping[str, Any], out: PartWriter) -> dict[str, Any]:
    """One part: documents in, kept and rejected out."""
    masked: dict[str, int] = {}
    for row in read_rows([Path(item["path"])]):
        reason, value = judge(config, row)
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


def judge(config: FilterConfig, row: dict[str, Any]) -> tuple[str, str]:
    """Reason and value of a rejection, ('', '') for a document that stays. Fills language, language_score, script, words; C4 may drop lines of the text."""
    row["language"], row["language_score"] = detect(row["text"])
    row["script"] = script(row["text"]) if row["language"] in CHINESE else ""
    if config.languages and row["language"] not in config.languages:
        return "language", row["language"]
    if row["language_score"] < config.min_language_score:
        return "language_score", f"{row['language']} {row['language_score']:.3f}"
    rules = _rules(row["language"])
    if rules.missing:
        return "no_word_splitter", rules.missing
    document = rules.document(row)
    row["words"] = len(rules.words(row["text"]))
    crawl = row["source"] in config.crawl_rules_on
    for wanted, name, filters in (
        (config.repetition, "gopher_rep", rules.repetition),
        (config.gopher, "gopher", rules.gopher),
        (config.c4 and crawl, "c4", rules.c4),
        (config.fineweb and crawl, "fineweb", rules.fineweb),
    ):
        if not wanted:
            continue
        said = filters(document)
        if said is not True:
            why = said[1] if isinstance(said, tuple) else "quality"
            return why if why.startswith(name) else f"{name}_{why}", f"{row['words']} words"
    if document.text != row["text"]:
        if not document.text:
            return "c4_empty", f"{row['words']} words"
        row["text"], row["words"] = document.text, len(rules.words(document.text))
    return "", ""


class Rules:
    """datatrove's filters for one language, sharing one split into words. `missing` names a package without which the language cannot be split.

    English: datatrove's thresholds, C4 without its line-end rule (as FineWeb uses it). Other languages: the same without the English stop words.
    Chinese: the thresholds of FineWeb2 for cmn_Hani (https://github.com/huggingface/fineweb-2, configs/cmn_Hani.yml and fineweb-2-pipeline.py), with stop
    words for both scripts and for Classical Chinese. FineWeb2 leaves C4 out; of it the rules that need no spaces between words stand here: lines with
    javascript or a policy, pages with lorem ipsum or a curly bracket.
    """

    def __init__(self, language: str):
        from datatrove.data import Document
        from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
        from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

        self.missing = ""
        try:
            splitter = load_word_tokenizer(_datatrove_code(language))
            splitter.word_tokenize("a")
        except ImportError as error:
            self.missing = f"{language}: {error}"

        class Once(WordTokenizer):
            """The language's splitter, which remembers the words of the last text."""

            last: tuple[str, list[str]] = ("", [])

            def word_tokenize(self, text: str) -> list[str]:
                if text != self.last[0]:
                    self.last = text, splitter.word_tokenize(text)
                return self.last[1]

            def sent_tokenize(self, text: str) -> list[str]:
                return splitter.sent_tokenize(text)

            def span_tokenize(self, text: str) -> list[tuple[int, int]]:
                return splitter.span_tokenize(text)

        once: Any = Once()
        self.words: Callable[[str], list[str]] = once.word_tokenize
        self._document = Document
        if language in CHINESE:
            self.repetition = GopherRepetitionFilter(
                dup_line_frac=0.287, dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0, top_n_grams=((2, 0.256), (3, 0.201), (4, 0.171)),
                dup_n_grams=((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.14), (10, 0.127)), language=once,
            ).filter  # fmt: skip
            self.gopher = GopherQualityFilter(
                min_avg_word_length=1, max_avg_word_length=5, max_non_alpha_words_ratio=0.735, stop_words=CHINESE_STOP_WORDS, language=once
            ).filter
            self.c4 = C4QualityFilter(
                filter_no_terminal_punct=False, min_words_per_line=-1, min_num_sentences=-1, max_word_length=-1, language=once
            ).filter
            self.fineweb = FineWebQualityFilter(
                line_punct_thr=0.106, short_line_thr=999, char_duplicates_ratio=0.1, new_line_ratio=0.178, language=once
            ).filter
        else:
            self.repetition = GopherRepetitionFilter(language=once).filter
            stop_words = {} if language == "en" else {"min_stop_words": 0}  # datatrove's list is English
            self.gopher = GopherQualityFilter(language=once, **stop_words).filter
            self.c4 = C4QualityFilter(filter_no_terminal_punct=False, language=once).filter
            self.fineweb = FineWebQualityFilter(language=once).filter

    def document(self, row: Mapping[str, Any]) -> Any:
        """A datatrove document of a row."""
        return self._document(text=row["text"], id=row["id"])


@cache
def _rules(language: str) -> Rules:
    return Rules(language)


def _datatrove_code(language: str) -> str:
    """datatrove's name of a language's splitter. For Chinese only `cmn_Hani` splits: `zh` and `zho` silently leave a sentence as one word."""
    from datatrove.utils.word_tokenizers import load_tokenizer_assignments

    if language in CHINESE:
        return "cmn_Hani"
    known = load_tokenizer_assignments()
    if language in known:
        return language
    return "en"
