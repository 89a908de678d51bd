"""Parts: the same rows give the same bytes, one by one or in batches."""

import pyarrow as pa
import pytest
from corpora import document
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.corpus import document as documents
from tasks.corpus.document import SCHEMA, PartWriter, read_batches


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["keep", "keep", "short", "long"]), max_size=60), st.integers(1, 20), st.data())
def test_sorting_out_a_batch_writes_what_its_rows_one_by_one_do(tmp_path_factory, monkeypatch, fates, part_rows, data):
    """Batches of any size, some rows between them by themselves; row groups and parts end where they would."""
    monkeypatch.setattr(documents, "GROUP_ROWS", 7)
    rows = [document(f"text {place} " * (1 + place % 5), place) | {"page_id": place if place % 3 else None} for place in range(len(fates))]
    one, other = (tmp_path_factory.mktemp(name) for name in ("one", "other"))
    with PartWriter(one, 0, "test", part_rows) as slow:
        for row, fate in zip(rows, fates, strict=True):
            slow.keep(row) if fate == "keep" else slow.reject(row, fate, row["origin_offset"])
    with PartWriter(other, 0, "test", part_rows) as fast:
        at = 0
        while at < len(rows):
            if data.draw(st.booleans()):
                end = data.draw(st.integers(at + 1, len(rows)))
                rejected = {n - at: (fates[n], rows[n]["origin_offset"]) for n in range(at, end) if fates[n] != "keep"}
                fast.sort_out(pa.RecordBatch.from_pylist(rows[at:end], SCHEMA), rejected)
            else:
                end, fate = at + 1, fates[at]
                fast.keep(rows[at]) if fate == "keep" else fast.reject(rows[at], fate, rows[at]["origin_offset"])
            at = end
    assert fast.summary == slow.summary
    assert {path.name: path.read_bytes() for path in other.iterdir()} == {path.name: path.read_bytes() for path in one.iterdir()}


def test_large_groups_have_the_same_pages_whatever_batches_they_came_in(tmp_path):
    """5 MB a group make several pages a column."""
    rows = [document(f"{place} " * 1_500, place) for place in range(2_500)]
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with PartWriter(one, 0, "test") as slow:
        for row in rows:
            slow.keep(row)
    with PartWriter(other, 0, "test") as fast:
        for at in range(0, len(rows), 300):
            fast.sort_out(pa.RecordBatch.from_pylist(rows[at : at + 300], SCHEMA), {})
    [name] = [file["path"] for file in slow.files]
    assert (one / name).read_bytes() == (other / name).read_bytes()
    assert sum(map(len, read_batches([other / name]))) == len(rows)


def test_a_batch_without_the_schema_s_columns_is_refused(tmp_path):
    with pytest.raises((KeyError, ValueError)), PartWriter(tmp_path, 0, "test") as out:
        out.sort_out(pa.RecordBatch.from_pydict({"id": ["a"]}), {})
