"""Out of memory, said in the run's own terms: which setting to lower, and by how much.

with told(run, world, device): ...   # an allocation that fails within becomes a RoomError
"""

import ctypes
import gc
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

from model.config import Run
from model.errors import RoomError

if TYPE_CHECKING:
    import torch

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@contextmanager
def told(run: Run, world: int, device: "torch.device") -> Iterator[None]:
    """Raise RoomError with advice for an allocation that fails within, on a GPU or in main memory; what is in use at the start stays in use."""
    import torch

    resident = used(device)
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError, and on a CPU torch raises no more than that
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        needed, there = most(device) + _asked(str(error)), _there(device)
        text = f"out of memory: at least {_shown(needed)} needed on {device}, {_shown(there)} there"
        raise RoomError(f"{text}. {advice(run, world, resident, needed, there)}") from error


def advice(run: Run, world: int, resident: float, needed: float, there: float) -> str:
    """What to change. Bytes of one rank: `resident` between steps, `needed` at least for this one, `there` at most.

    What a step needs beyond what is resident grows with micro_batch × length; as the need is known from below only, so is the change.
    """
    settings = run.train
    share = (there - resident) / max(1.0, needed - resident)
    sizes = [size for size in range(1, settings.micro_batch) if settings.batch % (size * world) == 0]
    fitting = [size for size in sizes if size <= settings.micro_batch * share]
    if fitting:
        return (
            f"Lower train.micro_batch from {settings.micro_batch} to {fitting[-1]}; batch stays {settings.batch}, with more accumulation."
        )
    also = f" and train.micro_batch from {settings.micro_batch} to {sizes[0]}" if sizes else ""
    if not settings.checkpointing:
        return f"Set train.checkpointing to true{also}."
    if world > 1 and settings.zero < 3:
        return f"Raise train.zero from {settings.zero} to 3{also}: each of {world} ranks then keeps its part of the weights only."
    length = int(settings.length * share) // 8 * 8
    if length >= 8:
        return f"Lower train.length from {settings.length} to {length}{also}, or take more ranks with train.zero=3."
    return f"Weights and optimizer state alone take {_shown(resident)}: take a smaller model, or more ranks with train.zero=3."


def _asked(message: str) -> float:
    """Bytes that the failed allocation asked for, as torch and NumPy word it; 0 where they do not say."""
    found = re.search(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)", message)
    return float(found[1]) * UNITS[found[2]] if found else 0.0


def used(device: "torch.device") -> float:
    """Bytes that this process has on a GPU, or in main memory."""
    import torch

    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def rest(device: "torch.device") -> float:
    """Bytes in main memory that are not of tensors: Python, packages, what was read. On a GPU, where only tensors are counted, 0."""
    import torch

    if device.type == "cuda":
        return 0.0
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc keeps what was freed
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if isinstance(t, torch.Tensor)}
    return used(device) - sum(storages.values())


def most(device: "torch.device") -> float:
    """The most that it had."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _there(device: "torch.device") -> float:
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    free = psutil.Process().memory_info().rss + psutil.virtual_memory().available
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def _shown(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB"
