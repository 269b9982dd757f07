"""What the host asks of a device in a micro-batch, counted on meta tensors: ``python -m tests.device_calls``.

A meta tensor has no values, so a step that comes to its end has read none: ``.item()``, ``.tolist()``, ``.cpu()`` and
a Python branch on a tensor raise. Counted are the calls that a GPU would launch a kernel for, and the copies to it.
Prints JSON: name of what was counted -> number.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks import meta_device

meta_device.activate()  # before Megatron is imported

import torch  # noqa: E402
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402

from benchmarks.released_models import MISTRAL_7B  # noqa: E402
from megatron_longpo.hf.config import megatron_options  # noqa: E402
from megatron_longpo.micro_batch import micro_batch  # noqa: E402
from megatron_longpo.model.attention import _TreeAttention, tree_attention, trunk_exchange  # noqa: E402
from megatron_longpo.model.build import ModelShape, build_model, transformer_config  # noqa: E402
from megatron_longpo.model.layout import pack_layout, tree_layout  # noqa: E402
from megatron_longpo.model.rope_parameters import RopeParameters  # noqa: E402
from megatron_longpo.objective.objectives import OBJECTIVES  # noqa: E402
from megatron_longpo.step import forward_step  # noqa: E402
from megatron_longpo.step_settings import StepSettings  # noqa: E402

TRUNK, BRANCHES, TURNS = 131072, (2048, 1504), 4
ALLOCATING = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


class Calls(meta_device.Tracker):
    """Counts kernel launches and copies from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.copies = self.waiting_copies = 0
        self._inside_kernel = False

    @contextmanager
    def one_kernel(self) -> Iterator[None]:
        """What is called inside is a single kernel on a GPU."""
        self.launches += not self._inside_kernel
        before, self._inside_kernel = self._inside_kernel, True
        yield
        self._inside_kernel = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        source = next((arg for arg in args if isinstance(arg, torch.Tensor)), None)
        result = out[0] if isinstance(out, (tuple, list)) and out else out
        is_view = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
        makes_nothing = is_view or func._schema.name.removeprefix("aten::") in ALLOCATING or self._inside_kernel
        if getattr(result, "device", None) == meta_device.META and not makes_nothing:
            self.launches += 1
            if source is not None and source.device.type == "cpu" and source.dim():
                self.copies += 1
                self.waiting_copies += not (kwargs or {}).get("non_blocking", False)
        return out


def pair(num_turns: int) -> dict[str, Any]:
    """As data/dataset.py yields it, of zeros."""
    lengths = dict(zip(("trunk", "chosen", "rejected"), (TRUNK, *BRANCHES), strict=True))
    long: dict[str, Any] = {name: np.zeros(length, np.int64) for name, length in lengths.items()}
    spans = np.array([[1 + 10 * turn, 8 + 10 * turn] for turn in range(num_turns)])
    long |= {f"{name}_spans": spans for name in ("chosen", "rejected")}
    references = {f"reference_short_{answer}": np.zeros(num_turns) for answer in ("chosen", "rejected")}
    return {"long": long, "pair_index": np.array(0), "weight": np.array(1.0), **references}


def step(num_pairs: int) -> dict[str, int]:
    """A micro-batch of LongPO through one layer, its loss and backward."""
    settings = StepSettings(
        vocab_size=32000,
        sequence_multiple=1,
        objective=OBJECTIVES["longpo"],
        coefficients=OBJECTIVES["longpo"].coefficients({}),
        nll_tokens="all",
        max_turns=TURNS,
        length_buckets=(1024, 32768, 131072),
    )
    batch = micro_batch([pair(TURNS)] * num_pairs, settings=settings, cp_rank=0, cp_size=1)
    calls = Calls()
    with meta_device.ranks(calls, "flash", rank=0):
        model = _model()
        forward_step(iter([batch]), model, settings=settings)  # the first keeps the rotary frequencies on the device
        calls.copies = calls.waiting_copies = 0
        output, loss_function = forward_step(iter([batch]), model, settings=settings)
        before = calls.launches
        loss, _, reported = loss_function(output)
        in_loss = calls.launches - before
        loss.backward()
    return {
        "copies": calls.copies,
        "copies waited for": calls.waiting_copies,
        "launches of the loss": in_loss,
        "reported": len(reported),
    }


def _model() -> torch.nn.Module:
    options = megatron_options(MISTRAL_7B | {"num_hidden_layers": 1})
    config = transformer_config(options, tensor=1, pipeline=1, sequence=False, dtype=torch.bfloat16)
    model = build_model(config, ModelShape.of(options, RopeParameters(rope_theta=1e6), multiple=1))
    return model.to(meta_device.META).bfloat16()


def attention(context: int, exchange: str) -> dict[str, int]:
    """One layer's attention of a pair, on the last context-parallel rank."""
    layout = pack_layout([tree_layout(TRUNK, BRANCHES, context)])
    q, k, v = (
        torch.empty(1, n, layout.length, 128, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for n in (32, 8, 8)
    )
    calls = Calls()
    with meta_device.ranks(calls, "flash", rank=context - 1, context=context):
        groups = ProcessGroupCollection.use_mpu_process_groups(["cp", "hcp"])
        rest = (layout, trunk_exchange(exchange, groups), groups.cp, 0.1)
        attended = tree_attention(q, k, v, *rest)
        forward = calls.launches
        out = _TreeAttention.apply(q, k, v, *attended, *rest)
        before = calls.launches
        out.backward(torch.empty_like(out))
    assert calls.copies == 0
    return {"forward": forward, "backward": calls.launches - before}


if __name__ == "__main__":
    found = {f"step of {number}": step(number) for number in (1, 3)}
    found |= {
        f"attention, {exchange}, {size}": attention(size, exchange)
        for size, exchange in ((1, "p2p"), (8, "p2p"), (8, "all_gather"), (8, "a2a"))
    }
    print(json.dumps(found))
