"""metrics_writer.py and metrics_sinks.py: Megatron's numbers of a step become one line, the same everywhere."""

import io
import json
import math
from typing import Any
from unittest.mock import Mock, call

import pytest

from megatron_longpo.metrics import METRICS, metric_of, numbers
from megatron_longpo.metrics_sinks import NAMES, OtherScalars, Sinks
from megatron_longpo.metrics_writer import MetricsWriter
from megatron_longpo.step_clock import PHASES, StepClock
from megatron_longpo.throughput import Throughput

MEANS = {"loss": 6.5, "nll": 6.25, "preference_loss": 0.7, "margin": -0.5, "accuracy": 0.25, "policy_chosen_logp": -9.0}
TOKENS = {"trunk_tokens_per_pair": 90.0, "branches_tokens_per_pair": 10.0, "padding_tokens_per_pair": 25.0}


class Clock:
    """Two seconds a step."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def writer_to(file: io.StringIO, clock: Clock, tensorboard: Any = None, wandb: Any = None, **changed: Any) -> Any:
    """A writer of a run of 100 steps from its start."""
    settings: dict[str, Any] = {
        "seconds": clock,
        "phases": StepClock(clock),
        "throughput": Throughput(lambda: (4e12, 6e12), num_ranks=2, peak=None),
        "beta": None,
        "first_step": 0,
        "num_steps": 100,
    }
    return MetricsWriter(Sinks([file], tensorboard, wandb), tensorboard, **settings | changed)


def feed(writer: MetricsWriter, clock: Clock, step: int, norm: float | None = 1.5, **changed: float) -> None:
    """What Megatron hands over in a step."""
    clock.now += 2.0
    for tag, value in {**MEANS, **TOKENS, **changed, "batch-size": 4.0, "learning-rate": 5e-7}.items():
        writer.add_scalar(tag, value, step)
        writer.add_scalar(f"{tag} vs samples", value, 4 * step)
    if norm is not None:
        writer.add_scalar("grad-norm", norm, step)
    writer.hold_peak_memory(3 * 2.0**30)
    writer.end_step(step)


def test_a_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    file, clock = io.StringIO(), Clock()
    writer = writer_to(file, clock)
    writer.hold({"by_turn": {"1": {"margin": -0.5}}})
    feed(writer, clock, 1)
    assert json.loads(file.getvalue()) == {
        "step": 1,
        "split": "train",
        **MEANS,
        "by_turn": {"1": {"margin": -0.5}},
        "grad_norm": 1.5,
        "learning_rate": 5e-7,
        "num_pairs": 4,
        "num_tokens": {"trunk": 360, "branches": 40, "padding": 100},
        "seconds": 2.0,
        "phase_seconds": {"data": 0.0, "forward_backward": 0.0, "optimizer": 0.0, "other": 2.0},
        "tokens_per_second": {"trunk": 180.0, "branches": 20.0, "padding": 50.0},
        "padding_share": 0.2,
        "tflops": 1.0,
        "pair_equivalent_tflops": 1.5,
        "peak_memory_gib": 3.0,
        "resumed_from": 0,
    }
    assert capsys.readouterr().out.splitlines()[-1] == (
        "step 1/100 | loss 6.5 | nll 6.25 | preference loss 0.7 | margin -0.5 | accuracy 0.25 | grad norm 1.5 | "
        "lr 5e-07 | 200 tokens/s | 3.0 GiB | 2 s, 0:03:18 left"
    )


def test_rewards_are_beta_times_what_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    file, clock = io.StringIO(), Clock()
    feed(writer_to(file, clock, beta=0.5), clock, 1, chosen_gap=3.0, rejected_gap=-1.0)
    found = json.loads(file.getvalue())
    assert (found["chosen_reward"], found["rejected_reward"], found["reward_margin"]) == (1.5, -0.5, -0.25)


def test_a_skipped_step_and_numbers_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    file, clock, wandb = io.StringIO(), Clock(), Mock()
    writer = writer_to(file, clock, wandb=wandb)
    feed(writer, clock, 3, norm=None, loss=math.nan)
    line = json.loads(file.getvalue())
    assert line["grad_norm"] is None and line["loss"] is None and line["nll"] == 6.25
    (logged, step), _ = wandb.log.call_args
    assert step == 3 and logged["train/nll"] == 6.25 and not {"train/loss", "train/grad_norm"} & set(logged)
    assert "| left out |" in capsys.readouterr().out


def test_an_evaluation_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Megatron evaluates twice after the last step."""
    file = io.StringIO()
    writer = writer_to(file, Clock())
    for _ in range(2):
        for tag, value in {**MEANS, **TOKENS}.items():
            writer.add_scalar(f"{tag} validation", value, 10)
    assert json.loads(file.getvalue()) == {"step": 10, "split": "valid", **MEANS}
    assert capsys.readouterr().out.splitlines()[-1].startswith("held out, step 10 | loss 6.5 | ")


def test_all_sinks_get_the_same_names_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that Megatron sends by other names are left out; what is not in the file is passed on as it is."""
    file, clock, tensorboard, wandb = io.StringIO(), Clock(), Mock(), Mock()
    writer = writer_to(file, clock, tensorboard, wandb)
    others = OtherScalars(wandb)
    writer.hold({"by_length": {"256": {"nll": 1 / 3}}})
    writer.add_scalar("loss-scale", 2.0, 1)
    others.log({"loss-scale": 2.0}, 1)
    others.log({"loss": 6.5, "samples vs steps": 4}, 1)
    feed(writer, clock, 1)
    named = {f"train/{path}": value for path, value in numbers(json.loads(file.getvalue())).items()}
    assert named["train/by_length/256/nll"] == 1 / 3 and len(named) > 20
    assert tensorboard.add_scalar.call_args_list == [
        call("loss-scale", 2.0, 1),
        *(call(name, value, 1) for name, value in named.items()),
    ]
    assert wandb.log.call_args_list == [call({"loss-scale": 2.0}, 1), call(named, 1)]
    logged = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(" metrics of step 1 | "))
    words = (part.split(" ") for part in logged.split(" | ")[1:])
    assert {name: float(value) for name, value in words} == named


def test_every_number_is_in_the_table() -> None:
    file, clock = io.StringIO(), Clock()
    feed(writer_to(file, clock, beta=1.0), clock, 1, **dict.fromkeys(NAMES, 1.0))
    line = json.loads(file.getvalue())
    assert [path for path in numbers(line) if metric_of(path) is None] == []
    of_parts = {path for path in METRICS if path.startswith("by_")}
    of_a_peak = {"mfu", "pair_equivalent_mfu"}
    assert set(METRICS) - of_parts - of_a_peak == set(numbers(line))
    assert {f"phase_seconds/{phase}" for phase in (*PHASES, "other")} < set(METRICS)
