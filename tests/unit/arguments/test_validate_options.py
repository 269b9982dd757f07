"""Refusals that a run meets only where there is CUDA, by the checks alone."""

from argparse import Namespace
from typing import Any

import pytest

from megatron_longpo.arguments import validate_options
from megatron_longpo.arguments.validate_options import check_optimizer
from megatron_longpo.errors import UserError


def options(**changes: Any) -> Namespace:
    """What check_optimizer reads, with the defaults of ``--longpo-optimizer rmsprop``."""
    defaults = {
        "longpo_optimizer": "rmsprop",
        "longpo_rmsprop_alpha": 0.99,
        "optimizer": "adam",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "optimizer_cuda_graph": False,
        "use_distributed_optimizer": True,
        "use_precision_aware_optimizer": False,
        "optimizer_cpu_offload": False,
        "bf16": True,
        "fp16": False,
    }
    return Namespace(**defaults | changes)


@pytest.fixture(autouse=True)
def cuda_without_a_fused_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_options.platform, "is_cpu", lambda: False)
    monkeypatch.setattr(validate_options, "_has_fused_adam", lambda: False)


def test_the_distributed_optimizer_without_a_fused_adam_takes_rmsprop_only() -> None:
    check_optimizer(options())
    with pytest.raises(UserError, match="take --longpo-optimizer rmsprop"):
        check_optimizer(options(longpo_optimizer=None, longpo_rmsprop_alpha=None))


def test_offloading_takes_16_bit_weights_only() -> None:
    offloaded = {"optimizer_cpu_offload": True, "use_precision_aware_optimizer": True}
    check_optimizer(options(**offloaded))
    with pytest.raises(UserError, match="needs --bf16 or --fp16"):
        check_optimizer(options(**offloaded, bf16=False))
