"""A plan for people, and as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_longpo.plan.machines import GIB, GpuKind
from megatron_longpo.plan.plan import Data, Layout, Plan

NUM_SHOWN = 10
"""Layouts of a search."""


def plan_text(plan: Plan, others: Sequence[Plan], **heading: Any) -> str:
    """Memory by part, time by what takes it, and where it does not fit what would."""
    out = _Out()
    out.print(_heading(**heading))
    out.print(f"{plan.layout.num_gpus} GPUs: {_sizes(plan.layout)}; {plan.layout.as_options()}\n")
    out.print(_two_columns("memory of the fullest GPU", "GiB", _memory(plan), ".2f"))
    out.print(_two_columns("a mean step", "s", _seconds(plan), ".2f"))
    out.print(summary(plan))
    if plan.verdict != "OK":
        out.print(f"\n{plan.verdict}: {plan.binds} takes most. {_nearest_heading(plan, others)}")
        out.print(_layouts(others)) if others else None
    return out.text()


def search_text(plans: Sequence[Plan], others: Sequence[Plan], **heading: Any) -> str:
    """The best layouts in a table; where none fits, what would."""
    out = _Out()
    out.print(_heading(**heading))
    fit = sum(plan.verdict == "OK" for plan in plans)
    out.print(f"{plans[0].layout.num_gpus} GPUs: {len(plans)} layouts, {fit} of them fit\n")
    out.print(_layouts(plans[:NUM_SHOWN]))
    if fit:
        out.print(f"\n{summary(plans[0])}\n{plans[0].layout.as_options()}")
    else:
        out.print(f"\n{plans[0].verdict}: {plans[0].binds} takes most. {_nearest_heading(plans[0], others)}")
        out.print(_layouts(others)) if others else None
    return out.text()


def as_json(plans: Sequence[Plan], others: Sequence[Plan], **heading: Any) -> dict[str, Any]:
    """All figures, in bytes, seconds and FLOPs."""
    data: Data = heading.pop("data")
    return {
        **heading,
        "kind": asdict(heading["kind"]),
        "num_pairs": data.num_pairs,
        "global_batch_size": data.global_batch_size,
        "plans": [_one_as_json(plan) for plan in plans],
        "nearest_that_fit": [_one_as_json(plan) for plan in others],
    }


def _one_as_json(plan: Plan) -> dict[str, Any]:
    return {
        "layout": asdict(plan.layout),
        "options": plan.layout.as_options(),
        "verdict": plan.verdict,
        "memory_bytes": plan.memory.parts,
        "memory_bytes_in_all": plan.memory.total,
        "room_bytes": plan.room,
        "host_bytes_of_a_machine": plan.host_bytes,
        "step_seconds": plan.seconds,
        "step_seconds_in_all": plan.step_seconds,
        "num_steps": plan.num_steps,
        "gpu_hours": plan.gpu_hours,
        "step_model_flops": plan.model_flops,
        "step_pair_flops": plan.pair_flops,
        "mfu": plan.mfu,
        "pair_equivalent_mfu": plan.pair_equivalent_mfu,
    }


class _Out:
    """What rich prints, as plain text of a fixed width."""

    def __init__(self) -> None:
        self._file = StringIO()
        self._console = Console(file=self._file, width=120, no_color=True, highlight=False, soft_wrap=True)

    def print(self, what: Any) -> None:
        self._console.print(what, markup=False)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._file.getvalue().splitlines())


def _heading(*, model: str, kind: GpuKind, kernel: str, efficiency: float, data: Data) -> str:
    lengths = data.trees.lengths_T3
    forward, backward = kind.attention_tflops[kernel]
    return (
        f"{model}: {data.num_pairs:,} pairs, the longest trunk {data.trees.longest_trunk:,} tokens, branches up to "
        f"{int(lengths[:, 1:].max()):,}; {data.global_batch_size} a step\n"
        f"{kind.name}: {kind.memory_gib:g} GiB, {kind.reserved_gib:g} of them assumed for what is no tensor; "
        f"{kind.matmul_tflops:g} TFLOP/s in products, {forward:g} and {backward:g} in attention ({kernel}) forward and "
        f"backward, {efficiency:.0%} of them reached"
    )


def _memory(plan: Plan) -> list[tuple[str, float]]:
    parts = [(part, size / GIB) for part, size in plan.memory.parts.items() if size]
    return [*parts, ("in all", plan.memory.total / GIB), ("room", plan.room / GIB)]


def _seconds(plan: Plan) -> list[tuple[str, float]]:
    return [*((name, one) for name, one in plan.seconds.items() if one), ("in all", plan.step_seconds)]


def _two_columns(title: str, unit: str, rows: Iterable[tuple[str, float]], form: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    table.add_column(unit, justify="right")
    for name, value in rows:
        table.add_row(name, format(value, form))
    table.add_row("", "")
    return table


def summary(plan: Plan) -> str:
    """Verdict, time and use of the GPUs."""
    host = f"; {plan.host_bytes / GIB:,.0f} GiB of each machine's own memory" if plan.host_bytes else ""
    return (
        f"{plan.verdict}: {plan.memory.total / GIB:.1f} of {plan.room / GIB:.1f} GiB{host}\n"
        f"{plan.step_seconds:,.1f} s a step, {plan.num_steps:,} steps, {plan.gpu_hours:,.0f} GPU-hours an epoch; "
        f"MFU {plan.mfu:.0%}, pair-equivalent {plan.pair_equivalent_mfu:.0%}"
    )


def _nearest_heading(plan: Plan, others: Sequence[Plan]) -> str:
    if not others:
        return "Nothing that was tried fits: shorten the pairs, or take GPUs with more memory."
    number = others[0].layout.num_gpus
    return "These fit:" if number == plan.layout.num_gpus else f"These fit, on {number} GPUs:"


def _layouts(plans: Sequence[Plan]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("layout")
    for name in ("GiB", "", "s a step", "GPU-hours", "MFU", "pair MFU"):
        table.add_column(name, justify="right" if name else "left")
    table.add_column("recomputation and savings")
    for plan in plans:
        figures = (f"{plan.step_seconds:.1f}", f"{plan.gpu_hours:,.0f}", f"{plan.mfu:.0%}")
        memory = (f"{plan.memory.total / GIB:.1f}", plan.verdict)
        table.add_row(_sizes(plan.layout), *memory, *figures, f"{plan.pair_equivalent_mfu:.0%}", _savings(plan.layout))
    return table


def _sizes(layout: Layout) -> str:
    sizes = (layout.tensor, layout.pipeline, layout.context, layout.data)
    return ", ".join(f"{axis} {size}" for axis, size in zip(("tp", "pp", "cp", "dp"), sizes, strict=True))


def _savings(layout: Layout) -> str:
    found = [layout.recompute]
    found += ["optimizer offloaded"] if layout.offloads_optimizer else []
    found += ["gradients in bf16"] if layout.half_gradients else []
    return ", ".join(found)
