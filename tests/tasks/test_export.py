"""`ingot export`: what agrees lies in place at once and whole, and MLflow knows it; what disagrees counts for nothing and keeps its version from champion."""

import json
import shutil
from pathlib import Path

import models
import numpy as np
import pytest
from chain import asked

from deploy import export_gguf, parity
from model.errors import ConfigError, NotFoundError, ParityError
from tasks import export as exporting
from tasks import registry
from tasks.corpus.manifest import Store
from tasks.mlflow_client import connect


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A store with two registered versions, the tuned model, which is champion, and the one before; and all stages."""
    folder = tmp_path_factory.mktemp("export")
    store = Store(folder / "store")
    scored_on = models.evaluation(store)
    stages = models.chain(store, folder)
    for tuned, score in (("finetune", 2.5), ("pretrain", 2.6)):
        register(store, models.judged(store, stages | {"finetune": stages[tuned]}, scored_on, bits_per_byte=score))
    return store, stages


@pytest.fixture
def built(registered, tmp_path, monkeypatch):
    """(store, stages) of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store, stages = registered
    shutil.copytree(store.base, tmp_path / "store")
    return Store(tmp_path / "store"), stages


def register(store, inputs):
    tracker = registry.open_tracker(store, models.REGISTRY, "demo", "v1")
    return registry.register.fn(store, "demo", models.REGISTRY, inputs, tracker, "v1", "a" * 64)


def version(store, number):
    return connect(registry.tracking_uri(store, models.REGISTRY)).get_model_version("ingot-test", number)


def export(store, reference="ingot-test/2", to="gguf", out=None):
    return exporting.export(store, models.REGISTRY, reference, to, out)


def plant(patch):
    """From now on every GGUF that is written has one weight wrong."""
    write = export_gguf.export

    def wrong(folder, out):
        write(folder, out)
        _, arrays = export_gguf._read(out)
        whole = (out / export_gguf.FILE).read_bytes()
        place = whole.index(np.array(arrays["blk.0.ffn_up.weight"]).tobytes()) + 4 * 9
        (out / export_gguf.FILE).write_bytes(whole[:place] + np.float32(9.0).tobytes() + whole[place + 4 :])

    patch.setattr(export_gguf, "export", wrong)


def test_what_agrees_lies_in_place_with_its_report_and_mlflow_holds_the_verdict(built):
    store, _ = built
    for _ in range(2):  # the second takes the place of the first
        made = export(store)
        assert made.report.agrees and made.versions == ["ingot-test/2"]
        assert made.path == store.base / "exports" / "ingot-test-2" / "gguf"
        assert sorted(file.name for file in made.path.iterdir()) == ["model.gguf", "parity.json"]
        assert [folder.name for folder in made.path.parent.iterdir()] == ["gguf"]
    told = version(store, 2)
    assert told.tags["ingot.export.gguf"] == "agrees"
    client = connect(registry.tracking_uri(store, models.REGISTRY))
    kept = client.download_artifacts(told.run_id, "exports/gguf/parity.json")
    assert json.loads(Path(kept).read_text()) == json.loads((made.path / "parity.json").read_text())
    assert registry.promote(store, models.REGISTRY, "ingot-test/2").version == 2


def test_one_changed_weight_counts_for_nothing_and_keeps_its_version_from_champion(built, monkeypatch):
    store, _ = built
    before = (export(store).path / "parity.json").read_bytes()
    with monkeypatch.context() as patch:
        plant(patch)
        refused = export(store)
        said = asked(store.url, "export", "ingot-test/2", "--to", "gguf")
    assert {check.name for check in refused.report.failed} >= {"tensors", "logits"}
    assert refused.path == store.base / "exports" / "ingot-test-2" / "gguf.refused"
    assert json.loads((refused.path / "parity.json").read_text())["agrees"] is False
    assert (refused.path.with_name("gguf") / "parity.json").read_bytes() == before  # what was good stays
    assert "disagrees" in said.output and isinstance(said.exception, ParityError)
    assert "does not count" in str(said.exception) and "ingot-test/2" in str(said.exception)
    with pytest.raises(
        ParityError, match=r"ingot-test version 2 cannot become champion: its export to gguf disagrees: tensors: .*--to gguf"
    ):
        registry.promote(store, models.REGISTRY, "ingot-test/2")
    assert "gguf: disagrees" in asked(store.url, "models").output
    export(store)
    assert registry.promote(store, models.REGISTRY, "ingot-test/2").version == 2


def test_neither_the_gate_nor_a_rollback_makes_a_version_champion_whose_export_disagrees(built, monkeypatch):
    store, stages = built
    registry.promote(store, models.REGISTRY, "ingot-test/2")
    plant(monkeypatch)
    assert not export(store, "ingot-test/1").report.agrees
    with pytest.raises(ParityError, match="version 1 cannot become champion"):
        registry.rollback(store, models.REGISTRY, "ingot-test")
    client = connect(registry.tracking_uri(store, models.REGISTRY))
    assert client.get_model_version_by_alias("ingot-test", "champion").version == 2
    client.delete_registered_model_alias("ingot-test", "champion")
    store.remove(version(store, 1).tags["ingot.address"])
    for score, number in ((2.5, "1"), (2.4, "3")):  # version 1 again, then a new version of its weights
        again = register(store, models.judged(store, stages, models.evaluation(store), bits_per_byte=score))
        assert again.info["version"] == number and again.info["champion"] is False
        assert "first version" in again.info["why"] and "but the export to gguf disagrees: tensors" in again.info["why"]
        assert version(store, number).tags["ingot.export.gguf"].startswith("disagrees: tensors")


def test_every_name_of_a_model_tells_the_versions_of_its_weights_and_a_directory_none(built, tmp_path):
    store, stages = built
    register(store, models.judged(store, stages, models.evaluation(store), bits_per_byte=2.7))  # version 3 has the weights of 1
    for name in (stages["finetune"].address, "ingot-test/1", "ingot-test/3", "ingot-test@candidate"):
        assert export(store, name).versions == ["ingot-test/1", "ingot-test/3"]
    assert {path.name.split("-")[0] for path in (store.base / "exports").iterdir()} == {"test", "ingot"}
    folder = store.dir(stages["pretrain"].address) / "model"
    assert export(store, str(folder), out=tmp_path / "mine").versions == [] and "ingot.export.gguf" not in version(store, 2).tags
    assert export(store, stages["pretrain"].address).versions == ["ingot-test/2"]
    with pytest.raises(NotFoundError, match="no model 'ingot-test/9'"):
        export(store, "ingot-test/9")


def test_a_mistake_or_a_kill_leaves_nothing_behind(built, tmp_path, monkeypatch):
    store, _ = built
    with pytest.raises(ConfigError, match="there is hf, onnx, onnx-int8, gguf"):
        export(store, to="pickle")
    with pytest.raises(ConfigError, match="multiple of 16"):
        export(store, to="onnx")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no export; choose another --out"):
        export(store, out=tmp_path / "full")

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(parity, "check", die)
    with pytest.raises(KeyboardInterrupt):
        export(store)
    assert list((store.base / "exports" / "ingot-test-2").iterdir()) == []
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.txt"]
