"""metrics_writer.py: Megatron's numbers of a step become one JSON line and one line on the terminal."""

import io
import json
import math

import pytest

from megatron_longpo.metrics_writer import MetricsWriter

MEANS = {"loss": 6.5, "nll": 6.25, "preference_loss": 0.7, "margin": -0.5, "accuracy": 0.25, "policy_chosen_logp": -9.0}
TOKENS = {"trunk_tokens_per_pair": 90.0, "branches_tokens_per_pair": 10.0, "padding_tokens_per_pair": 28.0}


class Clock:
    """Two seconds a step."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def feed(writer: MetricsWriter, clock: Clock, step: int, norm: float | None = 1.5, **changed: float) -> None:
    """What Megatron hands over in a step."""
    clock.now += 2.0
    for tag, value in {**MEANS, **TOKENS, **changed, "batch-size": 4.0, "learning-rate": 5e-7}.items():
        writer.add_scalar(tag, value, step)
    if norm is not None:
        writer.add_scalar("grad-norm", norm, step)
    writer.end_step(step)


def test_a_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    file, clock = io.StringIO(), Clock()
    writer = MetricsWriter([file], None, None, clock, 100)
    writer.hold({"turns": {"1": {"margin": -0.5}}})
    feed(writer, clock, 1)
    assert json.loads(file.getvalue()) == {
        "step": 1,
        "split": "train",
        **MEANS,
        "turns": {"1": {"margin": -0.5}},
        "grad_norm": 1.5,
        "learning_rate": 5e-7,
        "num_pairs": 4,
        "num_tokens": {"trunk": 360, "branches": 40, "padding": 112},
        "seconds": 2.0,
    }
    assert capsys.readouterr().out == (
        "step 1/100 | loss 6.5 | nll 6.25 | preference loss 0.7 | margin -0.5 | accuracy 0.25 | grad norm 1.5 | "
        "lr 5e-07 | 200 tokens/s | 2 s, 0:03:18 left\n"
    )


def test_a_skipped_step_and_numbers_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    file, clock = io.StringIO(), Clock()
    writer = MetricsWriter([file], None, None, clock, 3)
    feed(writer, clock, 3, norm=None, loss=math.nan)
    line = json.loads(file.getvalue())
    assert line["grad_norm"] is None and line["loss"] is None and line["nll"] == 6.25
    assert "skipped: the gradient overflowed" in capsys.readouterr().out


def test_an_evaluation_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Megatron evaluates twice after the last step."""
    file = io.StringIO()
    writer = MetricsWriter([file], None, None, Clock(), 10)
    for _ in range(2):
        for tag, value in {**MEANS, **TOKENS}.items():
            writer.add_scalar(f"{tag} validation", value, 10)
    assert json.loads(file.getvalue()) == {"step": 10, "split": "valid", **MEANS}
    assert capsys.readouterr().out.startswith("held out, step 10 | loss 6.5 | ")
