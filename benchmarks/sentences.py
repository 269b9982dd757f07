"""What the table of docs/benchmarks.md says of each committed result: what was measured, and the numbers."""

import statistics
from itertools import pairwise
from typing import Any

from benchmarks.faults_page import kills_sentence
from benchmarks.peers_page import peers_sentence
from benchmarks.speed_page import growth_sentence, stages_sentence


def _sharing(measured: list[dict[str, Any]]) -> tuple[str, str]:
    millions = measured[0]["num_parameters"] / 1e6
    what = f"branches of {measured[0]['branch']} tokens, {millions:.0f}M-parameter Mistral"
    found = (f"trunk {row['trunk']:,}, cp {row['num_ranks']}: {row['median_ratio']:.2f}x" for row in measured)
    return f"two full passes / one shared pass, forward and backward ({what})", "; ".join(found)


def _sharing_memory(measured: list[dict[str, Any]]) -> tuple[str, str]:
    what = f"peak memory a rank of that step, two full passes / one shared pass, branches of {measured[0]['branch']}"
    found = (
        f"trunk {row['trunk']:,}, cp {row['num_ranks']}: "
        + " / ".join(f"{row['peak_bytes'][side] / 2**20:,.0f}" for side in ("two_passes", "shared"))
        + " MiB"
        for row in measured
    )
    return what, "; ".join(found)


def _sft(measured: list[dict[str, Any]]) -> tuple[str, str]:
    what = f"`sft`, one branch of {measured[0]['branch']} tokens / Megatron's own causal step, forward and backward"
    found = (f"trunk {row['trunk']:,}: {row['median_ratio']:.2f}x, FLOPs {row['flops_ratio']:.2f}x" for row in measured)
    return what, "; ".join(found)


def _recompute(measured: dict[str, Any]) -> tuple[str, str]:
    what = "step with full recomputation / with `--longpo-recompute keep-attention`, forward and backward, "
    what += f"trunk {measured['trunk']:,}"
    peaks = ", ".join(f"{mode} {peak / 2**20:,.0f}" for mode, peak in measured["peak_bytes"].items())
    kept, without = (statistics.median(measured["seconds"][mode]) for mode in ("keep-attention", "none"))
    found = f"{measured['median_ratio']:.2f}x; without recomputation {without / kept:.2f}x"
    return what, f"{found}; peak MiB: {peaks}"


def _logprob_memory(measured: dict[str, Any]) -> tuple[str, str]:
    rows = measured["bytes_beyond_inputs_and_gradients"]
    head = [row["head"] / 2**20 for row in rows]
    plain = max((row for row in rows if "plain" in row), key=lambda row: row["tokens"])
    found = f"{min(head):.0f} to {max(head):.0f} MiB"
    found += f" (log_softmax: {plain['plain'] / 2**20:,.0f} MiB at {plain['tokens']:,})"
    lengths = f"{rows[0]['tokens']:,} to {rows[-1]['tokens']:,} tokens, vocabulary {rows[0]['vocab']:,}"
    return f"peak memory of the log-prob head over its inputs and gradients, {lengths}", found


def _memory_at_length(measured: list[dict[str, Any]]) -> tuple[str, str]:
    rows = [row for row in measured if row["setting"]["recompute"] == "keep-attention" and not row["setting"]["rank"]]
    found = (
        f"cp {row['setting']['context']}, tp {row['setting']['tensor']}, {row['setting']['cp_comm_type']}: "
        + " / ".join(f"{sum(row[way].values()) / 2**30:.1f}" for way in ("counted", "derived"))
        for row in rows
    )
    what = (
        "memory of a GPU in a step of Mistral-7B, trunk 131,072, branches 2 x 2,048, keep-attention, RMSprop shared by "
    )
    what += "8 GPUs: counted on meta tensors / derived, GiB ([by part](memory.md))"
    return what, "; ".join(found)


def _door(measured: dict[str, Any]) -> tuple[str, str]:
    gigabytes = measured["weight_bytes"] / 1e9
    found = (
        f"{verb} {measured[verb]['seconds']:.0f} s, {gigabytes * 1e3 / measured[verb]['seconds']:.0f} MB/s, "
        f"peak {measured[verb]['peak_rss_bytes'] / 2**30:.1f} GiB"
        for verb in ("import-hf", "export-hf")
    )
    copied = gigabytes * 1e3 / min(measured["copy"]["seconds"])
    exact = "bit exact" if measured["bit_exact"] else "not bit exact"
    return (
        f"Hugging Face door, {gigabytes:.1f} GB of bf16 weights in Mistral-7B's shape, {exact}",
        f"{'; '.join(found)}; a plain copy {copied:.0f} MB/s",
    )


def _smollm2(measured: dict[str, Any]) -> tuple[str, str]:
    seconds = sum(stage["seconds"] for stage in measured["stages"].values())
    memory = max(stage["peak_memory_bytes"] for stage in measured["stages"].values()) / 2**30
    nll = measured["held_out"]["nll"]
    found = f"{seconds:.0f} s, {memory:.1f} GiB a process; held-out nll {nll['before']:.3f} to {nll['after']:.3f}"
    return "SmolLM2 example, all stages, model fetched before", found


