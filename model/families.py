"""Model directories, in and out: config.json, generation_config.json and model.safetensors, tokenizer files beside them.

    model = load("openai-community/gpt2")            # a hub id, or a local directory: the same code
    save(model, config, vocab, directory)            # the family that can say the shape, else model_type "ingot"

GPT-2, GPT-Neo, Llama, Qwen3, BERT and RoBERTa as model/layouts.py describes them. No code of a directory is ever run: weights are
safetensors, or a pickle that torch reads as weights only.
"""

import json
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig, from_dict, to_dict
from model.errors import CheckpointError, ConfigError, InputError, NetworkError, NotFoundError, TokenizerError
from model.layouts import LAYOUTS, Layout, Part, describing, reading
from model.tokenizer import END_OF_TEXT, END_OF_TURN, PAD
from model.transformer import Transformer

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "spiece.model", "chat_template.jinja",
)  # fmt: skip
PATTERNS = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES)
"""All that is fetched of a hub's repository."""
SPECIALS = ("bos_token_id", "eos_token_id", "pad_token_id")


def fetch(source: Path | str, revision: str | None = None, offline: bool = False) -> Path:
    """The local directory of a model: `source` itself, or the snapshot of a hub id (ORGANISATION/NAME) at a branch, tag or commit.

    Offline it is looked for among what was fetched before. Raises NotFoundError if there is neither, NetworkError if the hub does not answer.
    """
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", str(source)):
        raise NotFoundError(f"{source} is neither a directory nor a hub id (ORGANISATION/NAME); mend the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(PATTERNS), local_files_only=offline))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        at = f" at revision {revision}" if revision else ""
        raise NotFoundError(f"{source}{at} is no directory here and not on the hub, or not for you; mend the name, or log in") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NetworkError(f"{source} is no directory here, and the hub does not give it: {' '.join(str(error).split())[:300]}") from None


def save(
    model: Transformer,
    config: ModelConfig,
    vocab: int,
    out_dir: Path | str,
    dtype: torch.dtype = torch.float32,
    tokenizer: Path | str | None = None,
) -> None:
    """Write a model directory. A shape that a family can say is written as that family, so that transformers loads it with no code of ours.

    tokenizer: a model directory whose tokenizer files and special token ids are copied; without one, the ids are those of Ingot's
    tokenizers, and their files are written beside by tokenizer.save. Raises CheckpointError if the weights are not those of a
    Transformer(config, vocab).
    """
    out_dir = Path(out_dir)
    layout = describing(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if not (config.tie_embeddings and name == "output.weight")}
    _check({name: tuple(tensor.shape) for name, tensor in state.items()}, _shapes(config, vocab), f"the model to be written to {out_dir}")
    tensors = {part.theirs: _joined(part, state).detach().to("cpu", dtype).contiguous() for part in _parts(layout, state)}
    ids: dict[str, Any] = dict(zip(SPECIALS, (None, END_OF_TEXT, PAD), strict=True))
    stops = [END_OF_TEXT, END_OF_TURN]
    if tokenizer is not None:
        ids = {key: _read_json(Path(tokenizer) / "config.json").get(key) for key in SPECIALS}
        stops = ids["eos_token_id"]
    described = {"vocab_size": vocab, "dtype": str(dtype).removeprefix("torch."), "tie_word_embeddings": config.tie_embeddings} | ids
    described |= (
        layout.described(config) if layout else {"model_type": "ingot", "architectures": ["Transformer"], "config": to_dict(config)}
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    # transformers refuses a file without this metadata
    save_file(tensors, out_dir / "model.safetensors", metadata={"format": "pt"})
    files = {"config.json": described}
    if config.kind == "decoder" and not config.labels:
        files["generation_config.json"] = {"eos_token_id": stops, "pad_token_id": ids["pad_token_id"], "do_sample": False}
    for file, content in files.items():
        (out_dir / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    if tokenizer is not None:
        copy_tokenizer(tokenizer, out_dir)


def copy_tokenizer(directory: Path | str, out_dir: Path | str) -> None:
    """Copy the tokenizer files of a model directory, byte for byte."""
    for name in TOKENIZER_FILES:
        if (Path(directory) / name).exists():
            shutil.copyfile(Path(directory) / name, Path(out_dir) / name)


def load(source: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32, revision: str | None = None) -> Transformer:
    """A Transformer with the weights of a model directory or hub id, in `dtype` on `device`; its shape is `.config`, its vocabulary `.vocab`.

    Raises CheckpointError if files or tensors are missing, damaged, unknown or of another shape, InputError if the architecture is not
    one that transformer.py can compute, TokenizerError if the tokenizer beside the weights has ids beyond them.
    """
    directory = fetch(source, revision)
    path = directory / "config.json"
    described = _read_json(path)
    family, vocab = described.get("model_type"), described.get("vocab_size")
    layout = reading(described)
    if layout is None and family != "ingot":
        raise InputError(f"{path}: model_type {family!r} is not supported; ingot, {', '.join(LAYOUTS)} are")
    if not isinstance(vocab, int) or vocab < 1:
        raise InputError(f"{path}: vocab_size must be a positive number, not {vocab!r}")
    check_tokenizer(directory, vocab)
    tensors = _renamed(layout, _read_tensors(directory, dtype), directory)
    try:
        config = layout.config(described, tensors) if layout else from_dict(ModelConfig, described.get("config"), "config")
    except (ConfigError, InputError) as error:
        raise InputError(f"{path}: {error}") from None
    own_copies: dict[str, str | None] = {"output.weight": "embed.weight"} if config.tie_embeddings else {}
    for name, original in (layout.copies(config) if layout else own_copies).items():
        copy = tensors.pop(name, None)
        if copy is not None and original and not torch.equal(copy, tensors.get(original, copy)):
            raise CheckpointError(f"{directory}: tie_word_embeddings is true, but {name} and {original} differ; set it to false")
    shapes = _shapes(config, vocab)
    parts = _parts(layout, shapes)
    _check({name: tuple(tensor.shape) for name, tensor in tensors.items()}, {p.theirs: _shape(p, shapes) for p in parts}, str(directory))
    state: dict[str, Tensor] = {}
    for part in parts:
        state |= _split(part, tensors.pop(part.theirs), shapes)
    if config.tie_embeddings:
        state["output.weight"] = state["embed.weight"]
    with torch.device("meta"):  # no memory or time for values that are replaced at once
        model = Transformer(config, vocab)
    model.load_state_dict(state, assign=True)
    model.tie()
    return model.to(device)


def _shapes(config: ModelConfig, vocab: int) -> dict[str, tuple[int, ...]]:
    """Our tensor names and shapes; a tied output matrix is not a tensor of its own."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Transformer(config, vocab).named_parameters()}


def _parts(layout: Layout | None, own: Collection[str]) -> list[Part]:
    return layout.tensors(own) if layout else [Part(name, (name,)) for name in own]


def _joined(part: Part, state: dict[str, Tensor]) -> Tensor:
    whole = torch.cat([state[name] for name in part.ours])
    return whole.T if part.turned else whole


def _split(part: Part, tensor: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    whole = tensor.T if part.turned else tensor
    if len(part.ours) == 1:
        return {part.ours[0]: whole.contiguous()}
    pieces = whole.split([shapes[name][0] for name in part.ours])
    return {name: piece.clone(memory_format=torch.contiguous_format) for name, piece in zip(part.ours, pieces, strict=True)}


def _shape(part: Part, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    whole = (sum(shapes[name][0] for name in part.ours), *shapes[part.ours[0]][1:])
    return whole[::-1] if part.turned else whole


def _renamed(layout: Layout | None, tensors: dict[str, Tensor], directory: Path) -> dict[str, Tensor]:
    """Tensors by the names that a layout has for them today, without what nothing needs."""
    if layout is None:
        return tensors
    named: dict[str, Tensor] = {}
    for found, tensor in tensors.items():
        name = layout.name(found)
        if name in named:
            raise CheckpointError(f"{directory} holds {name} twice, once as {found}; fetch the weights again")
        if name is not None:
            named[name] = tensor
    return named


def _check(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], where: str) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not a tensor of this architecture" for name in found if name not in expected]
    problems += [
        f"{n} has shape {list(found[n])} instead of {list(expected[n])}" for n in expected if n in found and found[n] != expected[n]
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(
            f"{where}: weights do not fit the config: {shown}. Check config.json (vocab_size, sizes) or fetch the weights again"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a model directory: it has no {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}. Fetch it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__} instead of an object. Fetch it again")
    return content


def check_tokenizer(directory: Path | str, vocab: int) -> None:
    """TokenizerError if a directory's tokenizer has ids for which there is no row of `vocab`."""
    path = Path(directory) / "tokenizer.json"
    if not path.exists():
        return
    described = _read_json(path)
    words = (described.get("model") or {}).get("vocab") or {}
    ids: Iterable[int] = words.values() if isinstance(words, dict) else range(len(words))
    most = max([*ids, *(token["id"] for token in described.get("added_tokens") or [])], default=-1)
    if most >= vocab:
        raise TokenizerError(
            f"{path} has token ids up to {most:,}, the weights rows for {vocab:,}. Use the tokenizer that they were trained with"
        )


def _read_tensors(directory: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of model.safetensors or pytorch_model.bin, or of the shards that an index lists; safetensors first."""
    forms = ("model.safetensors", "pytorch_model.bin")
    form = next((f for f in forms if any((directory / name).exists() for name in (f, f"{f}.index.json"))), forms[0])
    index = directory / f"{form}.index.json"
    if index.exists():
        files = sorted({str(file) for file in _read_json(index).get("weight_map", {}).values()})
    else:
        files = [form]
    tensors: dict[str, Tensor] = {}
    for file in files:
        path = directory / file
        if path.parent != directory:  # a weight_map is input: it must not reach outside
            raise InputError(f"{index}: weight_map names {file!r}, which is not a file of this directory")
        if not path.exists():
            raise CheckpointError(f"{directory} has no {file}; fetch it, or convert the weights that are there to safetensors")
        read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
        tensors |= {name: tensor.to(dtype) for name, tensor in read(path).items()}
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Fetch or export it again") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """What torch unpickles as weights only, which runs no code of the file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file can make an unpickler raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is a pickle that is more than weights, and is not read ({reason}): convert it to safetensors"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()):
        raise CheckpointError(f"{path} holds {type(found).__name__} instead of tensors by name; convert the weights to safetensors")
    return found
