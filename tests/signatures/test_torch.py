"""What reaches torch's CUDA kernels, by the names of their schemas, and what of their results is taken.

The operations run on meta tensors: torch computes shapes only, and a mode between notes every call. Storages tell which
tensor is which.
"""

import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_longpo.model import kernel_calls, kernels, logprob
from tests.mutations import Mutation
from tests.signatures.mutated import is_noticed, mutations

KERNEL_CALLS = mutations(
    "megatron_longpo/model/kernel_calls.py",
    (
        "flash-lengths-swapped",
        "None, None, q_HTD.shape[2], k_GUD.shape[2], 0.0, causal, False, scale",
        "None, None, k_GUD.shape[2], q_HTD.shape[2], 0.0, causal, False, scale",
    ),
    (
        "flash-causal-and-debug-swapped",
        "k_GUD.shape[2], 0.0, causal, False, scale=scale,",
        "k_GUD.shape[2], 0.0, False, causal, scale=scale,",
    ),
    ("flash-results-swapped", "out, lse, *_ =", "lse, out, *_ ="),
    (
        "flash-backward-output-and-gradient-swapped",
        "(grad_out_HTD, q_HTD, k_GUD, v_GUD, out_HTD)),",
        "(out_HTD, q_HTD, k_GUD, v_GUD, grad_out_HTD)),",
    ),
    (
        "flash-backward-lengths-swapped",
        "None, None, q_HTD.shape[2], k_GUD.shape[2], 0.0, causal, no_rng",
        "None, None, k_GUD.shape[2], q_HTD.shape[2], 0.0, causal, no_rng",
    ),
    ("flash-backward-gradients-swapped", "dq, dk, dv = (grad", "dq, dv, dk = (grad"),
    ("cudnn-key-and-value-swapped", "q_HTD, k_GUD, v_GUD, None, True", "q_HTD, v_GUD, k_GUD, None, True"),
    ("cudnn-no-log-sum-exp", "v_GUD, None, True, 0.0", "v_GUD, None, False, 0.0"),
    (
        "cudnn-scale-renamed",
        "None, True, 0.0, causal, False, scale=scale",
        "None, True, 0.0, causal, False, softmax_scale=scale",
    ),
    (
        "cudnn-backward-output-and-gradient-swapped",
        "grad_out_HTD, q_HTD, k_GUD, v_GUD, out_HTD, lse_HT.contiguous().unsq",
        "out_HTD, q_HTD, k_GUD, v_GUD, grad_out_HTD, lse_HT.contiguous().unsq",
    ),
    (
        "cudnn-backward-random-state-and-lengths-swapped",
        "no_rng, no_rng,\n        None, None, None, q_HTD",
        "None, None,\n        None, no_rng, no_rng, q_HTD",
    ),
    (
        "cudnn-backward-lengths-swapped",
        "None, None, None, q_HTD.shape[2], k_GUD.shape[2]",
        "None, None, None, k_GUD.shape[2], q_HTD.shape[2]",
    ),
)
LOGPROB = mutations(
    "megatron_longpo/model/logprob.py",
    ("logits-type-renamed", "out_dtype=torch.float32", "dtype=torch.float32"),
    (
        "logits-factors-swapped",
        "torch.mm(hidden_CE, weight_VE[:num_real].t(),",
        "torch.mm(weight_VE[:num_real], hidden_CE.t(),",
    ),
    (
        "weight-gradient-factors-swapped",
        "(total_VE, grad_CV.t(), hidden_CE, torch",
        "(total_VE, hidden_CE.t(), grad_CV, torch",
    ),
    ("weight-gradient-not-in-place", "torch.float32, out=total_VE)", "torch.float32, out=total_VE.clone())"),
)

H, G, D, T, U, SCALE = 6, 2, 64, 512, 640, 0.3
"""Heads, key heads, size of a head, queries, keys."""


class Recorder(TorchDispatchMode):
    """Notes (name of the operation, its arguments by the schema's names, its results by theirs)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        given = {one.name: one.default_value for one in schema.arguments}
        given |= dict(zip(given, args, strict=False)) | (kwargs or {})
        results = result if isinstance(result, tuple) else (result,)
        named = {
            one.name or str(place): value
            for place, (one, value) in enumerate(zip(schema.returns, results, strict=True))
        }
        self.calls.append((f"{schema.name.removeprefix('aten::')}.{schema.overload_name}", given, named))
        return result

    def only(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments and results of the one call of an operation."""
        found = [call[1:] for call in self.calls if call[0] == name]
        assert len(found) == 1, f"{name} among {[call[0] for call in self.calls]}"
        return found[0]


