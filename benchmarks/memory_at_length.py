"""Memory of one GPU in a training step of Mistral-7B at 131,072 tokens, counted tensor by tensor, by part.

    python -m benchmarks.memory_at_length [--settings FILE] [--output FILE]

The code of a micro-batch runs as it is, on meta tensors (benchmarks/meta_step.py): the whole model in bf16 under
Megatron's DDP with fp32 gradients and the distributed optimizer's buffers, one pair through it, its LongPO loss,
backward. The optimizer does not run; its state is arithmetic. Beside each count stands what megatron_longpo/model/
memory.py derives. ``--settings`` has other steps as a JSON list of objects with the fields of meta_step.Setting.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import meta_device

meta_device.activate()

from benchmarks.common import write_result  # noqa: E402
from benchmarks.memory_tracker import Alive  # noqa: E402
from benchmarks.meta_step import Setting, count  # noqa: E402
from megatron_longpo.plan.memory import step_memory  # noqa: E402

TABLE = (
    *(Setting(context=1, data=8, recompute=mode) for mode in ("keep-attention", "full", "selective", "none")),
    *(Setting(context=8, recompute=mode) for mode in ("keep-attention", "full", "selective", "none")),
    Setting(context=8, rank=7),
    *(Setting(context=8, cp_comm_type=name, rank=rank) for name in ("a2a", "all_gather") for rank in (0, 7)),
    Setting(context=4, tensor=2),
)
"""On a machine with 8 GPUs, whose distributed optimizers share the state however they are divided."""


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, help="JSON file; default: the steps of the table")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/memory_at_length.json")
    args = parser.parse_args()
    settings = TABLE
    if args.settings:
        settings = tuple(Setting(**one) for one in json.loads(args.settings.read_text()))
    rows: list[dict[str, Any]] = []
    for setting in settings:
        rows.append(row(setting))
        print(told(rows[-1]), flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=2) + "\n")
    else:
        write_result("memory_at_length", rows)


def told(found: dict[str, Any]) -> str:
    """A row in a line."""
    counted, derived = (sum(found[name].values()) / 2**30 for name in ("counted", "derived"))
    names = ("context", "tensor", "cp_comm_type", "rank", "recompute")
    setting = ", ".join(f"{name} {found['setting'][name]}" for name in names)
    return f"{setting}: {counted:.2f} GiB counted, {derived:.2f} derived, in {found['moment']}, {found['line']}"


def row(setting: Setting) -> dict[str, Any]:
    """Count a step and derive it."""
    peaks = count(setting)
    shape = setting.step_shape()
    derived = step_memory(shape)
    optimizer = derived.parts["optimizer"]
    (phase, part), peak = max(peaks.items(), key=lambda item: item[1].total)
    return {
        "setting": asdict(setting),
        "moment": f"{phase}: {part}",
        "line": peak.line,
        "counted": peak.by_part() | {"optimizer": optimizer},
        "derived": derived.parts,
        "moments": {
            f"{phase}: {part}": {"bytes": peak.total + optimizer, "line": peak.line, "largest": largest(peak.alive)}
            for (phase, part), peak in peaks.items()
            if part in ("attention", "MLP", "log-prob head", "embedding")
        },
        "derived_moments": derived.moments,
    }


def largest(alive: Sequence[Alive]) -> list[dict[str, Any]]:
    """The ten kinds of tensors that take most, weights and fp32 gradients aside."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for one in alive:
        if one.part not in ("weights", "gradients"):
            kinds.setdefault((one.part, one.shape, one.dtype, one.line), []).append(one.size)
    names = ("part", "shape", "dtype", "line")
    rows = [dict(zip(names, kind, strict=True)) | {"number": len(b), "bytes": sum(b)} for kind, b in kinds.items()]
    return sorted(rows, key=lambda one: -one["bytes"])[:10]


if __name__ == "__main__":
    main()
