"""The one training loop: load or initialise → batch → micro-batches → step → evaluate → save. Runs on every rank of a torchrun (model/train.py).

A Run in; metrics.jsonl, checkpoints/, at the end model/ and done.json under run.out. Batches are a function of the step and dropout's noise
of (seed, step, rank), so resuming needs nothing but the last complete checkpoint. Shape suffixes: B rows of a global batch, N samples.
"""

import itertools
import json
import math
import os
import shutil
import sys
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from model import adapters, checkpoint, families, objectives, partition, pipeline, room, zero
from model.batches import Batch, Batches, held_out
from model.config import Lora, Run, TrainConfig, to_dict
from model.errors import CheckpointError, ConfigError, InputError, NonFiniteError
from model.objectives import Objective, Rows, on_device
from model.peak import named, peak_flops
from model.pipeline import Line
from model.saving import Writer
from model.sequence import Parts
from model.spikes import Spikes, held
from model.transformer import Transformer, flops_per_token

Row = dict[str, Any]
NAMED = 20
"""Documents of a batch that are named where something is wrong with it."""


@dataclass(frozen=True)
class Place:
    """Which of the processes this is, and what it computes on."""

    rank: int
    world: int
    device: torch.device
    tensor: int
    """Ranks that share the matrices of one model."""
    sequence: int
    """Ranks that share the tokens of one row."""
    stages: int
    """Ranks that hold some layers of one model each."""

    @property
    def first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    @property
    def replica(self) -> int:
        """Which rows are this rank's; those that share them are neighbours."""
        return self.rank // (self.tensor * self.sequence * self.stages)

    @property
    def replicas(self) -> int:
        """How many have rows of their own."""
        return self.world // (self.tensor * self.sequence * self.stages)

    @property
    def stage(self) -> int:
        """Which layers are this rank's."""
        return self.rank % self.stages

    @property
    def averaged(self) -> int:
        """Ranks over which DeepSpeed averages gradients."""
        return self.world // (self.tensor * self.stages)

    @property
    def speaks(self) -> bool:
        """Whether its findings count: of ranks that share matrices, which all find the same, one does; of stages the last."""
        return self.rank % self.tensor == 0 and self.stage == self.stages - 1


def train(run: Run) -> None:
    """The loop, on every rank of a torchrun. Raises FatalErrors of the run, its files and its numbers."""
    if "RANK" not in os.environ:
        raise ConfigError("model.train runs under torchrun: torchrun --standalone --nproc-per-node RANKS -m model.train RUN.json")
    settings, out = run.train, Path(run.out)
    zero.accumulation(settings, _replicas(run))
    if settings.length > run.model.context:
        raise ConfigError(
            f"train.length ({settings.length}) exceeds model.context ({run.model.context}); shorten it or lengthen the context"
        )
    families.check_tokenizer(run.tokenizer, run.vocab)
    objective = objectives.of(run)
    objective.source((*run.shards, *run.valid))  # what is wrong with them is told before anything is started
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = Place(rank, world, _device(run), settings.tensor_parallel, settings.sequence_parallel, settings.pipeline_parallel)
    with room.told(run, place.replicas, place.device):
        engine, line = _engine(run, place)
        objective.begin(engine)
    batches = Batches(objective.source(run.shards), run.data_fingerprint, settings.batch, settings.seed, objective.noise, settings.steps)
    valid = None
    if run.valid:
        rows = settings.valid_batches * settings.batch
        valid = held_out(objective.source(run.valid), rows, run.data_fingerprint, objective.noise)
    saved = {"run": to_dict(run), "world": place.world}
    found, skipped = _latest(out / "checkpoints", run.fingerprint, place)
    cut = _cut(found.config if found else saved)
    if found and cut == _cut(saved):
        engine.load_checkpoint(str(found.path.parent), tag=found.path.name, load_module_strict=settings.adapter is None)
    elif found and cut["tensor_parallel"] == settings.tensor_parallel == 1:
        partition.restore(engine, found.path, _order(run))
    elif found:
        raise CheckpointError(
            f"{found.path} was written with {cut}, this run has {_cut(saved)}: where matrices are shared among ranks, all of it must stay. "
            "Set it back, or remove checkpoints/ to start over."
        )
    step, metrics = (found.step, dict(found.metrics)) if found else (0, {})
    feed = Feed(batches, settings, place, step)
    writer = Writer(engine)
    spikes = Spikes(settings.skip_sigmas, found.config["losses"] if found else ())
    log = Metrics(out / "metrics.jsonl", step) if place.first else None
    if log and (found or skipped):
        log.write({"event": "resumed", "step": step, "skipped": [asdict(s) for s in skipped], "written_with": cut})

    rest = room.rest(place.device)
    tokens = settings.batch * settings.length
    peak = peak_flops(place.device, settings.precision)
    flops = flops_per_token(run.model, run.vocab, settings.length)
    while step < settings.steps:
        begun = time.perf_counter()
        rate = zero.learning_rate(settings, step)
        with room.told(run, place.replicas, place.device):
            loss, norm, spike = update(engine, line, objective, batches, feed, run, step, rate, place, spikes)
        digest, step = batches.digest(step), step + 1
        seconds = time.perf_counter() - begun
        row: Row = {"step": step, "loss": loss, "lr": rate, "grad_norm": norm, "tokens": step * tokens, "tokens_per_s": tokens / seconds}
        row |= {"seconds": seconds, "batch": digest, "rss_bytes": psutil.Process().memory_info().rss}
        row |= {"gpu_bytes": torch.cuda.max_memory_allocated()} if place.device.type == "cuda" else {}
        row |= {"mfu": flops * tokens / seconds / (peak * place.world)} if peak else {}
        row |= {"skipped": metrics.get("skipped", 0) + bool(spike)} if settings.skip_sigmas else {}
        metrics |= row
        if log:
            log.write(row)
            if spike:
                log.write({"event": "spike", "step": step, "found": loss} | spike)  # no "loss": a step has one row of it
        last = step == settings.steps
        if valid and (last or (settings.valid_every and step % settings.valid_every == 0)):
            begun = time.perf_counter()
            with room.told(run, place.replicas, place.device):
                checked: Row = {"step": step} | evaluate(engine, line, objective, valid, run, place)
            checked["valid_seconds"] = time.perf_counter() - begun
            metrics |= checked
            if log:
                log.write(checked)
        if last or step % settings.save_every == 0:
            _save(engine, writer, run, step, saved | {"losses": spikes.losses}, metrics, log, place)
    writer.wait()
    metrics |= {"device": named(place.device), "bytes": room.most(place.device) - rest}
    _finish(engine, line, run, metrics, place)
    dist.destroy_process_group()


