"""docs/memory.md's tables, from the results of benchmarks/memory_at_length.py on this tree and on an older one."""

from collections.abc import Iterable, Mapping
from typing import Any

from megatron_longpo.plan.memory import PARTS

GIB = 2**30
ROOM = 80e9
"""Bytes of an 80 GB GPU."""
Row = dict[str, Any]


def memory_tables(after: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Parts, layouts before and after, and the largest tensors, as Markdown."""
    rows = after["measured"]
    sections = (_parts(rows), _layouts(rows, before), _largest(rows))
    source = f"Measured with `{after['command']}`, `benchmarks/results/memory_at_length.json`."
    return "\n".join((*sections, source)) + "\n"


def _parts(rows: list[Row]) -> str:
    shown = [row for row in rows if row["setting"]["cp_comm_type"] == "p2p" and row["setting"]["rank"] == 0]
    lines = [("GiB", *(_name(row) for row in shown))]
    lines += [(part, *(_both(row["counted"].get(part, 0), row["derived"][part]) for row in shown)) for part in PARTS]
    totals = [(sum(row["counted"].values()), sum(row["derived"].values())) for row in shown]
    lines.append(("**total**", *(f"**{_both(*total)}**" for total in totals)))
    lines.append(("left of 80 GB", *(f"{(ROOM - counted) / GIB:.1f}" for counted, _ in totals)))
    return "### By part\n\n" + _table(lines)


def _layouts(rows: list[Row], before: Mapping[str, Any]) -> str:
    old = {_key(row): row for row in before["measured"]}
    lines: list[tuple[str, ...]] = [
        ("GiB, before -> after", "worst moment", "attention, forward", "attention, backward", "MLP, backward")
    ]
    for row in rows:
        cells = [_change(_total(old[_key(row)]), _total(row))]
        for moment in ("forward: attention", "backward: attention", "backward: MLP"):
            cells.append(_change(*(one["moments"][moment]["bytes"] for one in (old[_key(row)], row))))
        lines.append((f"{_name(row)}, {row['setting']['cp_comm_type']}, rank {row['setting']['rank']}", *cells))
    return f"### Before and after\n\nBefore: commit {before['commit'][:12]}.\n\n" + _table(lines)


def _largest(rows: list[Row]) -> str:
    row = next(row for row in rows if row["setting"]["context"] == 8)
    lines = [("moment", "GiB", "part", "tensors", "made at")]
    for moment in ("backward: MLP", "backward: attention"):
        for one in row["moments"][moment]["largest"]:
            shape = " x ".join(str(size) for size in one["shape"])
            what = f"{one['number']} of {shape}, {one['dtype']}" if shape else "inside the kernel, derived"
            lines.append((moment, f"{one['bytes'] / GIB:.2f}", one["part"], what, f"`{one['line']}`"))
    return f"### The largest tensors, {_name(row)}\n\nWeights and gradients aside.\n\n" + _table(lines)


def _name(row: Row) -> str:
    setting = row["setting"]
    tensor = f", tp {setting['tensor']}" if setting["tensor"] > 1 else ""
    return f"cp {setting['context']}{tensor}, {setting['recompute']}"


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row["setting"][name] for name in ("context", "tensor", "recompute", "cp_comm_type", "rank"))


def _total(row: Row) -> int:
    return sum(row["counted"].values())


def _both(counted: int, derived: int) -> str:
    return f"{counted / GIB:.2f} / {derived / GIB:.2f}" if counted or derived else "-"


def _change(before: int, after: int) -> str:
    return f"{before / GIB:.2f} -> {after / GIB:.2f}"


def _table(lines: Iterable[tuple[str, ...]]) -> str:
    head, *rest = lines
    rule = ("---",) * len(head)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *rest) if set(line[1:]) != {"-"})
