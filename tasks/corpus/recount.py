"""What a filter's output would hold under other thresholds, counted from the signals of its kept and rejected documents; no text is read.

    made = recount(store, [store.need("stages/filter/demo-1a2b3c4d5e")], {"gopher_short_doc": 30, "fineweb_list_ratio@zh": 0.2})
    made.languages["en"].words, made.rejected["gopher_short_doc"]                           # each as it is, and as it would be

Exact for the filter stage: documents, words and reasons are those that a run with these thresholds writes (tests/tasks/test_recount.py). Not known
without texts: what later stages would do with a document that comes in (it may be a duplicate), and masking.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from model.errors import ConfigError, InputError, StoreError
from tasks.corpus.document import SCHEMA_VERSION, SIGNALS, read_batches
from tasks.corpus.manifest import Manifest, Store
from tasks.corpus.quality import Limits, Rule, misnamed, reasons, rules_of

SAMPLED = 100_000
"""Documents, about, whose signals are held for the shares in between; least and greatest are of all."""
QUANTILES = (0.05, 0.5, 0.95)


@dataclass
class Pair:
    """Documents and words as they are and as they would be."""

    documents: int = 0
    documents_then: int = 0
    words: int = 0
    words_then: int = 0


@dataclass
class Range:
    """Values of a signal over all documents, kept or not, that have it."""

    documents: int = 0
    least: float = np.inf
    most: float = -np.inf
    sample: list[np.ndarray] = field(default_factory=list)

    def add(self, values: np.ndarray, step: int) -> None:
        there = values[~np.isnan(values)]
        if there.size:
            self.documents += there.size
            self.least, self.most = min(self.least, float(there.min())), max(self.most, float(there.max()))
            self.sample.append(there[::step].astype(np.float32))

    def shares(self) -> list[float]:
        """Values below which 5, 50 and 95% of the documents lie."""
        return np.quantile(np.concatenate(self.sample), QUANTILES).tolist() if self.sample else []


@dataclass
class Recount:
    """By language, by reason, and the values of each signal."""

    languages: dict[str, Pair] = field(default_factory=lambda: defaultdict(Pair))
    rejected: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    """Documents by reason: now, then."""
    ranges: dict[str, Range] = field(default_factory=lambda: defaultdict(Range))

    @property
    def total(self) -> Pair:
        """Of all languages."""
        return Pair(*(sum(getattr(pair, name) for pair in self.languages.values()) for name in Pair.__dataclass_fields__))


def recount(store: Store, outputs: Sequence[Manifest], thresholds: Mapping[str, float]) -> Recount:
    """Count the filter stages among `outputs` anew, with thresholds over those they ran with. ConfigError names a rule that there is not."""
    if wrong := misnamed(thresholds):
        raise ConfigError(wrong)
    made = Recount()
    filters = [m for m in outputs if m.stage == "filter"]
    if not filters:
        raise InputError(
            f"no filter stage is among {', '.join(m.address for m in outputs) or 'these outputs'}: only its output has signals and rejects."
        )
    step = max(1, sum(m.seen for m in filters) // SAMPLED)
    for m in filters:
        limits = tuple(sorted((m.made_of["config"].get("thresholds", {}) | dict(thresholds)).items()))
        for prefix, columns in (("documents-", ["language", "words", "signals"]), ("rejects-", ["language", "signals", "reason"])):
            for batch in read_batches([store.path(m, file) for file in m.parts(prefix)], columns):
                add(made, batch, limits, step)
    return made


def by_rule(made: Recount, outputs: Sequence[Manifest], thresholds: Mapping[str, float]) -> list[list[str]]:
    """A line a rule: reason, limit, other limit, documents rejected now and then, and the signal's range; then what is rejected for other reasons."""
    ran = outputs[0].made_of["config"].get("thresholds", {})
    rules = {rule.reason: rule.signal for language in ("en", "zh") for rule in rules_of(language)}
    lines, rest = [], dict(made.rejected)
    for reason, signal in rules.items():
        values, counts = made.ranges[signal], rest.pop(reason, [0, 0])
        if values.documents:
            now, then = (_limits(reason, sorted(made.languages), limits) for limits in (ran, ran | dict(thresholds)))
            there = [values.least, *values.shares(), values.most]
            lines.append(
                [reason, now, "" if then == now else then, *(f"{count:,}" for count in counts), *(f"{value:.4g}" for value in there)]
            )
    return lines + [[reason, "", "", *(f"{count:,}" for count in counts), *[""] * 5] for reason, counts in sorted(rest.items())]


