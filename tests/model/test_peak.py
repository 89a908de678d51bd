"""Properties of model/peak.py."""

import pytest
import torch

from model import peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_measured_peak_of_a_cpu_is_one_a_cpu_can_have(precision):
    assert 1e8 < peak.peak_flops(torch.device("cpu"), precision) < 1e14


def test_a_measured_peak_is_not_below_what_a_product_just_reached():
    assert peak.measured("fp32", size=512, rounds=20) > 0.5 * peak.measured("fp32", size=128, rounds=3)


@pytest.mark.parametrize(
    "name, flops",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA Unheard Of", None),
    ],
)
def test_a_gpu_is_known_by_its_name(monkeypatch, name, flops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak.peak_flops(torch.device("cuda", 0), "bf16") == flops
    assert peak.peak_flops(torch.device("cuda", 0), "fp32") is None
