"""Properties of model/shards.py, against a reader written here from the format's definition."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ShardError
from model.shards import Shard, ShardWriter, dtype_for


def independent(prefix: Path) -> list[list[int]]:
    """Documents of an indexed dataset, read with struct alone: header, sizes, pointers, document indices."""
    index, data = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00" and struct.unpack_from("<Q", index, 9) == (1,)
    letter, width = {4: ("i", 4), 8: ("H", 2)}[index[17]]
    count, borders = struct.unpack_from("<QQ", index, 18)
    sizes = struct.unpack_from(f"<{count}i", index, 34)
    pointers = struct.unpack_from(f"<{count}q", index, 34 + 4 * count)
    documents = struct.unpack_from(f"<{borders}q", index, 34 + 12 * count)
    assert len(index) == 34 + 12 * count + 8 * borders and list(documents) == list(range(count + 1))
    assert len(data) == sum(sizes) * width
    return [list(struct.unpack_from(f"<{size}{letter}", data, start)) for size, start in zip(sizes, pointers, strict=True)]


def write(prefix: Path, documents: list[list[int]], vocab: int = 100) -> Shard:
    with ShardWriter(prefix, dtype_for(vocab)) as writer:
        for ids in documents:
            writer.add(np.array(ids))
    return Shard(prefix)


def test_the_bytes_are_those_of_the_format(tmp_path):
    write(tmp_path / "s", [[1, 2, 65_000], [7]])
    assert (tmp_path / "s.bin").read_bytes().hex() == "01000200e8fd0700"
    header = "4d4d49444944580000" + "0100000000000000" + "08" + "0200000000000000" + "0300000000000000"
    body = "03000000" + "01000000" + "0000000000000000" + "0600000000000000"
    assert (tmp_path / "s.idx").read_bytes().hex() == header + body + "".join(f"{n:02x}00000000000000" for n in range(3))


@settings(max_examples=25, deadline=None)
@given(vocab=st.sampled_from([300, 65_499, 65_500, 200_000]), data=st.data())
def test_documents_come_back_through_our_reader_and_an_independent_one(tmp_path_factory, vocab, data):
    documents = data.draw(st.lists(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=9), max_size=8))
    prefix = tmp_path_factory.mktemp("shard") / "train-00000"
    shard = write(prefix, documents, vocab)
    assert [shard[i].tolist() for i in range(len(shard))] == documents == independent(prefix)
    assert shard.tokens == sum(map(len, documents)) and shard.dtype.itemsize == (2 if vocab < 65_500 else 4)
    assert shard.tokens_T.tolist() == [token for ids in documents for token in ids]


def test_a_mask_lies_beside_its_tokens(tmp_path):
    with ShardWriter(tmp_path / "s", np.uint16) as writer:
        writer.add(np.array([5, 6, 7]), np.array([False, True, True]))
        writer.add(np.array([8]), np.array([0]))
    shard = Shard(tmp_path / "s")
    assert shard.mask_T.tolist() == [0, 1, 1, 0] and (tmp_path / "s.mask").read_bytes() == b"\0\1\1\0"


def test_a_shard_without_mask_does_not_inherit_one(tmp_path):
    with ShardWriter(tmp_path / "s", np.uint16) as writer:
        writer.add(np.array([5, 6]), np.array([0, 1]))
    assert write(tmp_path / "s", [[5, 6]]).mask_T is None


@pytest.mark.parametrize("ids", [[-1], [65_536], [[1, 2]], [], [1.5]])
def test_what_is_no_row_of_ids_in_range_is_refused_and_leaves_nothing_behind(tmp_path, ids):
    with pytest.raises(ShardError, match="document 1"), ShardWriter(tmp_path / "s", np.uint16) as writer:
        writer.add(np.array([3]))
        writer.add(np.array(ids))
    assert list(tmp_path.iterdir()) == []


def test_masks_for_some_documents_only_are_refused(tmp_path):
    with pytest.raises(ShardError, match="mask"), ShardWriter(tmp_path / "s", np.uint16) as writer:
        writer.add(np.array([3]))
        writer.add(np.array([3]), np.array([1]))
    with pytest.raises(ShardError, match="mask of shape"), ShardWriter(tmp_path / "s", np.uint16) as writer:
        writer.add(np.array([3, 4]), np.array([1]))
    assert list(tmp_path.iterdir()) == []


def test_nothing_bears_the_final_name_before_the_end(tmp_path):
    with ShardWriter(tmp_path / "s", np.uint16) as writer:
        writer.add(np.array([3]))
        assert [path.name for path in tmp_path.iterdir()] == ["s.bin.tmp"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"s\.idx is not in"):
        Shard(tmp_path / "s")


def test_a_bin_of_another_size_is_named_with_both_sizes(tmp_path):
    write(tmp_path / "train-00012", [list(range(50))] * 20)
    with open(tmp_path / "train-00012.bin", "r+b") as file:
        file.truncate(1_500)
    with pytest.raises(ShardError, match=r"train-00012\.bin has 1,500 bytes; its index says 2,000\. Delete it and rerun encode\."):
        Shard(tmp_path / "train-00012")


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 33 + 2 * 12 + 3 * 8), value=st.integers(0, 255), cut=st.none() | st.integers(0, 81))
def test_any_damage_to_the_index_is_a_shard_error(tmp_path_factory, place, value, cut):
    prefix = tmp_path_factory.mktemp("shard") / "s"
    write(prefix, [[1, 2, 3], [4]])
    raw = Path(f"{prefix}.idx").read_bytes()
    bad = raw[:cut] if cut is not None else raw[:place] + bytes([value]) + raw[place + 1 :]
    Path(f"{prefix}.idx").write_bytes(bad)
    if bad == raw:
        Shard(prefix)
    else:
        with pytest.raises(ShardError, match=r"s\.(idx|bin)"):
            Shard(prefix)