def names(values: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """``values`` with every tensor as the name of the one whose storage it has, and its shape."""
    known = {tensor.untyped_storage()._cdata: name for name, tensor in tensors.items()}

    def name(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (known.get(value.untyped_storage()._cdata, "new"), *value.shape)

    return {one: name(value) for one, value in values.items()}


def drawn(queries: int, keys: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """What attention and its backward take, [1, heads, tokens, size] with tokens outermost in memory."""
    heads = {"q": (queries, H), "k": (keys, G), "v": (keys, G), "out": (queries, H), "grad": (queries, H)}
    found = {
        name: torch.empty(tokens, 1, several, D, dtype=dtype, device="meta").permute(1, 2, 0, 3)
        for name, (tokens, several) in heads.items()
    }
    return found | {"lse": torch.empty(1, H, queries, device="meta")}


def run(kernel: Any, x: dict[str, Tensor], causal: bool) -> tuple[Recorder, tuple[Tensor, ...], tuple[Tensor, ...]]:
    with Recorder() as recorder:
        forward = kernel.forward(x["q"], x["k"], x["v"], causal, SCALE)
        backward = kernel.backward(*(x[name] for name in ("grad", "q", "k", "v", "out", "lse")), causal, SCALE)
    return recorder, forward, backward


def taken(found: tuple[Tensor, ...], results: dict[str, Any]) -> list[str]:
    """Which results of an operation were taken, in order."""
    return [names({"": one}, {name: r for name, r in results.items() if isinstance(r, Tensor)})[""][0] for one in found]


def compare_flash(calls: ModuleType, causal: bool, name: str = "flash") -> None:
    queries = U if causal else T
    x, kernel = drawn(queries, U), next(one for one in calls.KERNELS if one.name == name)
    recorder, forward, backward = run(kernel, x, causal)
    given, results = recorder.only("_flash_attention_forward.")
    common = {"max_q": queries, "max_k": U, "dropout_p": 0.0, "is_causal": causal, "scale": SCALE}
    common |= dict.fromkeys(("cum_seq_q", "cum_seq_k", "window_size_left", "window_size_right"))
    tensors = {"query": ("q", 1, queries, H, D), "key": ("k", 1, U, G, D), "value": ("v", 1, U, G, D)}
    unused = dict.fromkeys(("seqused_k", "alibi_slopes", "block_table", "num_splits"))
    assert names(given, x) == common | tensors | unused | {"return_debug_mask": False}
    assert taken(forward, results) == ["output", "softmax_logsumexp"]

    given, results = recorder.only("_flash_attention_backward.")
    tensors |= {
        "grad_out": ("grad", 1, queries, H, D),
        "out": ("out", 1, queries, H, D),
        "logsumexp": ("lse", 1, H, queries),
    }
    assert names(given, x) == common | tensors | {"rng_state": ("new", 2), "unused": ("new", 2)}
    assert taken(backward, results) == ["0", "1", "2"]  # dQ, dK, dV: the schema does not name them
    assert [one.shape for one in (*forward[:1], *backward)] == [x[name].shape for name in ("q", "q", "k", "v")]


def compare_cudnn(calls: ModuleType, causal: bool) -> None:
    queries = U if causal else T
    x, kernel = drawn(queries, U), next(one for one in calls.KERNELS if one.name == "cudnn")
    recorder, forward, backward = run(kernel, x, causal)
    given, results = recorder.only("_scaled_dot_product_cudnn_attention.")
    tensors = {"query": ("q", 1, H, queries, D), "key": ("k", 1, G, U, D), "value": ("v", 1, G, U, D)}
    common = {"dropout_p": 0.0, "is_causal": causal, "scale": SCALE, "attn_bias": None}
    assert names(given, x) == common | tensors | {"compute_log_sumexp": True, "return_debug_mask": False}
    assert taken(forward, results) == ["output", "logsumexp"]

    given, results = recorder.only("_scaled_dot_product_cudnn_attention_backward.")
    tensors |= {"grad_out": ("grad", 1, H, queries, D), "out": ("out", 1, H, queries, D)}
    tensors |= {"logsumexp": ("lse", 1, H, queries, 1), "philox_seed": ("new",), "philox_offset": ("new",)}
    lengths = {"cum_seq_q": None, "cum_seq_k": None, "max_q": queries, "max_k": U}
    assert names(given, x) == common | tensors | lengths
    assert taken(backward, results) == ["0", "1", "2"]
    assert [one.shape for one in (*forward, *backward)] == [x[name].shape for name in ("q", "lse", "q", "k", "v")]


def compare_fp32_products(head: ModuleType) -> None:
    """logits = hidden weight^T without a step through bf16; total += grad^T hidden in place."""
    rows, vocab, size, real = 5, 11, 7, 9
    x = {
        "hidden": torch.empty(rows, size, dtype=torch.bfloat16, device="meta"),
        "weight": torch.empty(vocab, size, dtype=torch.bfloat16, device="meta"),
        "grad": torch.empty(rows, real, dtype=torch.bfloat16, device="meta"),
        "main_grad": torch.empty(vocab, size, device="meta"),
    }
    weight: Any = x["weight"]
    weight.main_grad, weight.grad_added_to_main_grad = x["main_grad"], False
    with Recorder() as recorder:
        logits = head._logits(x["hidden"], weight, real)
        head._WeightGradient(weight).add(x["grad"], x["hidden"])
    given, results = recorder.only("mm.dtype")
    expected = {"self": ("hidden", rows, size), "mat2": ("weight", size, real), "out_dtype": torch.float32}
    assert names(given, x) == expected
    assert (logits.dtype, taken((logits,), results)) == (torch.float32, ["0"])
    given, _ = recorder.only("addmm.dtype_out")
    total = ("main_grad", real, size)
    expected = {"self": total, "mat1": ("grad", real, rows), "mat2": ("hidden", rows, size), "out": total}
    assert names(given, x) == expected | {"out_dtype": torch.float32, "beta": 1, "alpha": 1}


@pytest.mark.parametrize("name", ["flash", "flash3", "flash4"])
@pytest.mark.parametrize("causal", [True, False])
def test_flash_attention(causal: bool, name: str) -> None:
    compare_flash(kernel_calls, causal, name)


@pytest.mark.parametrize("causal", [True, False])
def test_cudnn_attention(causal: bool) -> None:
    compare_cudnn(kernel_calls, causal)


def test_fp32_products_of_half_precision() -> None:
    compare_fp32_products(logprob)


@pytest.mark.parametrize("impl, module", [("FA3", "_fa3"), ("FA4", "_fa4")])
def test_the_packages_kernels_take_the_same_arguments(impl: str, module: str) -> None:
    """What torch puts in the place of its own kernels has every argument of the schema, in its order."""
    replaced = importlib.import_module(f"torch.nn.attention.{module}")
    suffix = "_default" if impl == "FA3" else ""
    for name in ("forward", "backward"):
        stand_in = getattr(
            replaced, f"_{impl.lower()}_flash_attention_{name}_impl{suffix if name == 'forward' else ''}"
        )
        theirs = inspect.signature(stand_in).parameters
        schema = getattr(torch.ops.aten, f"_flash_attention_{name}").default._schema
        positional = [one.name for one in schema.arguments if not one.kwarg_only]
        assert list(theirs)[: len(positional)] == positional
        assert {one.name for one in schema.arguments} <= theirs.keys()


@pytest.mark.parametrize("name, impl", [("flash3", "FA3"), ("flash4", "FA4")])
def test_a_package_is_asked_for_by_torchs_name(name: str, impl: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where it is missing that is a reason to go on, and nothing more is said: torch would, of a kernel not active."""
    assert impl in torch.nn.attention.list_flash_attention_impls()
    kernel = next(one for one in kernel_calls.KERNELS if one.name == name)
    fault = kernels._fault(kernel, torch.device("cpu"), torch.bfloat16, D, 1)
    assert fault is not None and "flash_attn" in fault and caplog.records == []
    kernel.stop()


def compare_all_kernels(calls: ModuleType) -> None:
    for causal in (True, False):
        compare_flash(calls, causal)
        compare_cudnn(calls, causal)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", KERNEL_CALLS, ids=lambda one: one.name)
def test_a_swapped_argument_of_a_kernel_is_noticed(mutation: Mutation) -> None:
    assert is_noticed(mutation, compare_all_kernels)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", LOGPROB, ids=lambda one: one.name)
def test_a_swapped_argument_of_a_product_is_noticed(mutation: Mutation) -> None:
    assert is_noticed(mutation, compare_fp32_products)
