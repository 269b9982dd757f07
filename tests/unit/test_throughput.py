"""throughput.py: tokens and FLOPs a second, and their share of a GPU's peak."""

import pytest

from megatron_longpo.throughput import Throughput, peak_tflops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H20", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_peak_by_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_a_step_by_hand() -> None:
    """8 ranks, 2 s: 3.2e15 FLOPs are 200 TFLOP/s a GPU, a fifth of 1000."""
    speed = Throughput(lambda: (3.2e15, 6.4e15), num_ranks=8, peak=1000.0)
    assert speed.of_step({"trunk": 600, "branches": 200, "padding": 200}, 2.0) == {
        "tokens_per_second": {"trunk": 300.0, "branches": 100.0, "padding": 100.0},
        "padding_share": 0.2,
        "tflops": 200.0,
        "pair_equivalent_tflops": 400.0,
        "mfu": 0.2,
        "pair_equivalent_mfu": 0.4,
    }


def test_no_peak_no_mfu() -> None:
    speed = Throughput(lambda: (3.2e15, 6.4e15), num_ranks=8, peak=None)
    found = speed.of_step({"trunk": 600, "branches": 200, "padding": 0}, 2.0)
    assert found["tflops"] == 200.0 and not [name for name in found if "mfu" in name]
