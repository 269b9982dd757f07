"""The table of docs/peers.md: steps of ours against TRL's and the released form's, from results/against_peers.json."""

import statistics
from typing import Any

PEERS = {"trl": "TRL", "released": "released form"}


def peers_table(result: dict[str, Any]) -> str:
    """Seconds and memory of both sides by size, length and setting, as Markdown."""
    lines = [
        "| model | trunk | peer | recomputation | reference | s a step | peer | ratio | peak GiB | peer | ratio |",
        "|---|--:|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_row(row) for row in result["measured"]]
    loss, update = (max(row["differences"][name] for row in result["measured"]) for name in ("loss", "update"))
    lines += [
        "",
        f"Largest relative difference in a step of plain gradient descent: {loss:.1e} of the loss, {update:.1e} of a "
        f"tensor's update. Measured with `python -m benchmarks.against_peers --trl PYTHON` (some sizes and lengths by "
        f"themselves, with `--size` and `--trunk`) on {result['processor']}.",
    ]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    seconds = [statistics.median(row[side]["seconds"][1:]) for side in ("ours", "theirs")]
    peaks = [row[side]["peak_bytes"] / 2**30 for side in ("ours", "theirs")]
    cells = (
        row["size"],
        f"{row['trunk']:,}",
        PEERS[row["peer"]],
        "yes" if row["recompute"] else "no",
        "computed before" if row["precomputed"] else "in every step" if row["peer"] == "trl" else "peer: in every step",
        *(f"{one:.2f}" for one in seconds),
        f"{row['times']:.2f}",
        *(f"{one:.2f}" for one in peaks),
        f"{row['memory']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def peers_sentence(measured: list[dict[str, Any]]) -> str:
    """What the longest trunk shows, of each model."""
    parts: list[str] = []
    for size in dict.fromkeys(row["size"] for row in measured):
        rows = [row for row in measured if row["size"] == size]
        longest = max(row["trunk"] for row in rows)
        found = (
            f"{PEERS[row['peer']]}, {'with' if row['recompute'] else 'without'} recomputation, reference "
            f"{'computed before' if row['precomputed'] else 'in every step'}: {row['times']:.2f}x, "
            f"{row['memory']:.2f} of its memory"
            for row in rows
            if row["trunk"] == longest
        )
        parts.append(f"{size}, trunk {longest:,}: {'; '.join(found)}")
    return ". ".join(parts)
