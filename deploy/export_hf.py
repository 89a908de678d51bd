"""A model directory as transformers loads it with no code of ours: config, safetensors, tokenizer with its chat template, generation settings.

export(model_directory, out_dir)
AutoModelForCausalLM.from_pretrained(out_dir), AutoTokenizer.from_pretrained(out_dir)
"""

from pathlib import Path

import torch

from model import families
from model.errors import ConfigError
from model.layouts import describing


def export(directory: Path | str, out_dir: Path | str) -> None:
    """Write the directory, weights in fp32. Raises ConfigError for a shape or a head that transformers has no class for, or that is not checked."""
    model = families.load(directory)
    if model.config.prompt:
        raise ConfigError(f"{directory} has a soft prompt, which is not exported yet; use the torch model")
    if describing(model.config) is None:
        raise ConfigError(f"{directory}: no family of transformers has this shape ({model.config.kind}); `--to onnx` takes it")
    if model.config.labels:
        raise ConfigError(
            f"{directory} has a head of {model.config.head}: its export is not checked yet; copy the directory, it loads as it is"
        )
    families.save(model, model.config, model.vocab, out_dir)
    families.copy_tokenizer(directory, out_dir)


def compared(directory: Path | str, exported: Path | str) -> dict[str, str]:
    """Tensors that differ from the model directory's, bit for bit; '' where none does."""
    wanted, found = families.load(directory).state_dict(), families.load(exported).state_dict()
    wrong = [
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted or name not in found or not torch.equal(wanted[name], found[name])
    ]
    return {"tensors": f"{len(wrong)} differ, first {min(wrong)}" if wrong else ""}
