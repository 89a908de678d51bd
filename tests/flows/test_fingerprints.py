"""Fingerprints: nothing of the machine is in them, and a field that matters changes exactly the stages downstream of it.

The order of stages and their inputs are those of flows/planning.py, asked for a store that pretends to hold every output; only ingest really runs,
on a mirror of a few bytes. All fields of the recipe are found by introspection: a new one is tested without being named here.
"""

import gzip
import hashlib
import json
import platform
import time
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from chain import golden_of
from crawl_host import write_table

from flows import planning, recipes
from model.config import fingerprint, from_dict, override, to_dict
from tasks.corpus import commoncrawl, extract, files, wikipedia
from tasks.corpus.files import FilesConfig
from tasks.corpus.manifest import Manifest, Store, made_of, stage_address
from tasks.corpus.quality_model import QualityModelConfig

CHAIN = (
    "extract",
    "quality_model",
    "filter",
    "dedup",
    "decontaminate",
    "index",
    "tokenizer",
    "encode",
    "pretrain",
    "finetune",
    "evaluate",
    "register",
)


def since(stage: str) -> frozenset[str]:
    """A stage and all after it."""
    return frozenset(CHAIN[CHAIN.index(stage) :])


FEEDS = {
    "name": frozenset(),
    "version": frozenset(),
    "common_crawl": since("extract") | {"ingest commoncrawl"},
    "wikipedia": since("extract") | {"ingest wikipedia"},
    "files": since("extract") | {"ingest files"},
    "download": frozenset(),
    "extract": since("extract"),
    "labels": since("quality_model") | {"ingest labels"},
    "quality_model": since("quality_model"),
    "blocklists": since("filter") | {"ingest blocklist"},
    "filter": since("filter"),
    "dedup": since("dedup"),
    "evaluation": since("decontaminate") | {"ingest evaluation"},
    "decontaminate": since("decontaminate"),
    "tokenizer": since("tokenizer"),
    "encode": since("encode"),
    "start": since("tokenizer"),
    "model": since("pretrain"),
    "pretrain": since("pretrain"),
    "examples": since("finetune") | {"ingest examples"},
    "prompts": frozenset(),
    "finetune": since("finetune"),
    "evaluate": since("evaluate"),
    "register": since("register"),
    "engine": frozenset(),
    "keep_raw": frozenset(),
}
"""Which stages a section reaches. A new section of the recipe needs a line here."""
ROLES = {
    "files.role": "ingest files",
    "evaluation.role": "ingest evaluation",
    "examples.role": "ingest examples",
    "labels.role": "ingest labels",
    "blocklists.role": "ingest blocklist",
}
"""What files are for is told by the ingest's manifest; the same bytes make the same documents."""
OTHERWISE = {"model.kind": since("pretrain") | {"ingest examples"}, "prompts.trained": since("finetune")}
"""Fields that reach other stages than their section: an encoder's chain ends with pretraining, a trained template makes the examples."""
LORA = {"kind": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0, "modules": ["q"]}
VALUES: dict[str, Any] = {
    "common_crawl.snapshot": "CC-MAIN-1970-02",
    "common_crawl.byte_budget": 150,
    "common_crawl.select": {
        "domains": [],
        "urls": [],
        "languages": ["eng"],
        "mime": [],
        "statuses": [],
        "since": "",
        "until": "",
        "index": "table",
        "gap": 0,
    },
    "wikipedia.date": "19700201",
    "wikipedia.wikis": ["enwiki"],
    "wikipedia.byte_budget": 150,
    "files.paths": ["files/a.txt"],
    "evaluation.paths": ["eval/choice"],
    "examples.paths": ["finetune/a.jsonl"],
    "filter.thresholds": {"gopher_short_doc": 30.0},
    "filter.clean_lines": ["notice"],
    "quality_model.good": ["files"],
    "quality_model.bad": ["files"],
    "quality_model.languages": ["zh", "en"],
    "labels.paths": ["labels/a.jsonl"],
    "blocklists.paths": ["lists/a.txt"],
    "dedup.bands": 24,
    "dedup.rows": 4,
    "encode.mixture": [{"documents": "wikipedia/*", "epochs": 2.0}],
    "start": {"tokens": [], "model": str(Path(__file__).parent), "revision": ""},
    "model.rope_scaling": {"factor": 2.0, "low": 1.0, "high": 4.0, "original": 64},
    "model.attention": ["global", "local"],
    "model.heads": 4,
    "model.kv_heads": 2,
    "model.head_dim": 32,
    "pretrain.adapter": LORA,
    "finetune.adapter": LORA,
    "prompts.trained": "intent_en",
    "prompts.rated": ["intent_en"],
    "pretrain.schedule": "wsd",
    "finetune.schedule": "wsd",
    "pretrain.batch": 8,
    "finetune.batch": 8,
    "pretrain.micro_batch": 2,
    "finetune.micro_batch": 2,
    "pretrain.ranks": 1,
    "finetune.ranks": 1,
}
"""Values for fields in which the automatic one would be refused or would find nothing."""
BASE: dict[str, Any] = {
    "labels": to_dict(FilesConfig(("labels",), "CC0-1.0", "labels", "labels", "")),
    "quality_model": to_dict(
        QualityModelConfig(("wikipedia",), ("commoncrawl",), ("en", "zh"), 1000, 20, 2000, 0.5, 25, 0.5, 16, 2, 1 << 14)
    ),
    "blocklists": to_dict(FilesConfig(("lists",), "CC0-1.0", "lists", "blocklist", "")),
    "common_crawl.files": 2,
    "common_crawl.byte_budget": 1000,
    "wikipedia.files": 1,
    "wikipedia.byte_budget": 1000,
    "files.paths": ["files"],
    "evaluation.paths": ["eval"],
    "examples.paths": ["finetune"],
    "model.window": 8,
    "model.tie_embeddings": False,
    "pretrain.micro_batch": 1,
    "finetune.micro_batch": 1,
    "pretrain.ranks": 2,
    "finetune.ranks": 2,
}


