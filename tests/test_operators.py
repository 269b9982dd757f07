"""What benchmarks/operators.py counts of each operator."""

import torch

from benchmarks.operators import Operators
from benchmarks.stage_shares import STAGES, shares, stage_of


def test_products_and_views() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    with Operators() as operators:
        (left @ right).view(7, 3).add_(1.0)
    product, view, sum_ = operators.seen
    assert (product.name, product.flops, product.num_bytes) == ("aten.mm", 2 * 3 * 5 * 7, 4 * (15 + 35 + 21))
    assert (view.name, view.flops, view.num_bytes) == ("aten.view", 0, 0)
    assert (sum_.name, sum_.flops, sum_.num_bytes) == ("aten.add_", 0, 2 * 4 * 21)


def test_rows_of_a_table_are_read_not_the_table() -> None:
    with Operators() as operators:
        torch.nn.functional.embedding(torch.tensor([1, 2]), torch.ones(1000, 8))
    assert operators.seen[-1].num_bytes == 2 * 2 * 8 * 4


def test_causal_attention_is_half() -> None:
    q, k = torch.ones(1, 4, 64, 16), torch.ones(1, 2, 64, 16)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with Operators() as operators:
        attend(q, k, k, 0.0, False)
        attend(q, k, k, 0.0, True)
    whole, half = operators.seen
    assert whole.flops == 4 * 4 * 64 * 64 * 16
    assert half.flops == whole.flops // 2


def test_labels_and_the_backward_pass() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    with Operators() as operators:
        product = operators.labelled("head", torch.mm)(weight, weight)
        with operators.label("loss"):
            loss = product.sum()
        loss.backward()
    seen = {(one.name, one.label, one.is_backward) for one in operators.seen}
    assert ("aten.mm", "head", False) in seen
    assert ("aten.sum", "loss", False) in seen
    assert ("aten.mm", "", True) in seen


def row(operator: str, label: str, flops: int, seconds: float, is_small: bool = False) -> dict[str, object]:
    what = {"operator": operator, "label": label, "is_backward": False, "is_small": is_small}
    return what | {"calls": 1, "flops": flops, "bytes": 100, "seconds": seconds}


def test_shares_of_a_step() -> None:
    rows = [
        row("aten.mm", "model", 1000, 2.0),
        row("aten.mm", "log-prob head", 1000, 1.0),
        row("aten.mul", "model", 0, 0.5),
        row("aten.mul", "optimizer", 0, 0.25, is_small=True),
    ]
    step = {"seconds": 5.0, "rows": rows, "waits": {"communication": 0.5, "data": 0.25}}
    rank = {"steps": [step], "attainable": {"flops": 1000.0, "bytes": 1000.0}}
    found = shares({"ranks": [rank]})
    assert found["whole"] == 5.0
    assert found["stages"]["linear layers"] == {"forward": 2.0, "backward": 0.0, "attainable": 1.0}
    assert found["stages"]["communication"]["forward"] == 0.5
    assert (found["data"], found["python"], found["small"]) == (0.25, 0.5, 0.25)
    assert {stage_of(one) for one in rows} <= set(STAGES)