def _limits(reason: str, languages: Sequence[str], thresholds: Mapping[str, float]) -> str:
    """The limit of a rule; where languages differ that of most, then the others by name."""
    found: dict[str, list[str]] = defaultdict(list)
    for language in languages:
        for rule in rules_of(language, tuple(sorted(thresholds.items()))):
            if rule.reason == reason:
                found[f"≥{rule.least:g}" if rule.most == np.inf else f"≤{rule.most:g}"].append(language)
    first, *others = sorted(found, key=lambda limit: (-len(found[limit]), "en" not in found[limit], limit)) or [""]
    return ", ".join([first, *(f"{'/'.join(found[limit])} {limit}" for limit in others)])


def staying(store: Store, parts: Iterable[Manifest], thresholds: Mapping[str, float]) -> Recount:
    """The same for documents of any later stage: which of them would stay. What would come in is not among them."""
    made = Recount()
    for m in parts:
        for batch in read_batches([store.path(m, file) for file in m.parts()], ["language", "words", "signals"]):
            add(made, batch, tuple(sorted(thresholds.items())), 1)
    return made


def add(made: Recount, batch: pa.RecordBatch, limits: Limits, step: int) -> None:
    """Count a batch of documents, or of rejects if it has reasons. StoreError for one of another schema."""
    signals = batch.column("signals")
    if {f.name for f in signals.type} != set(SIGNALS):
        raise StoreError(
            f"these documents have the signals of another version of Ingot, not of schema {SCHEMA_VERSION}. Run the filter stage again."
        )
    values = {name: signals.field(name).to_numpy(zero_copy_only=False) for name in SIGNALS}
    for name in SIGNALS:
        made.ranges[name].add(values[name], step)
    measured = signals.is_valid().to_numpy(zero_copy_only=False)
    words = np.where(measured, values["left_words"], 0.0)
    if "reason" in batch.schema.names:
        was = np.array(batch.column("reason").to_pylist(), object)
    else:
        was = np.full(len(batch), "", object)
        words = np.where(measured, words, batch.column("words").fill_null(0).to_numpy(zero_copy_only=False))
    emptied = measured & ~np.isnan(values["c4_lines_dropped"]) & (values["characters"] > 0) & (values["left_words"] == 0)
    then = np.where(measured & np.isin(was, list(reasons())), "", was)
    then[emptied] = "c4_empty"
    codes = batch.column("language").dictionary_encode()
    language = codes.indices.to_numpy(zero_copy_only=False)
    names = codes.dictionary.to_pylist()
    by_rules: dict[tuple[Rule, ...], list[int]] = defaultdict(list)
    for code, name in enumerate(names):
        by_rules[rules_of(name, limits)].append(code)
    for rules, some in by_rules.items():
        waiting = measured & np.isin(language, some)
        for rule in rules:
            broken = waiting & ((values[rule.signal] < rule.least) | (values[rule.signal] > rule.most))
            then[broken] = rule.reason
            waiting &= ~broken
    for code, name in enumerate(names):
        pair, here = made.languages[name], language == code
        pair.documents += int((here & (was == "")).sum())
        pair.documents_then += int((here & (then == "")).sum())
        pair.words += int(words[here & (was == "")].sum())
        pair.words_then += int(words[here & (then == "")].sum())
    for side, reason in enumerate((was, then)):
        for name, count in zip(*np.unique(reason.astype(str), return_counts=True), strict=True):
            if name:
                made.rejected[str(name)][side] += int(count)
