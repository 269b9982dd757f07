"""Which errors end a training run in one line, by where they come from."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.distributed import DistNetworkError
from torch.distributed.checkpoint.api import CheckpointException

from megatron_longpo.data.dataset import split_pairs
from megatron_longpo.errors import UserError
from megatron_longpo.run_errors import explanation, report


def raised(error: BaseException | Callable[[], Any], *functions: str) -> BaseException:
    """The error as it arrives out of nested functions of these names."""

    def fail() -> None:
        if isinstance(error, BaseException):
            raise error
        error()

    call: Callable[[], None] = fail
    for name in reversed(functions):
        call = named(name, call)
    try:
        call()
    except BaseException as caught:
        return caught
    raise AssertionError("nothing was raised")


def named(name: str, inner: Callable[[], None]) -> Callable[[], None]:
    def outer() -> None:
        inner()

    return types.FunctionType(outer.__code__.replace(co_name=name), globals(), name, None, outer.__closure__)


def no_text() -> None:
    raise AssertionError


def name_of(value: Any) -> str:
    """A test's name, the same in every process: a function's text holds its address."""
    return value.__name__ if callable(value) else str(value)


@pytest.mark.parametrize(
    ("error", "functions", "said"),
    [
        (UserError("the lr\nis bad"), ["train_step"], "the lr is bad"),
        (OSError(28, "No space left on device", "m.jsonl"), ["train_step"], "No space left on device: 'm.jsonl'"),
        (torch.OutOfMemoryError("CUDA out of memory."), ["train_step"], "add --longpo-recompute keep-attention"),
        (AssertionError("tp must divide"), ["validate_args"], "Megatron refuses the options: tp must divide"),
        (no_text, ["validate_args"], "Megatron refuses the options: raise AssertionError"),
        (RuntimeError("no port"), ["initialize_megatron"], "refuses the options: RuntimeError: no port"),
        (ValueError("a\nb"), ["load_checkpoint"], "cannot be resumed: ValueError: a b; give the options"),
        (AttributeError("x"), ["load_checkpoint"], "cannot be resumed: AttributeError: x"),
        (SystemExit(), ["load_checkpoint"], "cannot be resumed: SystemExit"),
        (AssertionError("OptimizerParamScheduler: 8 and 4"), ["load_checkpoint"], "--override-opt_param-scheduler"),
        (RuntimeError("gloo: Timed out waiting 60000ms"), ["train_step"], "--distributed-timeout-minutes: one hangs"),
        (DistNetworkError("the port is taken"), ["initialize_megatron"], "the ranks cannot meet at MASTER_ADDR"),
        (RuntimeError("Connection closed by peer"), ["save_checkpoint"], "another rank has ended; its own message"),
    ],
    ids=name_of,
)
def test_the_users(error: Any, functions: list[str], said: str) -> None:
    text = explanation(raised(error, *functions))
    assert text is not None and said in text and "\n" not in text


@pytest.mark.parametrize(
    ("error", "functions"),
    [
        (RuntimeError("shapes differ"), ["train", "train_step"]),
        (AssertionError("ours"), ["evaluate"]),
        (TypeError("no such argument"), ["initialize_megatron"]),
        (SystemExit(16), ["train_step"]),
        (lambda: split_pairs("many", "1,1"), ["pretrain"]),  # type: ignore[arg-type]  # raised in a line of the package
    ],
    ids=name_of,
)
def test_defects_keep_their_traceback(error: Any, functions: list[str]) -> None:
    assert explanation(raised(error, *functions)) is None


@pytest.mark.parametrize("function", ["save_checkpoint", "maybe_finalize_async_save"])
def test_a_checkpoint_that_is_not_written(function: str, tmp_path: Path) -> None:
    """Says what room there is, also of an OSError, and what is kept: here nothing."""
    text = explanation(raised(OSError(28, "No space left on device"), "train", function), tmp_path)
    assert text is not None and text.startswith("no checkpoint can be written: OSError: [Errno 28] No space left")
    assert f"bytes are free in {tmp_path}" in text and "kept" not in text


def test_what_every_rank_says_of_a_checkpoint_is_its_cause() -> None:
    error = CheckpointException("load", {0: (ValueError("size mismatch"), None)})  # type: ignore[dict-item]
    text = explanation(raised(error, "load_checkpoint"))
    assert text is not None and "ValueError: size mismatch;" in text and "Traceback" not in text


def test_what_a_process_of_the_loader_says() -> None:
    try:
        raise UserError("pair 'a' (p.jsonl:3) holds token 9\nand more")
    except UserError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    assert explanation(raised(wrapped.reraise, "train_step")) == "pair 'a' (p.jsonl:3) holds token 9 and more"


def test_other_ranks_speak_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    waits = list[float]()
    monkeypatch.setattr("megatron_longpo.run_errors.time.sleep", waits.append)
    for rank in ("0", "3"):
        monkeypatch.setenv("RANK", rank)
        report("bad")
    assert waits == [3.0]
    report("another rank has ended; its own message says why")
    assert waits == [3.0, 8.0]
    prefix = "megatron_longpo.train: error: bad"
    assert capsys.readouterr().err.splitlines()[:2] == [prefix, f"{prefix} (rank 3)"]