class Pretend(Store):
    """A store that finds every stage's output but ingest's, which it has to hold."""

    def find(self, stage: str, recipe: str, print_: str) -> Manifest | None:
        if stage == "ingest":
            return super().find(stage, recipe, print_)
        address = stage_address(stage, recipe, print_)
        info = {"model": to_dict(recipes.tiny().model), "vocab": 512} if stage == "adopt" else {}
        return Manifest(address, print_, print_, {"stage": stage}, {}, (), 0, 0, {}, info, True, {})


def mirror(root: Path) -> Path:
    """Two snapshots of three crawl files, two dates of two wikis of two parts each, and local files: 100 bytes each."""

    def put(name: str, content: bytes | None = None) -> bytes:
        raw = (name.encode() + bytes(100))[:100] if content is None else content
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
        return raw

    put("collinfo.json", json.dumps([{"id": "CC-MAIN-1970-01"}, {"id": "CC-MAIN-1970-02"}]).encode())
    for snapshot in ("CC-MAIN-1970-01", "CC-MAIN-1970-02"):
        names = [f"crawl-data/{snapshot}/segments/{n}/warc/{n}.warc.gz" for n in range(3)]
        for name in names:
            put(name)
        put(f"crawl-data/{snapshot}/warc.paths.gz", gzip.compress("\n".join(names).encode(), mtime=0))
        wets = [name.replace("warc", "wet") for name in names]
        for name in wets:
            put(name)
        put(f"crawl-data/{snapshot}/wet.paths.gz", gzip.compress("\n".join(wets).encode(), mtime=0))
        common = {"surt": "org)/", "url": "http://org/", "date": "1970-01-01T00:00:00Z", "status": 200, "mime": "a/b", "detected": "a/b"}
        write_table(root, snapshot, [common | {"file": name, "offset": 0, "length": 9, "languages": "eng"} for name in names], 1)
    for wiki in ("enwiki", "zhwiki"):
        for date in ("19700101", "19700201"):
            names = [f"{wiki}-{date}-pages-articles{n}.xml-p{n}p{n}.bz2" for n in (1, 2)]
            sums = {name: hashlib.sha1(put(f"{wiki}/{date}/{name}")).hexdigest() for name in names}
            listed = {name: {"size": 100, "sha1": digest} for name, digest in sums.items()}
            put(f"{wiki}/{date}/dumpstatus.json", json.dumps({"jobs": {"articlesdump": {"status": "done", "files": listed}}}).encode())
    for name in (
        "files/a.txt",
        "files/b.txt",
        "eval/choice/a.jsonl",
        "eval/heldout.jsonl",
        "finetune/a.jsonl",
        "finetune/b.jsonl",
        "labels/a.jsonl",
        "labels/b.jsonl",
        "lists/a.txt",
        "lists/b.txt",
    ):
        put(name)
    return root


