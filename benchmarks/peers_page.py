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
        f"tensor's update. Measured with `{result['command']}` (sizes and lengths by themselves, with `--size` and "
        f"`--trunk`) on {result['processor']}.",
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
    """What the longest trunk of each model shows, over all settings of a peer."""
    parts: list[str] = []
    for size in dict.fromkeys(row["size"] for row in measured):
        longest = max(row["trunk"] for row in measured if row["size"] == size)
        rows = [row for row in measured if (row["size"], row["trunk"]) == (size, longest)]
        for peer, name in PEERS.items():
            of_peer = [row for row in rows if row["peer"] == peer]
            times, memory = (_range([row[what] for row in of_peer]) for what in ("times", "memory"))
            parts.append(f"{size}, trunk {longest:,}: {times} times as fast as {name}, with {memory} of its memory")
    return "; ".join(parts)


def _range(numbers: list[float]) -> str:
    least, most = f"{min(numbers):.2f}", f"{max(numbers):.2f}"
    return least if least == most else f"{least} to {most}"
