"""The takedown task. Documents out that must not be in a corpus, now and at every refresh."""

from prefect import task

from tasks import policy
from tasks.corpus import takedown as plain
from tasks.corpus.manifest import Manifest, Store
from tasks.report import ended, watch


@task(name="takedown", **policy.COMPUTE)
def withdraw(store: Store, corpus: str, documents: Manifest) -> Manifest:
    """The documents without what the corpus's takedowns name; the same manifest where they name none of them."""
    with watch("takedown") as progress:
        made = plain.run(store, corpus, plain.tombstones(store, corpus), {"documents": documents}, progress)
        return made if made is documents else ended(made)
