"""What benchmarks/stages.py measured, summed up by stage."""

import statistics
from typing import Any

STAGES = (
    "embedding",
    "linear layers",
    "trunk attention",
    "branch attention",
    "norms, RoPE, SwiGLU, residuals",
    "log-prob head",
    "loss",
    "optimizer",
    "communication",
)


def shares(row: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step, mean of the ranks: by stage, forward and backward; attainable; what is beside operators."""
    ranks = row["ranks"]
    whole = statistics.mean(step["seconds"] for rank in ranks for step in rank["steps"])
    stages = {stage: {"forward": 0.0, "backward": 0.0, "attainable": 0.0} for stage in STAGES}
    small = 0.0
    for rank in ranks:
        rate, weight = rank["attainable"], 1 / len(ranks) / len(rank["steps"])
        for step in rank["steps"]:
            for one in step["rows"]:
                stage = stages[stage_of(one)]
                stage["backward" if one["is_backward"] else "forward"] += weight * one["seconds"]
                stage["attainable"] += weight * max(one["flops"] / rate["flops"], one["bytes"] / rate["bytes"])
                small += weight * one["seconds"] if one["is_small"] else 0.0
            stages["communication"]["forward"] += weight * step["waits"]["communication"]
    data = statistics.mean(step["waits"]["data"] for rank in ranks for step in rank["steps"])
    seen = sum(one["forward"] + one["backward"] for one in stages.values())
    return {
        "whole": whole,
        "stages": stages,
        "data": data,
        "python": max(0.0, whole - seen - data),
        "small": small,
    }


def overhead(found: dict[str, Any]) -> float:
    """The share of a step, as `shares` gives it, that is neither operators of size nor waiting."""
    return (found["python"] + found["small"]) / found["whole"]


def stage_of(one: dict[str, Any]) -> str:
    """By what it is, and where it was called."""
    if one["operator"].startswith("c10d"):
        return "communication"
    if one["label"] in STAGES:
        return one["label"]
    if "embedding" in one["operator"]:
        return "embedding"
    return "linear layers" if one["flops"] else "norms, RoPE, SwiGLU, residuals"
