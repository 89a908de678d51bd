"""What documents there are, counted by language, script, site, month and length, each source apart. Short columns in, a small table out; no text is read.

count(paths)          -> Arrow table (SCHEMA), sorted: a row a source, dimension and value, with documents and words
merge([one, other])   -> the same of all of them together
totals(table, "language", ["wikipedia"])  -> {"en": (documents, words), …}
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SCHEMA = pa.schema([("source", pa.string()), ("by", pa.string()), ("value", pa.string()), ("documents", pa.int64()), ("words", pa.int64())])
COLUMNS = ["source", "language", "script", "domain", "date", "words"]
DIMENSIONS = ("language", "script", "domain", "date", "length")
"""Values of `by`. date: the month; length: the power of two below the number of words. '' where a document has none."""
_KEYS = ["source", "by", "value"]


def count(paths: Sequence[Path]) -> pa.Table:
    """The census of parts of documents; one part's short columns in memory at a time."""
    return merge([of(pq.read_table(path, columns=COLUMNS)) for path in paths])


def of(table: pa.Table) -> pa.Table:
    """The census of rows with COLUMNS."""
    words = pc.fill_null(table["words"].cast(pa.int64()), 0)
    values = {name: pc.fill_null(table[name], "") for name in ("language", "script", "domain", "date")}
    values["date"] = pc.utf8_slice_codeunits(values["date"], 0, 7)
    values["length"] = pc.floor(pc.log2(pc.max_element_wise(words, 1))).cast(pa.int32()).cast(pa.string())
    ones = pa.array([1], pa.int64()).take(pa.array([0] * table.num_rows, pa.int32()))
    return merge(
        [pa.table([table["source"], pa.array([by] * table.num_rows, pa.string()), values[by], ones, words], SCHEMA) for by in DIMENSIONS]
    )


def merge(tables: Sequence[pa.Table]) -> pa.Table:
    """Several censuses as one."""
    whole = pa.concat_tables([SCHEMA.empty_table(), *tables]).group_by(_KEYS).aggregate([("documents", "sum"), ("words", "sum")])
    named = whole.select([*_KEYS, "documents_sum", "words_sum"]).rename_columns(SCHEMA.names).cast(SCHEMA)
    return named.sort_by([(key, "ascending") for key in _KEYS])


def minus(table: pa.Table, other: pa.Table) -> pa.Table:
    """What the first has more of than the second, which it contains."""
    negative = other
    for name in ("documents", "words"):
        negative = negative.set_column(negative.schema.get_field_index(name), name, pc.negate(other[name]))
    left = merge([table, negative])
    return left.filter(pc.greater(left["documents"], 0))


def totals(table: pa.Table, by: str, sources: Collection[str] | None = None) -> dict[str, tuple[int, int]]:
    """Documents and words by the values of a dimension, or by "source"; only of these sources, if any are named."""
    some = table.filter(pc.equal(table["by"], DIMENSIONS[0] if by == "source" else by))
    if sources is not None:
        some = some.filter(pc.is_in(some["source"], pa.array(sorted(sources), pa.string())))
    key = "source" if by == "source" else "value"
    made = some.group_by([key]).aggregate([("documents", "sum"), ("words", "sum")])
    return {row[key]: (row["documents_sum"], row["words_sum"]) for row in made.to_pylist()}
