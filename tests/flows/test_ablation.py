"""`ingot ablate`: both sides are trained on the same words and seeds, and run again it finds what it made."""

import pytest
from chain import ingot

from tasks.corpus.manifest import Store


@pytest.mark.full
def test_the_command_trains_both_sides_and_finds_them_again(tmp_path):
    words = ["ablate", "tiny", "filter.gopher=false", "filter.repetition=false", "filter.c4=false", "filter.fineweb=false", "--seeds", "2"]
    first, again = (ingot(*words, store=tmp_path) for _ in range(2))
    store = Store(tmp_path)
    trained = [made for address in store.addresses() if address.startswith("stages/pretrain/") and (made := store.manifest(address))]
    assert (
        len(trained) == 4
        and len({made.inputs["tokenizer"] for made in trained}) == 1
        and len({made.inputs["encode"] for made in trained}) == 2
    )
    for done in (first, again):
        assert "bits_per_byte" in done.stdout and "over 2 seeds" in done.stdout
    documents = [
        made.kept for address in store.addresses() if address.startswith("stages/decontaminate/") and (made := store.manifest(address))
    ]
    assert len(set(documents)) == 2  # without rules more is kept
