"""The gate of exports: whether what was written answers as torch does. The verdict is parity.json beside the export.

    report = check(model_directory, export_directory, "onnx-int8")
    keep(report, export_directory)
    report.agrees, report.failed

Torch continues every prompt greedily. The export is then given the same tokens, and its logits after each are compared with torch's: this does
not end at the first token that differs. Beside that it writes by itself, with the special tokens that it declares.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import torch

from deploy import export_gguf, export_hf, export_onnx, onnx_model
from model import families, tokenizer
from model.config import ModelConfig
from model.errors import IngotError
from model.generate import generate
from model.tokenizer import END_OF_TEXT, END_OF_TURN, PROBES, SPECIALS, render
from model.transformer import Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Format = Literal["hf", "onnx", "onnx-int8", "gguf"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILE = "parity.json"
MAX_NEW = 24
"""Tokens written after each prompt."""
PROMPTS = (
    "What is a lighthouse?", "The keeper climbed the stairs and lit the lamp,", "In 1847 the harbour of the town was", "Water boils at 100 degrees",
    "Dear customer, your card", "def main():\n    ",
    "什么是灯塔？", "守望人登上楼梯，点亮了灯，", "北京是中国的", "水在100度时", "尊敬的客户，您的银行卡", "患者主诉：发热三天，",
)  # fmt: skip
CHATS = (
    [{"role": "user", "content": "What is a lighthouse?"}],
    [{"role": "user", "content": "什么是灯塔？"}],
    [{"role": "system", "content": "Answer in one sentence."}, {"role": "user", "content": "Why do ships need light?"}],
    [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}, {"role": "user", "content": " 船为什么需要灯光？\n"}],
)
TEXTS = (*PROMPTS, *(probe for probe in PROBES if not any(special in probe for special in SPECIALS)))
"""For the tokenizer. Those with special tokens' names are left out: other programs read these as the tokens."""


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from torch, in standard deviations of torch's logits (of an encoder also its states) at one place."""

    logits: float
    """Greatest difference of one logit."""
    lead: float
    """A greedy token may differ where torch's own is ahead of its second by no more; 0: nowhere."""


TOLERANCES: Mapping[Format, Tolerance] = {
    "hf": Tolerance(1e-3, 0.0), "onnx": Tolerance(1e-3, 0.0), "gguf": Tolerance(1e-3, 0.0), "onnx-int8": Tolerance(0.5, 0.2),
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was compared."""

    name: str
    agrees: bool
    found: str
    """What was measured, in words."""


@dataclass(frozen=True)
class Report:
    """A verdict: of which weights, in which format, by which measure."""

    format: Format
    model: dict[str, str]
    """sha256 of the files of the model directory."""
    files: dict[str, str]
    """sha256 of the export's files."""
    tolerance: Tolerance
    checks: list[Check]
    packages: dict[str, str]
    """Versions of the packages that were compared."""

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.agrees]

    @property
    def agrees(self) -> bool:
        return not self.failed

    @property
    def verdict(self) -> str:
        """In one line: agrees, or what does not."""
        return "agrees" if self.agrees else "disagrees: " + "; ".join(f"{check.name}: {check.found}" for check in self.failed)


class Runner(Protocol):
    """A model as its format is run."""

    words: "PreTrainedTokenizerFast"
    """The tokenizer that the export holds, with its chat template."""
    stops: frozenset[int]
    """Ids that it declares to end a text or a turn."""

    def logits(self, ids: list[int], begin: int) -> np.ndarray:
        """Logits [T - begin, V] after each token from place `begin` on. A decoder reads the tokens up to `begin` at once and those behind one by
        one, on its cache."""
        ...

    def states(self, ids: list[int]) -> np.ndarray:
        """States [T, C] of an encoder."""
        ...

    def write(self, prompts: list[list[int]], max_new: int) -> list[list[int]]:
        """Greedy continuations, ended by its own stops, which are not in them."""
        ...


class Torch:
    """Our Transformer, in one pass without a cache: the reference, and what runs a GGUF's tensors."""

    def __init__(self, model: Transformer, spelling: "Tokenizer", stops: Iterable[int], words: "PreTrainedTokenizerFast"):
        self.model, self.spelling, self.stops, self.words = model.eval(), spelling, frozenset(stops), words

    @torch.inference_mode()
    def logits(self, ids: list[int], begin: int) -> np.ndarray:
        return self.model(torch.tensor([ids]))[0, begin:].numpy()

    @torch.inference_mode()
    def states(self, ids: list[int]) -> np.ndarray:
        return self.model(torch.tensor([ids]), hidden=True)[0].numpy()

    def write(self, prompts: list[list[int]], max_new: int) -> list[list[int]]:
        return [one.ids for one in generate(self.model, self.spelling, prompts, max_new, stop_ids=tuple(self.stops))]


