"""The log-prob head on half-precision weights: its products are fp32, not rounded on the way."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_longpo.model.logprob import token_logprobs
from tests.gpu.measured import Measured


@pytest.mark.parametrize("into_main_grad", [False, True], ids=["grad", "main-grad"])
def test_products_are_fp32(
    into_main_grad: bool, device: torch.device, dtype: torch.dtype, one_rank: dist.ProcessGroup, measured: Measured
) -> None:
    """Against float64 of the same weights and hidden states.

    1e-4 nats on log-probs of about -10: fp32 sums of thousands of terms. Logits rounded to bf16 would be off by 2e-2.
    Gradients: softmax minus one-hot is rounded to the weights' dtype before the products with it, to 2^-9 in bf16.
    """
    tokens, vocabulary, size = (2048, 32_768, 4096) if device.type == "cuda" else (64, 501, 128)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 1, size, generator=draw).to(device, dtype).requires_grad_()
    weight = torch.nn.Parameter((torch.randn(vocabulary, size, generator=draw) / size**0.5).to(device, dtype))
    if into_main_grad:  # as Megatron's DDP has it
        weight.main_grad = torch.zeros(weight.shape, device=device)
        weight.grad_added_to_main_grad = False
    rows = torch.arange(0, tokens, 2, device=device)
    labels = torch.randint(vocabulary - 1, rows.shape, generator=draw).to(device)
    logp = token_logprobs(hidden, weight, rows, labels, vocabulary - 1, one_rank, False)
    grad = torch.randn(rows.shape, generator=draw).to(device)
    logp.backward(grad)

    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = exact_hidden[rows, 0] @ exact_weight[: vocabulary - 1].T
    expected = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    expected.backward(grad.double())
    measured({"log-prob, nats": (logp.double() - expected).abs().max().item()}, 1e-4)
    found = weight.main_grad if into_main_grad else weight.grad
    gradients: Any = (("dHidden", hidden.grad, exact_hidden.grad), ("dWeight", found, exact_weight.grad))
    errors = {
        name: (torch.linalg.norm(one.double() - true) / torch.linalg.norm(true)).item() for name, one, true in gradients
    }
    measured(errors, 4e-3 if dtype is torch.bfloat16 else 1e-5)