def _large_dataset(measured: dict[str, Any]) -> tuple[str, str]:
    rows = measured["rows"]
    largest = rows[-1]
    what = f"dataset of {largest['pairs']:,} pairs of {measured['long']:,} tokens, {largest['bytes'] / 1e9:.1f} GB"
    memory = ", ".join(f"{row['write_peak_bytes'] / 2**20:.1f} MiB at {row['pairs']:,}" for row in rows)
    found = f"written {largest['write_tokens_per_s'] / 1e6:.0f}M tokens/s; a pair read in"
    for how in ("cold", "warm"):
        found += f" {largest[f'{how}_ms_p50']:.1f} ms {how}, 99 of 100 in {largest[f'{how}_ms_p99']:.1f};"
    found += f" peak memory over the imports: writing {memory}, reading {largest['read_peak_bytes'] / 2**20:.1f} MiB"
    return f"{what}: writing, and reading at random", found


def _miniature(measured: dict[str, Any]) -> tuple[str, str]:
    names = {"base": "base", "sft": "SFT", "dpo": "DPO", "longpo": "LongPO"}
    rows = (
        f"{title} " + " / ".join(f"{measured['accuracy'][name][exam]['all']:.1%}" for exam in ("1", "4", "8", "skills"))
        for name, title in names.items()
    )
    seconds = sum(stage["seconds"] for stage in measured["stages"].values())
    what = "a 0.4M-parameter model teaches itself four times its length: right at 1 / 4 / 8 lengths / skills kept"
    return what, f"{'; '.join(rows)}; all stages {seconds:.0f} s"


def _small_model(measured: dict[str, Any]) -> tuple[str, str]:
    ours, plain = (measured["step_seconds"][side] for side in ("ours", "plain_pytorch"))
    fixed = {side: 1e3 * seconds for side, seconds in measured["fixed_step_seconds"].items()}
    found = (
        f"first step after {min(measured['seconds_to_first_step']):.1f} s; a step of 8 pairs {1e3 * ours['8']:.0f} ms "
        f"against {1e3 * plain['8']:.0f} ms; of it whatever it holds {fixed['ours']:.1f} against "
        f"{fixed['plain_pytorch']:.1f} ms"
    )
    return "the same model, one thread: training against a plain PyTorch step on two sequences a pair", found


def _stages(measured: list[dict[str, Any]]) -> tuple[str, str]:
    return "a training step beside its tensor operators: overhead ([by stage](speed.md))", stages_sentence(measured)


def _growth(measured: dict[str, Any]) -> tuple[str, str]:
    lengths = [point["trunk"] for point in measured["points"]]
    what = (
        f"time and memory of a step by length, trunks of {min(lengths):,} to {max(lengths):,} ([all](speed.md#growth))"
    )
    return what, growth_sentence(measured)


def _packed(measured: dict[str, Any]) -> tuple[str, str]:
    what = (
        f"{measured['pairs']} pairs of {measured['trunk']} + 2 x {measured['branch']} tokens in a micro-batch, seconds"
    )
    ratios = f"{min(measured['ratios']):.3f} to {max(measured['ratios']):.3f}"
    return f"{what} a token over those of one pair as long", f"{measured['median_ratio']:.3f}x ({ratios})"


def _build(measured: dict[str, Any]) -> tuple[str, str]:
    rates = [
        statistics.median(run[side]["tokens_per_s"] for run in measured["runs"]) / 1e3 for side in ("ours", "megatron")
    ]
    found = f"{measured['median_ratio']:.2f}x: {rates[0]:,.0f}K against {rates[1]:,.0f}K"
    return "`build`, tokens a second of the processor, over those of Megatron's preprocess_data.py", found


def _against_peers(measured: list[dict[str, Any]]) -> tuple[str, str]:
    what = "a step against that of TRL's DPOTrainer and of the released form, branches of 256"
    return what, peers_sentence(measured)


def _scoring(measured: list[dict[str, Any]]) -> tuple[str, str]:
    what = f"reference log-probs, pairs a second over TRL's, branches of {measured[0]['branch']}"
    return what, "; ".join(f"{row['size']}, trunk {row['trunk']:,}: {row['times']:.2f}x" for row in measured)


def _killed(measured: dict[str, Any]) -> tuple[str, str]:
    return "training runs that are killed and started again ([by kind](faults.md#what-kills-cost))", kills_sentence(
        measured["rows"]
    )


def _soak(measured: dict[str, Any]) -> tuple[str, str]:
    points = [point for point in measured["points"] if point["step"] >= 500]
    files = {point["open_files"] for point in points}
    step_ms = [
        1e3 * (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in pairwise(points)
    ]
    quarter = len(step_ms) // 4
    first, last = (statistics.median(some) for some in (step_ms[:quarter], step_ms[-quarter:]))
    found = f"resident memory {measured['drift']['resident_bytes']:+.1%}; open files {min(files)} to {max(files)}; "
    found += f"processor time of a step {min(step_ms):.0f} to {max(step_ms):.0f} ms, median of the first quarter "
    found += f"{first:.0f}, of the last {last:.0f}"
    return f"a run of {measured['steps']:,} steps of a tiny model, from step 500 on", found


SENTENCES = {
    "miniature": _miniature,
    "small_model": _small_model,
    "sharing": _sharing,
    "sharing_memory": _sharing_memory,
    "sft": _sft,
    "against_peers": _against_peers,
    "scoring": _scoring,
    "stages": _stages,
    "growth": _growth,
    "packed": _packed,
    "build": _build,
    "recompute": _recompute,
    "logprob_memory": _logprob_memory,
    "memory_at_length": _memory_at_length,
    "smollm2": _smollm2,
    "door": _door,
    "large_dataset": _large_dataset,
    "faults": _killed,
    "soak": _soak,
}
"""File in results/ -> (what was measured, the number)."""