class Onnx:
    """model.onnx in onnxruntime."""

    def __init__(self, directory: Path):
        self.model: Any = onnx_model.load(directory)
        self.spelling, self.words, self.stops = tokenizer.load(directory), _words(directory), _declared(directory)

    def logits(self, ids: list[int], begin: int) -> np.ndarray:
        if isinstance(self.model, onnx_model.Encoder):
            return self.model([ids, [*ids, ids[0]]], logits=True)[0][begin:]  # beside a longer row, so that there is padding
        cache = onnx_model.Cache(self.model, 1, len(ids))
        return np.concatenate([self.model(np.array([piece]), cache) for piece in _pieces(ids, begin)])

    def states(self, ids: list[int]) -> np.ndarray:
        return self.model([ids, [*ids, ids[0]]])[0]

    def write(self, prompts: list[list[int]], max_new: int) -> list[list[int]]:
        return [one.ids for one in onnx_model.generate(self.model, self.spelling, prompts, max_new, stop_ids=tuple(self.stops))]


class HuggingFace:
    """transformers, with no code of ours."""

    def __init__(self, directory: Path, config: ModelConfig):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        kind = "AutoModelForCausalLM" if config.kind == "decoder" else "AutoModelForMaskedLM" if config.head == "masked" else "AutoModel"
        self.model = getattr(transformers, kind).from_pretrained(directory, dtype=torch.float32).eval()
        self.words, self.stops = _words(directory), _declared(directory)

    @torch.inference_mode()
    def logits(self, ids: list[int], begin: int) -> np.ndarray:
        if not self.model.can_generate():
            return self.model(torch.tensor([ids])).logits[0, begin:].numpy()
        cache, rows = None, []
        for piece in _pieces(ids, begin):
            made = self.model(torch.tensor([piece]), past_key_values=cache, use_cache=True)
            cache = made.past_key_values
            rows.append(made.logits[0, -1])
        return torch.stack(rows).numpy()

    @torch.inference_mode()
    def states(self, ids: list[int]) -> np.ndarray:
        return self.model.base_model(torch.tensor([ids])).last_hidden_state[0].numpy()

    @torch.inference_mode()
    def write(self, prompts: list[list[int]], max_new: int) -> list[list[int]]:
        written = []
        for prompt in prompts:
            given = torch.tensor([prompt])
            made = self.model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=max_new)[0, len(prompt) :].tolist()
            written.append(made[:-1] if made[-1] in self.stops else made)
        return written


def check(directory: Path | str, exported: Path | str, kind: Format) -> Report:
    """Compare an export with the model directory that it was made of. What cannot be loaded or run at all is a check that fails.

    Raises as families.load and tokenizer.load do for the model directory itself.
    """
    directory, exported = Path(directory), Path(exported)
    model, spelling = families.load(directory), tokenizer.load(directory)
    reference = Torch(model, spelling, (END_OF_TEXT, END_OF_TURN), _words(directory))
    checks: list[Check] = []
    try:
        checks += [Check(what, not wrong, wrong or "read back as written") for what, wrong in _compared(directory, exported, kind).items()]
        runner = _runner(exported, kind, model.config)
        checks += _tokenizer(reference, runner)
        checks += (_decoder if model.config.kind == "decoder" else _encoder)(reference, runner, TOLERANCES[kind])
    except Exception as error:  # whatever another program makes of a damaged file
        said = " ".join(str(error).split())[:300]
        checks.append(Check("runs", False, said if isinstance(error, IngotError) else f"{type(error).__name__}: {said}"))
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "onnxruntime", "gguf")}
    return Report(kind, _files(directory), _files(exported), TOLERANCES[kind], checks, packages)


def _compared(directory: Path, exported: Path, kind: Format) -> dict[str, str]:
    """What a file holds otherwise than the model directory gives it."""
    if kind == "hf":
        return export_hf.compared(directory, exported)
    if kind == "gguf":
        return export_gguf.compared(directory, exported)
    return export_onnx.compared(directory, exported, "int8" if kind == "onnx-int8" else "fp32")


def _runner(exported: Path, kind: Format, config: ModelConfig) -> Runner:
    if kind == "hf":
        return HuggingFace(exported, config)
    return Torch(*export_gguf.restored(exported, config)) if kind == "gguf" else Onnx(exported)