def update(
    engine: Any,
    line: Line,
    objective: Objective,
    batches: Batches,
    feed: "Feed",
    run: Run,
    step: int,
    rate: float,
    place: Place,
    spikes: Spikes,
) -> tuple[float, float, Row | None]:
    """One optimizer step: the loss over all targets of the global batch, nats a target, the gradient norm before clipping, and if the loss is a
    spike, for which weights and optimizer state stay as they are, the bound that it exceeds and its documents, those of the worst rows first.

    Raises NonFiniteError on every rank if either is not finite; then the weights are no longer to be used.
    """
    settings = run.train
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["share"]
    parts, targets = zero.accumulation(settings, place.replicas), batches.targets(step)
    mine = [
        slice(lo, lo + settings.micro_batch)
        for lo in range(place.replica * settings.micro_batch, settings.batch, place.replicas * settings.micro_batch)
    ]
    noise = _mixed(settings.seed, step, place.rank // place.tensor)  # of dropout: no state to save, none carried over
    torch.manual_seed(noise)
    twice = ((here, on_device(batches.rows(step, here.start, here.stop), place.device)) for here in mine)
    prepared = objective.prepare(engine, twice, settings.batch, run.model.width)
    torch.manual_seed(noise)
    sums_B = torch.zeros(settings.batch, dtype=torch.float32, device=place.device)
    under_way: deque[torch.Tensor] = deque()
    line.begin()
    for forward, part in pipeline.order(place.stages, place.stage, parts):
        if forward:
            under_way.append(objective.sums(line, feed.take(), prepared, mine[part]))
            continue
        row_sums, last = under_way.popleft(), part + 1 == parts
        engine.backward(line.loss(objectives.share(row_sums, targets, parts * place.averaged), part, parts))
        line.give(last)
        feed.read()
        if place.speaks:
            sums_B[mine[part]] = row_sums.detach()
        if not last:
            engine.step()  # counts a micro-batch; the last one, after the loss was looked at, updates
    line.end()
    dist.all_reduce(sums_B)
    if not torch.isfinite(sums_B).all():
        raise _non_finite("the loss", step, batches, torch.nonzero(~torch.isfinite(sums_B)).flatten().tolist())
    norm = None if settings.zero else _norm(line)
    loss = objectives.mean(sums_B, targets)
    bound = spikes.seen(loss)  # all ranks judge the same number alike
    with nullcontext() if bound is None else held(partition.base_optimizer(engine)):
        engine.step()
    norm = engine.get_global_grad_norm() if norm is None else norm
    if norm is None or not math.isfinite(norm) or not engine.was_step_applied():
        raise _non_finite(f"the gradient norm ({norm})", step, batches, range(settings.batch))
    if bound is None:
        return loss, float(norm), None
    named = batches.documents(step, sums_B.argsort(descending=True).tolist())
    return loss, float(norm), {"bound": bound, "documents": named[:NAMED], "more": max(0, len(named) - NAMED)}


def evaluate(engine: Any, line: Line, objective: Objective, valid: Batch, run: Run, place: Place) -> Row:
    """The objective's measures of held-out rows, whatever ranks and micro-batches are."""
    settings, count = run.train, len(valid.tokens)
    observed_N: torch.Tensor | None = None
    engine.eval()
    line.begin()
    with torch.no_grad():
        for lo in range(0, count, settings.micro_batch * place.replicas):
            here = slice(lo + place.replica * settings.micro_batch, min(count, lo + (place.replica + 1) * settings.micro_batch))
            idle = here.start >= here.stop
            # under stage 3 a forward pass is a joint act of all ranks: one that has no rows left passes some through for nothing
            found = objective.observe(line, on_device(valid.cut(0, 1) if idle else valid.cut(here.start, here.stop), place.device))
            if observed_N is None:
                columns = line.summed(torch.tensor(found.shape[1] if place.stage == place.stages - 1 else 0, device=place.device))
                observed_N = torch.zeros((count, int(columns)), device=place.device)
            if place.speaks and not idle:
                observed_N[here] = found
    line.end()
    engine.train()
    assert observed_N is not None
    dist.all_reduce(observed_N)
    return objective.measures(observed_N, valid.count)


class Feed:
    """This rank's micro-batches from a step on, on its device. Each can be read while a GPU still computes the one before."""

    def __init__(self, batches: Batches, settings: TrainConfig, place: Place, step: int):
        self._batches, self._rows, self._device = batches, settings.micro_batch, place.device
        begins = range(place.replica * self._rows, settings.batch, place.replicas * self._rows)
        self._places = ((later, lo) for later in itertools.count(step) for lo in begins)
        self._next: Rows | None = None

    def read(self) -> None:
        """Read the next one, if that has not been done."""
        if self._next is None:
            step, lo = next(self._places)
            self._next = on_device(self._batches.rows(step, lo, lo + self._rows), self._device)

    def take(self) -> Rows:
        """The next one."""
        self.read()
        taken, self._next = self._next, None
        assert taken is not None
        return taken


class Metrics:
    """metrics.jsonl, one object a line, flushed. Lines beyond the step that a run resumes at are cut: what follows writes them anew."""

    def __init__(self, path: Path, step: int):
        kept = []
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() and step else []:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        temporary = path.with_name(path.name + ".tmp")  # a new file always: `launch` knows by that where its rows begin
        temporary.write_bytes(b"".join(kept))
        os.replace(temporary, path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, row: Row) -> None:
        """Append one row."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make all rows durable: a checkpoint must not outlive the rows that led to it."""
        os.fsync(self._file.fileno())


def _save(engine: Any, writer: Writer, run: Run, step: int, saved: Row, metrics: Row, log: Metrics | None, place: Place) -> None:
    """Begin a checkpoint, which is complete some time after this returns: one rank vouches for it when all have written."""
    directory, metrics = Path(run.out) / "checkpoints", dict(metrics)
    path = directory / checkpoint.step_name(step)
    begun = time.perf_counter()
    writer.wait()
    if log:
        checkpoint.clear(directory, step)
    dist.barrier()
    frozen = run.train.adapter is not None  # what is frozen is read from the start again
    engine.save_checkpoint(str(directory), tag=path.name, save_latest=False, exclude_frozen_parameters=frozen)

    def done(files: list[Path]) -> None:
        checkpoint.deliver(path, place.rank, files)
        if log:
            log.sync()
            checkpoint.complete(directory, step, run.fingerprint, saved, metrics, checkpoint.collect(path, place.world))
            checkpoint.prune(directory, run.train.keep)

    writer.start(done)
    if not run.train.overlap_saving:
        writer.wait()
    if log:
        log.write({"event": "saved", "step": step, "stalled": time.perf_counter() - begun})


def _finish(engine: Any, line: Line, run: Run, metrics: Row, place: Place) -> None:
    """Consolidated fp32 weights with config and tokenizer into model/, what an adapter has learnt into adapter/, then done.json.

    One parameter at a time is gathered from all ranks. A frozen one is taken from the start, to which it must still be equal: CheckpointError.
    """
    from deepspeed.utils import groups  # imports all of DeepSpeed, which must know the device by then

    out, adapter = Path(run.out), run.train.adapter
    start = dict(_start(run).named_parameters()) if adapter is not None and place.first else {}
    state = {}
    for name, parameter in engine.module.named_parameters():
        whole = _whole(parameter, run.train.zero).view(parameter.ds_shape if run.train.zero == 3 else parameter.shape)
        dimension = zero.divided(name)
        if place.tensor > 1 and dimension is not None:
            parts = [torch.empty_like(whole) for _ in range(place.tensor)]
            dist.all_gather(parts, whole.contiguous(), group=groups.get_tensor_model_parallel_group())
            whole = torch.cat(parts, dimension)
        if place.first and not parameter.requires_grad:
            if not torch.equal(whole.cpu(), start[name].to(whole.dtype)):
                raise CheckpointError(f"{name} is frozen and yet changed in training: the run is not to be used")
            state[name] = start[name].detach()
        elif place.rank < place.stages:
            state[name] = whole.to("cpu", torch.float32, copy=True)
    if place.rank < place.stages:
        line.collect(state)
    if place.first:
        sizes = [parameter.numel() for name, parameter in state.items() if name not in start or start[name].requires_grad]
        metrics = metrics | {"trained_parameters": sum(sizes), "parameters": sum(parameter.numel() for parameter in state.values())}
        with torch.device("meta"):
            model = Transformer(run.model, run.vocab)
            if isinstance(adapter, Lora):
                adapters.attach(model, adapter, 0)
        model.load_state_dict(state, strict=not run.model.tie_embeddings, assign=True)
        model.tie()
        if adapter is not None:
            adapters.save(model, adapter, out / "adapter")
            adapters.merge(model)
        folder = out / "model.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        families.save(model, run.model, run.vocab, folder)
        for file in Path(run.tokenizer).iterdir():
            shutil.copyfile(file, folder / file.name)
        for file in folder.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(out / "model", ignore_errors=True)
        os.replace(folder, out / "model")
        checkpoint.write_json(out / "done.json", {"step": run.train.steps, "fingerprint": run.fingerprint, "metrics": metrics})
    dist.barrier()


def _whole(parameter: Any, stage: int) -> torch.Tensor:
    """A parameter from all ranks: its fp32 master if it is trained, else as it is computed with."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if stage and parameter.requires_grad:
        return safe_get_full_fp32_param(parameter)
    if stage < 3:
        return parameter.detach()
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def _engine(run: Run, place: Place) -> tuple[Any, Line]:
    """DeepSpeed's engine over the model that the run starts from, or over a stage of it, and that engine among the other stages'."""
    settings = run.train
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(place.device.type == "cpu")
    # a debugging aid that the line above turns on; it writes NaN over every buffer and costs more than the step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    deepspeed = _deepspeed(place.device, timedelta(seconds=settings.timeout))
    model = _start(run)
    model.checkpointing = settings.checkpointing
    if place.sequence > 1:
        groups = [dist.new_group(range(lo, lo + place.sequence)) for lo in range(0, place.world, place.sequence)]
        model.share_rows(Parts(groups[place.replica], place.sequence, place.rank % place.sequence))
    grid = pipeline.Grid(place.stages) if place.stages > 1 else None
    if grid:
        model.hold(pipeline.layers(run.model.layers, place.stages, place.stage))
        for parameter in model.parameters():
            parameter.model_parallel = True  # type: ignore[attr-defined]  # norms are then of all stages
    if settings.compile:
        for layer in model.layers:
            model.blocks[layer].compile(dynamic=False)  # in place: names of parameters stay; alike, all blocks share one graph
    config = zero.deepspeed_config(settings, place.replicas, sum(p.numel() for p in model.parameters()), place.device.type == "cuda")
    shared: Any = deepspeed.utils.groups if place.tensor > 1 else grid
    if place.tensor > 1:
        shared._init_tp_mesh_device(tensor_model_parallel_size=place.tensor)
    optimizer = zero.optimizer(model.to(place.device), settings)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config, mpu=shared)[0]
    if place.tensor > 1:
        engine.first_dataloader_check.remove()  # it pickles the arguments of the first call, of which one is a function
    if settings.optimizer == "muon":
        partition.base_optimizer(engine).bind(partition.pieces(engine))
    return engine, Line(engine, grid)


def _start(run: Run) -> Transformer:
    """The model before its first step: of fresh weights, or the start's with what the run's shape and adapter add to it."""
    seed, adapter = run.train.seed, run.train.adapter
    if run.start:
        model = families.load(run.start)
        if model.vocab != run.vocab:
            raise InputError(f"{run.start} has {model.vocab} rows of embeddings; this run has {run.vocab}. Use its tokenizer")
        if model.config != run.model:
            model = adapters.equipped(model, run.model, seed)
    elif adapter is not None:
        raise ConfigError(f"adapter {adapter.kind} trains beside a model that has learnt; give the run a start, or set adapter to null")
    else:
        with torch.device("meta"):  # torch's own draws would take twice as long as ours
            model = Transformer(run.model, run.vocab)
        model.to_empty(device="cpu").tie()
        model.init_weights(seed)
    if isinstance(adapter, Lora):
        adapters.attach(model, adapter, seed)
    adapters.freeze(model, adapter)
    return model


def _latest(directory: Path, fingerprint: str, place: Place) -> tuple[checkpoint.Checkpoint | None, list[checkpoint.Skipped]]:
    """checkpoint.latest, its hashing done by one rank for all."""
    answer = [checkpoint.latest(directory, fingerprint) if place.first else None]
    dist.broadcast_object_list(answer, 0, device=place.device)
    assert answer[0] is not None
    return answer[0]


def _cut(saved: Row) -> Row:
    """What decides how a checkpoint is cut into files. Ranks that read one cut as they would cut it themselves take their own files whole."""
    train = saved["run"]["train"]
    shared = {name: train[name] for name in ("tensor_parallel", "pipeline_parallel")}
    return {"ranks": saved["world"], "zero": train["zero"], **shared}


def _order(run: Run) -> list[str]:
    """Names of all trained parameters as the optimizer of a whole model has them."""
    with torch.device("meta"):
        model = Transformer(run.model, run.vocab)
        if isinstance(run.train.adapter, Lora):
            adapters.attach(model, run.train.adapter, 0)
    adapters.freeze(model, run.train.adapter)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in zero.optimizer(model, run.train).param_groups for parameter in group["params"]]


def _replicas(run: Run) -> int:
    """How many have rows of their own among the ranks that torchrun started. Raises ConfigError if they or the model cannot be divided so."""
    world, model, settings = int(os.environ["WORLD_SIZE"]), run.model, run.train
    if settings.pipeline_parallel > model.layers:
        raise ConfigError(f"train.pipeline_parallel ({settings.pipeline_parallel}) exceeds model.layers ({model.layers}); lower it")
    for name, ranks, heads in (
        ("tensor_parallel", settings.tensor_parallel, model.kv_heads),
        ("sequence_parallel", settings.sequence_parallel, model.kv_heads),
        ("pipeline_parallel", settings.pipeline_parallel, 0),
    ):
        for what, count in (("ranks in all", world), ("model.kv_heads", heads)):
            if count % ranks:
                raise ConfigError(f"train.{name} ({ranks}) must divide {what} ({count}); lower it")
    if model.ffn_width % settings.tensor_parallel:
        raise ConfigError(f"train.tensor_parallel ({settings.tensor_parallel}) must divide model.ffn_width ({model.ffn_width}); lower it")
    return world // (settings.tensor_parallel * settings.sequence_parallel * settings.pipeline_parallel)


def _device(run: Run) -> torch.device:
    kind = run.train.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("train.device is cuda, but torch finds no CUDA device here; set it to cpu or auto, or install torch for CUDA")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def _deepspeed(device: torch.device, patience: timedelta) -> Any:
    """DeepSpeed over a process group of ours. On a CPU it would first compile a shared-memory extension (20 s and a compiler), which
    training does not use: told that none of its extensions fits here, it goes on without.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    # its autotuner, unused here, imports MLflow where there is one: as long as all the rest
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__ = {}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    deepspeed.init_distributed(timeout=patience, verbose=False)
    return deepspeed


def _norm(line: Line) -> float:
    """L2 norm of all gradients, already averaged over ranks. DeepSpeed gives none at stage 0."""
    found = [torch.linalg.vector_norm(p.grad) for p in line.module.parameters() if p.grad is not None]
    return float(line.summed(torch.linalg.vector_norm(torch.stack(found)).square()).sqrt())


def _mixed(*numbers: int) -> int:
    return hash(numbers) & (2**63 - 1)  # of integers: the same in every process


def _non_finite(what: str, step: int, batches: Batches, rows: Any) -> NonFiniteError:
    names = [f"{shard} {number}" for shard, number in batches.documents(step, list(rows))]
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
    return NonFiniteError(
        f"{what} of step {step + 1} is not finite. Documents (shard, number): {shown}. Look at them, lower lr, lengthen warmup or set clip."
    )