def places(root: Path) -> dict[str, str]:
    """The fields that say where the mirror is."""
    return {name: str(root) for name in ("common_crawl.base_url", "common_crawl.index_url", "wikipedia.base_url")} | {
        f"{name}.base": str(root) for name in ("files", "evaluation", "examples", "labels", "blocklists")
    }


def prints(store: Store, changes: dict[str, Any]) -> dict[str, str]:
    """Fingerprint by stage (its first ten digits) of the tiny recipe with these changes."""
    base = recipes.tiny()
    recipe = recipes.resolve(base, base, changes)
    if recipe.common_crawl:
        commoncrawl.run(store, recipe.name, recipe.common_crawl, recipe.download)
    if recipe.wikipedia:
        wikipedia.run(store, recipe.name, recipe.wikipedia, recipe.download)
    for section in (recipe.files, recipe.evaluation, recipe.examples, recipe.labels, recipe.blocklists):
        if section:
            files.run(store, recipe.name, section, recipe.download)
    steps = planning.plan("tiny", changes, store).steps
    assert all(step.state == "complete" for step in steps)
    return {step.stage: step.address.rpartition("-")[2] for step in steps}


def leaves(config: Any, path: str = "", identity: bool = True) -> list[tuple[str, Any, Any, bool]]:
    """(dotted name, value, type, whether it is part of the identity) of every field, sections included where they may be off."""
    found = []
    for field in fields(config):
        value, name = getattr(config, field.name), f"{path}.{field.name}".lstrip(".")
        mine = identity and field.metadata.get("identity", True)
        if is_dataclass(value):
            found += leaves(value, name, mine)
        else:
            found.append((name, value, typing.get_type_hints(type(config))[field.name], mine))
    return found


def another(name: str, value: Any, type_: Any) -> Any:
    """A different value of a field."""
    if name in VALUES:
        return VALUES[name]
    if typing.get_origin(type_) is Literal:
        return next((choice for choice in typing.get_args(type_) if choice != value), value)
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 0.9 or 0.1
        case str():
            return value + "x"
        case tuple():
            return [*value[:-1]] if len(value) > 1 else [*value, "x"]
    raise AssertionError(f"{name} holds a {type(value).__name__}: give it a value in VALUES")