def keep(report: Report, exported: Path | str) -> Path:
    """Write the verdict beside the export; its path."""
    path = Path(exported) / FILE
    path.write_text(json.dumps({"agrees": report.agrees, **asdict(report)}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _tokenizer(reference: Torch, runner: Runner) -> list[Check]:
    """Ids of texts, and what comes back of them."""
    ids = [tokenizer.encode(reference.spelling, text) for text in TEXTS]
    other = [text for text, one in zip(TEXTS, ids, strict=True) if runner.words.encode(text, add_special_tokens=False) != one]
    lost = [text for text, one in zip(TEXTS, ids, strict=True) if runner.words.decode(one) != reference.words.decode(one)]
    return [
        Check("tokenizer", not other, _first("other ids for", other) or f"the same ids for {len(TEXTS)} texts"),
        Check("round trip", not lost, _first("another text comes back of", lost) or f"{len(TEXTS)} texts come back"),
    ]


def _decoder(reference: Torch, runner: Runner, tolerance: Tolerance) -> list[Check]:
    words, context = reference.spelling, reference.model.config.context
    chats = [render(chat, words, answer=True)[0] for chat in CHATS]
    rendered = [runner.words.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in CHATS]
    other = [chat[-1]["content"] for chat, a, b in zip(CHATS, chats, rendered, strict=True) if a != b]
    most = min(MAX_NEW, context // 2)
    prompts = [ids[-max(1, context - most - 1) :] for ids in (*(tokenizer.encode(words, text) for text in PROMPTS), *chats)]
    said = generate(reference.model, words, prompts, most)
    measured = _Measured(tolerance, words.get_vocab_size())
    strayed = []
    for prompt, one, own in zip(prompts, said, runner.write(prompts, most), strict=True):
        ids, begin = [*prompt, *one.ids], len(prompt) - 1
        alike = measured.add(reference.logits(ids, begin), runner.logits(ids, begin))
        # behind a place where they may part, what each writes is no longer the same text
        if own[:alike] != one.ids[:alike] if alike < len(one.ids) + (one.finished == "stop") else own != one.ids:
            strayed.append(words.decode(prompt))
    ended = f"{sum(one.finished == 'stop' for one in said)} of {len(said)} answers end by themselves"
    declared = f"stops at ids {sorted(runner.stops)}" + (
        "" if runner.stops == reference.stops else f" instead of {sorted(reference.stops)}"
    )
    return [
        *measured.checks("logits"),
        Check("writing", not strayed, _first("another text after", strayed) or f"the same text after {len(said)} prompts"),
        Check("chat template", not other, _first("renders otherwise", other) or f"the same ids for {len(CHATS)} chats"),
        Check("end of turn", runner.stops == reference.stops, f"{declared}; {ended}"),
    ]


def _encoder(reference: Torch, runner: Runner, tolerance: Tolerance) -> list[Check]:
    states, logits = _Measured(tolerance), _Measured(tolerance, reference.spelling.get_vocab_size())
    masked = reference.model.config.head == "masked"
    for text in PROMPTS:
        ids = tokenizer.encode(reference.spelling, text)[: reference.model.config.context - 1]
        states.add(reference.states(ids), runner.states(ids))
        if masked:
            logits.add(reference.logits(ids, 0), runner.logits(ids, 0))
    return [*states.checks("states"), *(logits.checks("logits") if masked else [])]


class _Measured:
    """Differences from torch over all places of all prompts; with `vocab` also of the likeliest token."""

    def __init__(self, tolerance: Tolerance, vocab: int = 0):
        self.tolerance, self.vocab = tolerance, vocab
        self.places, self.greatest = 0, 0.0
        self.leads: list[float] = []

    def add(self, torchs: np.ndarray, theirs: np.ndarray) -> int:
        """Count scores [T, V]; how many places from the first on have a lead beyond the tolerance."""
        spread_T = torchs.std(-1)
        self.greatest = float(np.maximum(self.greatest, (np.abs(torchs - theirs).max(-1) / spread_T).max()))  # NaN stays
        self.places += len(torchs)
        if not self.vocab:
            return len(torchs)
        two_T2 = np.partition(torchs[:, : self.vocab], -2)[:, -2:]
        lead_T = (two_T2[:, 1] - two_T2[:, 0]) / spread_T
        differs_T = torchs[:, : self.vocab].argmax(-1) != theirs[:, : self.vocab].argmax(-1)
        self.leads += lead_T[differs_T].tolist()
        near_T = lead_T <= self.tolerance.lead
        return int(near_T.argmax()) if near_T.any() else len(torchs)

    def checks(self, what: str) -> list[Check]:
        allowed = self.tolerance
        far = f"at {self.places} places at most {self.greatest:.2g} standard deviations apart; {allowed.logits:g} allowed"
        made = [Check(what, bool(self.greatest <= allowed.logits), far)]
        if self.vocab:
            worst = max(self.leads, default=0.0)
            where = f", where torch's lead is at most {worst:.2g}; {allowed.lead:g} allowed" if self.leads else ""
            made.append(Check("tokens", worst <= allowed.lead, f"{len(self.leads)} of {self.places} likeliest tokens differ{where}"))
        return made


def _pieces(ids: list[int], begin: int) -> list[list[int]]:
    """The tokens up to a place, then one by one."""
    return [ids[: begin + 1], *([one] for one in ids[begin + 1 :])]


def _words(directory: Path) -> Any:
    """The tokenizer of a directory as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def _declared(directory: Path) -> frozenset[int]:
    """Ids at which generation ends, as a directory says; none where it says nothing."""
    path = directory / "generation_config.json"
    found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    return frozenset([found] if isinstance(found, int) else found or [])


def _first(what: str, wrong: Sequence[str]) -> str:
    return f"{what} {len(wrong)}, first {wrong[0][:40]!r}" if wrong else ""


def _files(directory: Path) -> dict[str, str]:
    """sha256 of each file but the verdict."""
    found = {}
    for path in sorted(path for path in directory.iterdir() if path.is_file() and path.name != FILE):
        with open(path, "rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
