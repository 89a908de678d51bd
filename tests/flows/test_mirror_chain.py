"""Recipe small on a mirror of real pages, its model shrunk to minutes: CC-MAIN-2026-40 and two wikis of 20261001 to a registered model; then both refreshes."""

import json
import subprocess
import sys
import time

import pytest
from chain import by_stage, ingot, of_store
from http_server import serve

from tasks.corpus.document import read_rows
from tasks.corpus.manifest import Store

pytestmark = [pytest.mark.realdata, pytest.mark.full, pytest.mark.timeout(1800), pytest.mark.xdist_group("prefect")]
SHRUNK = {
    "download.requests_per_second": 1000,
    "tokenizer.vocab": 2048,
    "model.width": 64,
    "model.layers": 2,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.head_dim": 32,
    "model.ffn_width": 128,
    "model.context": 256,
    "pretrain.steps": 30,
    "pretrain.warmup": 5,
    "pretrain.decay": 10,
    "pretrain.batch": 8,
    "pretrain.length": 256,
    "finetune.steps": 10,
    "finetune.warmup": 2,
    "finetune.batch": 8,
    "finetune.length": 256,
    "evaluate.max_new": 16,
}


@pytest.fixture(scope="module")
def mirror(realdata, tmp_path_factory):
    """The mirror, built once and served."""
    out = tmp_path_factory.mktemp("mirror")
    tool = realdata.parent / "tools" / "make_mirror.py"
    subprocess.run([sys.executable, str(tool), "--data", str(realdata), "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    with serve(out) as server:
        yield server


def test_real_pages_become_a_registered_model_and_refreshes_add_what_is_new(prefect_server, mirror, tmp_path):
    from flows.refresh import common_crawl_monthly, wikipedia_monthly

    place = tmp_path / "store"
    crawl, wiki = f"{mirror.url}/commoncrawl", f"{mirror.url}/wikimedia"
    settings = SHRUNK | {"common_crawl.base_url": crawl, "common_crawl.index_url": crawl, "wikipedia.base_url": wiki}
    done = ingot("run", "small", *(f"{name}={value}" for name, value in settings.items()), store=place, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:]
    assert of_store(place) == []
    store = Store(place)
    stages = by_stage(store)
    for manifest in (m for ms in stages.values() for m in ms):
        assert manifest.seen == manifest.kept + sum(manifest.rejected.values()), manifest.address
    [registered] = stages["register"]
    assert registered.info["model_uri"] == "models:/ingot-small/1"
    [built] = store.versions("corpora", "small")
    assert built.info["snapshots"] == ["CC-MAIN-2026-40", "enwiki-20261001", "zhwiki-20261001"]
    first = documents(store, built.parts)
    assert {row["source"] for row in first} == {"commoncrawl", "wikipedia"}
    assert len(first) > 100

    planted = json.loads((mirror.folder / "planted.json").read_text())
    for flow, version in ((common_crawl_monthly, "CC-MAIN-2026-44"), (wikipedia_monthly, "wikipedia-20261101")):
        before = store.versions("corpora", "small")[-1]
        time.sleep(0.01)
        assert flow(set=settings, store=store.url) == f"corpora/small/{version}"
        assert flow(set=settings, store=store.url) == "nothing new"
        made = store.published("corpora", "small", version)
        assert made.parts[:-1] == before.parts
    added = documents(store, store.published("corpora", "small", "CC-MAIN-2026-44").parts[1:])
    assert not {row["text_hash"] for row in added} & {row["text_hash"] for row in first}
    assert not {row["url"] for row in added} & set(planted["identical"]) & {row["url"] for row in first}
    assert len({row["url"] for row in added} & set(planted["new"])) > 50


def documents(store, addresses):
    """Origin, address and hash of all documents of these stages."""
    manifests = [store.need(address) for address in addresses]
    return list(read_rows([store.path(m, f) for m in manifests for f in m.parts()], ["source", "url", "text_hash"]))