LEAVES = {name: (value, type_, identity) for name, value, type_, identity in leaves(override(recipes.tiny(), BASE))}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Pretend(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def plain(store, here):
    return prints(store, BASE | places(here))


def test_every_stage_has_a_fingerprint_and_every_section_a_line_in_the_table(plain):
    ingests = {f"ingest {name}" for name in ("commoncrawl", "wikipedia", "files", "evaluation", "examples", "labels", "blocklist")}
    assert set(plain) == ingests | set(CHAIN)
    assert len(set(plain.values())) == len(plain)
    assert set(FEEDS) == {field.name for field in fields(recipes.Recipe)}
    assert set(VALUES) <= set(LEAVES), "a field of the table is gone from the recipe"


@pytest.mark.parametrize("name", LEAVES)
def test_a_field_changes_exactly_what_is_downstream(name, store, here, plain):
    value, type_, identity = LEAVES[name]
    given = places(here)
    if name in given:
        pytest.skip("an address of the mirror: see the test of places")
    changed = another(name, value, type_)
    if changed == value:
        assert typing.get_origin(type_) is Literal
        pytest.skip(f"{name} can only be {value!r} so far")
    found = prints(store, BASE | given | {name: changed})
    expected = OTHERWISE.get(name, FEEDS[name.split(".")[0]]) if identity else frozenset()
    if name in ROLES:
        expected = {ROLES[name]}
    assert {stage for stage in plain if found.get(stage) != plain[stage]} == expected


@pytest.mark.parametrize("source", ["common_crawl", "wikipedia", "files"])
def test_leaving_a_source_out_changes_extract_and_what_follows(source, store, here, plain):
    given = {name: value for name, value in (BASE | places(here)).items() if not name.startswith(source)}
    found = prints(store, given | {source: None})
    assert {stage for stage in found if found[stage] != plain[stage]} == since("extract")


def test_another_place_of_mirror_and_store_changes_nothing(tmp_path, plain):
    moved = places(mirror(tmp_path / "elsewhere" / "clone"))
    assert prints(Pretend(tmp_path / "other"), BASE | moved) == plain


def test_another_host_day_and_time_zone_change_nothing(tmp_path, monkeypatch, here, plain):
    monkeypatch.setattr(platform, "node", lambda: "another-host")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 400 * 86400)
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    time.tzset()
    try:
        assert prints(Pretend(tmp_path / "store"), BASE | places(here)) == plain
    finally:
        monkeypatch.undo()
        time.tzset()


def test_latest_is_the_snapshot_that_it_resolves_to(store, here):
    named = {"common_crawl.snapshot": "CC-MAIN-1970-02", "wikipedia.date": "19700201"}
    newest = {"common_crawl.snapshot": "latest", "wikipedia.date": "latest"}
    assert prints(store, BASE | places(here) | named) == prints(store, BASE | places(here) | newest)


def test_a_recipe_through_json_or_typed_in_a_shell_is_the_same(store, here, plain):
    typed = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (BASE | places(here)).items()}
    assert prints(store, typed) == plain
    whole = recipes.resolve(recipes.tiny(), recipes.tiny(), BASE)
    assert from_dict(recipes.Recipe, json.loads(json.dumps(to_dict(whole)))) == whole


def test_one_changed_byte_of_a_raw_file_reaches_everything_made_of_it(tmp_path, plain):
    root = mirror(tmp_path / "mirror")
    (root / "files" / "b.txt").write_bytes(b"x" * 100)
    found = prints(Pretend(tmp_path / "store"), BASE | places(root))
    assert {stage for stage in plain if found[stage] != plain[stage]} == FEEDS["files"]


GOLDEN = Path(__file__).parents[1] / "golden" / "stages.json"


def test_a_stage_whose_results_changed_has_a_new_revision(sample_run):
    """Golden hashes of the sample's corpus. After a wanted change: raise the stage's revision, then `python tests/golden/write.py`."""
    golden, now = json.loads(GOLDEN.read_text()), golden_of(sample_run[1])
    for stage, was in golden.items():
        found = now[stage]
        if found["made_of"] == was["made_of"] and found["files"] != was["files"]:
            pytest.fail(
                f"the {stage} stage gives other bytes for the same inputs and settings, and its revision is still {found['revision']}: stores would keep "
                f"the old ones. Raise the revision of its STAGE, then `python tests/golden/write.py`. If only a package's "
                "pin changed, say so in the changelog."
            )
        assert found == was, f"{stage}: the sample, the recipe or an earlier stage changed; run `python tests/golden/write.py`"


def test_the_order_in_which_inputs_are_given_changes_nothing(store, here):
    tiny = override(recipes.tiny(), BASE | places(here))
    raw = {"wikipedia": wikipedia.run(store, "t", tiny.wikipedia, tiny.download), "files": files.run(store, "t", tiny.files, tiny.download)}
    backwards = dict(reversed(raw.items()))
    assert fingerprint(made_of(extract.STAGE, tiny.extract, raw)) == fingerprint(made_of(extract.STAGE, tiny.extract, backwards))
