"""Ingest tasks: one a source. Config in, manifest of raw files out."""

from prefect import task

from tasks import policy
from tasks.corpus import commoncrawl, files, wikipedia
from tasks.corpus.download import DownloadConfig
from tasks.corpus.manifest import Manifest, Store
from tasks.report import ended, watch


@task(name="ingest-common-crawl", **policy.NETWORK)
def common_crawl(
    store: Store, recipe: str, config: commoncrawl.CommonCrawlConfig, download: DownloadConfig, rebuild: bool = False, whole: bool = False
) -> Manifest:
    """WARC files of one snapshot."""
    with watch("ingest commoncrawl") as progress:
        return ended(commoncrawl.run(store, recipe, config, download, progress, rebuild=rebuild, whole=whole))


@task(name="ingest-wikipedia", **policy.NETWORK)
def wiki_dumps(
    store: Store, recipe: str, config: wikipedia.WikipediaConfig, download: DownloadConfig, rebuild: bool = False, whole: bool = False
) -> Manifest:
    """Article dumps of one or more wikis."""
    with watch("ingest wikipedia") as progress:
        return ended(wikipedia.run(store, recipe, config, download, progress, rebuild=rebuild, whole=whole))


@task(name="ingest-files", task_run_name="ingest {config.name}", **policy.NETWORK)
def local_files(
    store: Store, recipe: str, config: files.FilesConfig, download: DownloadConfig, rebuild: bool = False, whole: bool = False
) -> Manifest:
    """Books and other files of one's own; evaluation sets and examples too."""
    with watch(f"ingest {config.name}") as progress:
        return ended(files.run(store, recipe, config, download, progress, rebuild=rebuild, whole=whole))
