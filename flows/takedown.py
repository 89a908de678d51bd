"""Take documents out of a published corpus, for good: the next version lacks them, and no refresh brings them back.

ingot takedown news --url https://example.org/a --why "letter of 3 May"
"""

from collections.abc import Sequence
from typing import Any

from prefect import flow

from flows import recipes
from flows.build import open_store
from flows.recipes import Recipe
from model.errors import ConfigError, NotFoundError
from tasks import dedup, takedown
from tasks.corpus import takedown as plain
from tasks.corpus.manifest import Store, locked
from tasks.corpus.takedown import Tombstones


@flow(name="takedown", flow_run_name="takedown {corpus}")
def withdraw(
    corpus: str,
    ids: list[str] = [],  # noqa: B006
    urls: list[str] = [],  # noqa: B006
    domains: list[str] = [],  # noqa: B006
    why: str = "",
    recipe: Recipe = recipes.base(),
    store: str | None = None,
) -> dict[str, Any]:
    """Publish the corpus without these documents; returns the receipt. Run again after a crash, it goes on; asked again, it finds it done. It waits for a
    refresh of that corpus that is running.

    Args:
        corpus: name of a published corpus.
        ids: ids of records.
        urls: addresses, exactly as the documents have them.
        domains: host names; their subdomains too.
        why: what the receipt shall say of the reason.
        recipe: its dedup section makes the new index segments, its engine runs them.
        store: path or URL of the store; default INGOT_STORE, or ./.ingot.
    """
    place = open_store(store)
    asked = named(place, corpus, ids, urls, domains)
    with locked(place, f"corpora/{corpus}"):
        return _withdraw(place, corpus, asked, why, recipe)


def named(place: Store, corpus: str, ids: Sequence[str], urls: Sequence[str], domains: Sequence[str]) -> Tombstones:
    """What a takedown asks for. ConfigError where it names nothing or what is no host name, NotFoundError where there is no such corpus."""
    asked = Tombstones(tuple(sorted(ids)), tuple(sorted(urls)), tuple(sorted(domain.lower().rstrip(".") for domain in domains)))
    if asked == Tombstones():
        raise ConfigError("a takedown names at least one id, url or domain")
    if wrong := [domain for domain in asked.domains if not domain or set(domain) & set("/:@? *")]:
        raise ConfigError(f"{wrong[0]!r} is not a host name; a domain is given as example.org, an address by url")
    if not place.versions("corpora", corpus):
        raise NotFoundError(f"corpora/{corpus} is not published in {place.url}; `ingot show` lists what is.")
    return asked


def _withdraw(place: Store, corpus: str, asked: Tombstones, why: str, recipe: Recipe) -> dict[str, Any]:
    old = place.versions("corpora", corpus)[-1]
    now = [place.need(address) for address in old.parts]
    receipt = plain.ask(place, corpus, asked, why, now, old.address)
    if "version" in receipt:
        return receipt
    whole = [place.need(part.inputs["documents"]) if part.stage == plain.STAGE.name else part for part in now]
    after = [takedown.withdraw(place, corpus, part) for part in whole]
    new = old
    if [part.address for part in after] != list(old.parts):
        segments = [dedup.index(place, corpus, recipe.dedup, part, recipe.engine) for part in after]
        name = plain.version(place, corpus, old.version, after)
        made_of = {field: value for field, value in old.made_of.items() if field != "parts"} | {"previous": old.address}
        info = old.info | {"documents": sum(part.kept for part in after), "refresh": False}
        place.publish("indexes", corpus, name, segments, made_of, {"documents": info["documents"]})
        new = place.publish("corpora", corpus, name, after, made_of, info)
    touched = [place.need(address) for address in sorted({found["address"] for found in receipt["documents"]})]
    made = plain.dependents(place, [part.address for part in touched])
    return plain.close(
        place,
        corpus,
        receipt,
        {
            "version": new.address,
            "shards": [m.address for m in made if m.stage == "encode"],
            "models": [m.address for m in made if m.stage in ("pretrain", "finetune")],
            "registered": [m.info["model_uri"] for m in made if m.stage == "register"],
            "held_by": plain.holders(place, touched, new, receipt["documents"]),
        },
    )
