"""Every attention kernel against float64 arithmetic, and the choice among them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longpo.errors import UserError
from megatron_longpo.model import kernel_calls, kernels
from megatron_longpo.model.kernel_calls import KERNELS, Kernel
from megatron_longpo.model.kernels import choose, merge, use_only

BY_NAME = {kernel.name: kernel for kernel in KERNELS}
HERE = [kernel for kernel in KERNELS if kernel.name in ("cpu", "plain")]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def any_kernel() -> Iterator[None]:
    choose.cache_clear()
    yield
    use_only("auto")


def exact(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp in float64, with autograd."""
    repeats = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(repeats, 1).mT * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ v.repeat_interleave(repeats, 1), torch.logsumexp(scores, -1)


def drawn(heads: int, groups: int, queries: int, keys: int, size: int = 16) -> list[Tensor]:
    """Queries, keys and values, laid out tokens first as Megatron has them."""
    torch.manual_seed(heads + queries)
    shapes = ((queries, heads), (keys, groups), (keys, groups))
    return [torch.randn(tokens, 1, several, size).permute(1, 2, 0, 3) for tokens, several in shapes]


@pytest.mark.parametrize("kernel", HERE, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("queries, keys, causal", [(37, 37, True), (37, 90, False), (90, 5, False), (1, 1, True)])
@pytest.mark.parametrize("heads, groups", [(4, 4), (6, 2), (7, 1)])
def test_a_part_has_its_share_of_the_whole_rows_gradients(
    kernel: Kernel, queries: int, keys: int, causal: bool, heads: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queries attend to two sets of keys; each part is given the merged output and log-sum-exp."""
    monkeypatch.setattr(kernel_calls, "PLAIN_BYTES", 4 * heads * keys * 10)  # ten queries a block
    q, k, v = drawn(heads, groups, queries, keys)
    _, other_k, other_v = drawn(heads, groups, queries, 11)
    grad = torch.randn_like(q)
    leaves = [x.double().requires_grad_() for x in (q, k, v, other_k, other_v)]
    parts = [exact(*leaves[:3], causal, 0.3), exact(leaves[0], *leaves[3:], False, 0.3)]
    shares = torch.stack([lse for _, lse in parts]).softmax(0).unsqueeze(-1)
    whole = shares[0] * parts[0][0] + shares[1] * parts[1][0]
    whole.backward(grad.double())

    found = [kernel.forward(q, k, v, causal, 0.3), kernel.forward(q, other_k, other_v, False, 0.3)]
    for (out, lse), (true_out, true_lse) in zip(found, parts, strict=True):
        assert (out.dtype, lse.dtype, lse.shape) == (torch.float32, torch.float32, out.shape[:3])
        torch.testing.assert_close(out.double(), true_out, rtol=0, atol=1e-5)
        torch.testing.assert_close(lse.double(), true_lse, rtol=0, atol=1e-5)
    out, lse = merge(found)
    torch.testing.assert_close(out.double(), whole, rtol=0, atol=1e-5)
    dq, dk, dv = kernel.backward(grad, q, k, v, out, lse, causal, 0.3)
    other_dq, other_dk, other_dv = kernel.backward(grad, q, other_k, other_v, out, lse, False, 0.3)
    for ours, leaf in zip((dq + other_dq, dk, dv, other_dk, other_dv), leaves, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(ours.double(), leaf.grad, rtol=0, atol=2e-5)


def test_plain_takes_half_precision() -> None:
    q, k, v = (x.bfloat16() for x in drawn(6, 2, 40, 40))
    out, lse = BY_NAME["plain"].forward(q, k, v, True, 0.3)
    true_out, true_lse = exact(*(x.double() for x in (q, k, v)), True, 0.3)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.double(), true_out, rtol=0, atol=1e-2)
    torch.testing.assert_close(lse.double(), true_lse, rtol=0, atol=1e-5)


def test_the_choice_on_a_cpu() -> None:
    assert choose(CPU, torch.float32, 64, 4).name == "cpu"
    use_only("plain")
    assert choose(CPU, torch.float32, 64, 4).name == "plain"
    use_only("flash")
    with pytest.raises(UserError, match="attention kernel flash: is for CUDA; choose another, or auto"):
        choose(CPU, torch.float32, 64, 4)


WRONG: dict[str, Any] = {
    "forward": lambda out, lse, *rest: (out * 1.001, lse),
    "lse": lambda out, lse, *rest: (out, lse / 0.6931),  # in bits
    "backward": lambda dq, dk, dv: (dq, dv, dk),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_kernel_that_is_wrong_on_a_small_case_is_not_chosen(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, name = BY_NAME["cpu"], "backward" if what == "backward" else "forward"
    stopped: list[bool] = []
    wrong = replace(
        right,
        **{name: lambda *args: WRONG[what](*getattr(right, name)(*args))},  # type: ignore[arg-type]
        stop=lambda: stopped.append(True),
    )
    monkeypatch.setattr(kernels, "KERNELS", (wrong, BY_NAME["plain"]))
    assert choose(CPU, torch.float32, 64, 4).name == "plain" and stopped
    use_only("cpu")
    with pytest.raises(UserError, match=r"cpu: is off by .* on a small case, where 1e-05 is allowed"):
        choose(CPU, torch.float32, 64, 4)


def test_a_kernel_that_fails_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(kernels, "KERNELS", (replace(BY_NAME["cpu"], forward=fail), BY_NAME["plain"]))
    assert choose(CPU, torch.float32, 64, 1).name == "plain"
    use_only("cpu")
    with pytest.raises(UserError, match="cpu: RuntimeError: no kernel image is available for execution"):
        choose(CPU, torch.float32, 64, 1)


@pytest.mark.parametrize(
    "capability, dtype, size, names",
    [
        ((9, 0), torch.bfloat16, 128, ["flash3", "flash4", "cudnn", "flash", "plain"]),
        ((10, 0), torch.float16, 128, ["flash4", "cudnn", "flash", "plain"]),
        ((8, 0), torch.bfloat16, 128, ["flash", "plain"]),
        ((9, 0), torch.bfloat16, 100, ["plain"]),
        ((9, 0), torch.float32, 128, ["plain"]),
    ],
)
def test_what_comes_into_question_on_a_gpu(
    capability: tuple[int, int], dtype: torch.dtype, size: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    found = [kernel.name for kernel in KERNELS if kernel.lacks(torch.device("cuda:0"), dtype, size) is None]
    assert found == names


@pytest.mark.parametrize("name", ["flash", "cudnn"])
@pytest.mark.parametrize("queries, causal", [(131_072, True), (512, False)])
def test_shapes_at_length(name: str, queries: int, causal: bool) -> None:
    """torch's own shape functions of the CUDA kernels take what is handed over and give what is expected."""
    kernel = BY_NAME[name]
    q, grad, out = (torch.empty(queries, 1, 32, 128, dtype=torch.bfloat16, device="meta") for _ in range(3))
    k, v = (torch.empty(131_072, 1, 8, 128, dtype=torch.bfloat16, device="meta") for _ in range(2))
    q, grad, out, k, v = (x.permute(1, 2, 0, 3) for x in (q, grad, out, k, v))
    found, lse = kernel.forward(q, k, v, causal, 0.1)
    assert (found.shape, found.dtype, lse.shape, lse.dtype) == (q.shape, q.dtype, q.shape[:3], torch.float32)
    for gradient, of in zip(kernel.backward(grad, q, k, v, out, lse, causal, 0.1), (q, k, v), strict=True):
        assert (gradient.shape, gradient.dtype, gradient.device.type) == (of.shape, of.dtype, "meta")
