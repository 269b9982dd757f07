"""The table of docs/layouts.md: what ``megatron-longpo plan --search`` puts first. Arithmetic; nothing is measured."""

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.released_models import MISTRAL_7B, QWEN_7B
from megatron_longpo.commands.main import run_verb

MODELS = {"Mistral-7B": MISTRAL_7B, "Qwen2.5-7B": QWEN_7B}
TRUNKS = (32_768, 131_072, 262_144, 524_288)
GPUS = ("h100-80", "h200-141")
OPTIONS = ("--gpus", "8", "--longpo-optimizer", "rmsprop", "--search", "--json")


def layouts_table() -> str:
    """The first layout of each search, as Markdown."""
    lines = [
        "| model | trunk | 8 GPUs | tensor | pipeline | context | data | recomputation | GiB of a GPU | layouts fit |",
        "|---|--:|---|--:|--:|--:|--:|---|--:|--:|",
    ]
    for name, config in MODELS.items():
        for kind in GPUS:
            lines += [_row(name, config, kind, trunk) for trunk in TRUNKS]
    options = " ".join(OPTIONS[:-1])
    return "\n".join((*lines, "", f"Planned by `plan MODEL --trunk N --kind NAME {options}`.")) + "\n"


def _row(name: str, config: Mapping[str, Any], kind: str, trunk: int) -> str:
    plans = _search(config, kind, trunk)
    fit = [plan for plan in plans if plan["verdict"] == "OK"]
    cells: list[Any] = ["none", "", "", "", "", ""]
    if fit:
        layout, gib = fit[0]["layout"], fit[0]["memory_bytes_in_all"] / 2**30
        cells = [layout[axis] for axis in ("tensor", "pipeline", "context", "data", "recompute")] + [f"{gib:.0f}"]
    return "| " + " | ".join(map(str, (name, f"{trunk:,}", kind, *cells, f"{len(fit)} of {len(plans)}"))) + " |"


def _search(config: Mapping[str, Any], kind: str, trunk: int) -> list[dict[str, Any]]:
    """All plans of the command that the page shows, in its order."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        assert run_verb("plan", [folder, "--trunk", str(trunk), "--kind", kind, *OPTIONS]) == 0
    return json.loads(printed.getvalue())["plans"]
