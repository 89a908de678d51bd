"""The adopt task: a model made elsewhere (GPT-2, GPT-Neo, Llama, Qwen3 …) as what pretrain and finetune start from.

A directory or hub id in; model/ and tokenizer/ out, with rows for Ingot's special tokens and for new words (model/adopt.py). The stage is
complete when the files' sha256 and the words are the same, wherever the files lie.
"""

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from prefect import task

from model.config import STRICT, to_dict
from tasks import policy
from tasks.corpus.document import file_sha256, settle
from tasks.corpus.manifest import Manifest, Result, Stage, Store, Work, run_stage
from tasks.report import ended, watch

ADOPT = Stage("adopt", 2)


@dataclass(frozen=True)
class StartConfig:
    """A model made elsewhere that training starts from: its shape and its tokenizer take the place of the recipe's."""

    __pydantic_config__ = STRICT

    model: str
    """Directory, or hub id (ORGANISATION/NAME): config.json, safetensors, tokenizer.json. The files' content decides, not where they lie."""
    revision: str
    """Branch, tag or commit on the hub; '' is the default branch."""
    tokens: tuple[str, ...]
    """New tokens, words of a new domain: each gets a row, at first the mean of the old ones."""


@task(name="adopt", **policy.NETWORK)
def adopt(store: Store, recipe: str, config: StartConfig, rebuild: bool = False) -> Manifest:
    """Take a model in. `info`: model (its shape), vocab, tokenizer, tokens, source."""
    with watch("adopt") as progress:
        directory, wanted = request(config)
        return ended(run_stage(store, ADOPT, recipe, wanted, {}, lambda work: _adopt(work, config, directory), progress, rebuild))


def request(config: StartConfig, offline: bool = False) -> tuple[Path, dict[str, Any]]:
    """The local directory, and what decides the stage's output: its files by sha256, and the new tokens.

    Raises NotFoundError and NetworkError as families.fetch does.
    """
    from model.families import PATTERNS, fetch

    kinds = (*PATTERNS, "pytorch_model*.bin*")  # a local directory may hold its weights as a pickle
    directory = fetch(config.model, config.revision or None, offline)
    names = sorted(path.name for path in directory.iterdir() if any(fnmatchcase(path.name, pattern) for pattern in kinds))
    return directory, {"files": {name: file_sha256(directory / name) for name in names}, "tokens": list(config.tokens)}


def _adopt(work: Work, config: StartConfig, directory: Path) -> Result:
    from model import adopt, tokenizer

    model = adopt.adopt(directory, work.scratch / "model", config.tokens)
    words = tokenizer.load(work.scratch / "model")
    tokenizer.save(words, work.scratch / "tokenizer")
    files = []
    for folder in ("model", "tokenizer"):
        (work.dir / folder).mkdir(exist_ok=True)
        for path in sorted((work.scratch / folder).iterdir()):
            settle(path, work.dir / folder / path.name)
            files.append(f"{folder}/{path.name}")
    info = {"model": to_dict(model.config), "vocab": model.vocab, "tokenizer": tokenizer.fingerprint(words)}
    info |= {"tokens": words.get_vocab_size(), "source": os.path.basename(config.model) if os.path.isdir(config.model) else config.model}
    return Result([(name, None) for name in files], 1, 1, {}, info)
