"""What a device could do at most: the figure by which model FLOP/s utilisation (MFU, Chowdhery et al. 2022) is measured."""

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

BF16 = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 FLOP/s by part of the device's name, the longer name first where one holds another. From NVIDIA's data sheets, halved where
a sheet gives the figure with sparsity only."""


def peak_flops(device: "torch.device", precision: Literal["fp32", "bf16"]) -> float | None:
    """FLOP/s of one rank's device: for a known GPU in bf16 from its data sheet, for a CPU measured, else None."""
    import torch

    if device.type == "cpu":
        return measured(precision)
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in BF16.items() if part in name), None) if precision == "bf16" else None


def named(device: "torch.device") -> str:
    """What a device is called, a CPU with the cores that this process may use: runs of one name compare."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def measured(precision: Literal["fp32", "bf16"], size: int = 1024, rounds: int = 5) -> float:
    """FLOP/s of one large matrix product with this process's threads, the best of a few: about 0.1 s. Other load makes it too low."""
    import torch

    matrix = torch.ones(size, size, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    best = float("inf")
    for _ in range(rounds + 1):  # the first also warms up
        begun = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - begun)
    return 2.0 * size**3 / best
