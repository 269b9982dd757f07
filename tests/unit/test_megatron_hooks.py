"""Each hook changes what Megatron calls, and fails where Megatron no longer has the name.

A hook is tested on Megatron's own module with the function it wraps exchanged for a recorder, since the functions
themselves need a model and ranks; that Megatron calls each is shown by the runs of tests/integration.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest

from megatron_longpo import megatron_hooks, platform
from megatron_longpo.errors import UserError
from tests.ranks import run_ranks

platform.activate(announce=False)

import megatron.core.tensor_parallel.layers as layers  # noqa: E402
import megatron.core.timers as timers  # noqa: E402
from megatron.core.datasets import utils as dataset_utils  # noqa: E402
from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402
from megatron.core.optimizer import distrib_optimizer  # noqa: E402
from megatron.training import global_vars, initialize, training  # noqa: E402

Record = Callable[[str, Any], list[tuple[tuple[Any, ...], dict[str, Any]]]]

HOOKS: list[tuple[Callable[[], None], Any, str]] = [
    (megatron_hooks.use_built_dataset_helper, dataset_utils, "compile_helpers"),
    (megatron_hooks.skip_warm_up, initialize, "_warmup_jit_function"),
    (megatron_hooks.fuse_without_apex, layers, "_grad_accum_fusion_available"),
    (megatron_hooks.report_evaluation, training, "evaluate_and_print_results"),
    (partial(megatron_hooks.around_training_log, dict, int), training, "training_log"),
    (partial(megatron_hooks.after_train_step, dict), training, "train_step"),
    (partial(megatron_hooks.before_save, dict), training, "save_checkpoint_and_time"),
    (megatron_hooks.collect_written_parts_here, filesystem_async, "get_write_results_queue"),
    (partial(megatron_hooks.after_evaluation, dict), training, "evaluate"),
    (partial(megatron_hooks.count_tokens_of_a_step, lambda: (1.0, 1.0)), training, "consume_seqlen_stats_in_iteration"),
    (partial(megatron_hooks.wrap_schedules, dict), training, "get_forward_backward_func"),
    (partial(megatron_hooks.change_optimizer, dict, ("x",)), training, "get_megatron_optimizer"),
    (partial(megatron_hooks.change_optimizer, dict, ("x",)), distrib_optimizer, "HAVE_APEX_OR_TE"),
    (partial(megatron_hooks.before_update, bool), training, "get_megatron_optimizer"),
    (partial(megatron_hooks.put_writers, str, str), global_vars, "_GLOBAL_TENSORBOARD_WRITER"),
    (partial(megatron_hooks.put_writers, str, str), timers, "SummaryWriter"),
]


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name is as it was after a test, whatever a hook made of it."""
    for _, owner, name in HOOKS:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    keys = distrib_optimizer.DistributedOptimizer.optimizer_state_keys
    monkeypatch.setattr(distrib_optimizer.DistributedOptimizer, "optimizer_state_keys", keys)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """Exchange a function of training.py for one that notes its arguments and returns a value."""

    def exchange(name: str, value: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        monkeypatch.setattr(training, name, lambda *args, **kwargs: calls.append((args, kwargs)) or value)
        return calls

    return exchange


@pytest.mark.parametrize(("hook", "owner", "name"), HOOKS, ids=[name for _, _, name in HOOKS])
def test_a_renamed_name_is_refused(
    hook: Callable[[], None], owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(global_vars, "get_tensorboard_writer", lambda: None)  # it reads the name first
    monkeypatch.delattr(owner, name)
    with pytest.raises(UserError, match=rf"{owner.__name__} of megatron-core 0\.19\.\d+ has no {name}; install"):
        hook()


def test_replace_returns_what_stood_there() -> None:
    class Owner:
        name = 1

    assert megatron_hooks.replace(Owner, "name", 2) == 1 and Owner.name == 2
    with pytest.raises(UserError, match=r"Owner of megatron-core .* has no nam;"):
        megatron_hooks.replace(Owner, "nam", 2)
    assert not hasattr(Owner, "nam")


def test_the_built_dataset_helper_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, Megatron goes on to make it."""
    made: list[Any] = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: made.append(command) or SimpleNamespace(returncode=0))
    with monkeypatch.context() as without_wheel:
        without_wheel.setattr("importlib.util.find_spec", lambda _: None)
        megatron_hooks.use_built_dataset_helper()
    dataset_utils.compile_helpers()
    assert [command[0] for command in made] == ["make"]
    megatron_hooks.use_built_dataset_helper()
    dataset_utils.compile_helpers()
    assert len(made) == 1


def test_nothing_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "_warmup_jit_function(tp_size=tp_size)" in inspect.getsource(initialize.set_jit_fusion_options)
    monkeypatch.setattr(initialize, "get_args", lambda: pytest.fail("sizes of the warm-up were asked for"))
    megatron_hooks.skip_warm_up()
    initialize.set_jit_fusion_options(tp_size=1)


@pytest.mark.parametrize("impl, fuses", [("transformer_engine", True), ("local", False)])
def test_training_fuses_without_apex_under_transformer_engine(
    impl: str, fuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Megatron's own layers the refusal is right. (That it is needed: tests/signatures.)"""
    from megatron_longpo import train

    options = Mock(transformer_impl=impl)
    hooks = Mock()
    monkeypatch.setattr(train, "megatron_hooks", hooks)
    monkeypatch.setattr(train, "get_args", lambda: options)
    train._install_hooks(Mock(), Mock())
    assert hooks.skip_warm_up.called and hooks.fuse_without_apex.called == fuses


def test_report_evaluation(record: Record) -> None:
    assert "write_to_tensorboard" in inspect.signature(training.evaluate_and_print_results).parameters
    calls = record("evaluate_and_print_results", None)
    megatron_hooks.report_evaluation()
    training.evaluate_and_print_results("prefix", verbose=True, write_to_tensorboard=False)
    assert calls == [(("prefix",), {"verbose": True, "write_to_tensorboard": True})]


def test_around_training_log(record: Record) -> None:
    """Megatron passes the step's number fourth, by position."""
    assert list(inspect.signature(training.training_log).parameters)[3] == "iteration"
    calls, seen = record("training_log", "memory flag"), list[Any]()
    megatron_hooks.around_training_log(lambda means: seen.append(means.pop("a")), seen.append)
    assert training.training_log({"a": 1, "b": 2}, {}, 1e-3, 7, 1.0, grad_norm=2.0) == "memory flag"
    assert seen == [1, 7]
    assert calls == [(({"b": 2}, {}, 1e-3, 7, 1.0), {"grad_norm": 2.0})]


def test_after_train_step(record: Record) -> None:
    result = ({"loss": 1.0}, 0, False, False, 0, 2.5, None, 0)
    record("train_step", result)
    seen = list[Any]()
    megatron_hooks.after_train_step(lambda means, norm: seen.append((means, norm)))
    assert training.train_step("forward", iteration=3) == result and seen == [({"loss": 1.0}, 2.5)]


def test_before_save(record: Record) -> None:
    """What refuses comes before anything is written."""
    assert list(inspect.signature(training.save_checkpoint_and_time).parameters)[:2] == ["iteration", "model"]
    calls = record("save_checkpoint_and_time", None)

    def refuse(step: int, model: Any) -> None:
        raise UserError(f"{step} {model}")

    megatron_hooks.before_save(refuse)
    with pytest.raises(UserError, match="3 chunks"):
        training.save_checkpoint_and_time(3, "chunks", "optimizer")
    assert calls == []


@pytest.mark.parametrize(("results", "means"), [(({"a": 1}, None, False), {"a": 1}), ((None, None, True), {})])
def test_after_evaluation(record: Record, results: Any, means: Any) -> None:
    """An evaluation that ran out of time has no means."""
    record("evaluate", results)
    seen = list[Any]()
    megatron_hooks.after_evaluation(seen.append)
    assert training.evaluate("step") == results and seen == [means]


def test_count_tokens_of_a_step() -> None:
    megatron_hooks.count_tokens_of_a_step(lambda: (3.0, 9.0))
    assert training.consume_seqlen_stats_in_iteration() == (3.0, 9.0)


def test_wrap_schedules(record: Record) -> None:
    calls = record("get_forward_backward_func", str)
    megatron_hooks.wrap_schedules(lambda schedule: lambda value: schedule(value) * 2)
    assert training.get_forward_backward_func(pp_size=1)(4) == "44"
    assert calls == [((), {"pp_size": 1})]


def test_change_optimizer(record: Record) -> None:
    """Parts without parameters of this rank stay as they are."""
    parts = [SimpleNamespace(is_stub_optimizer=stub, optimizer="adam") for stub in (False, True)]
    record("get_megatron_optimizer", SimpleNamespace(chained_optimizers=parts))
    megatron_hooks.change_optimizer(lambda part: setattr(part, "optimizer", "ours"), ("square_avg",))
    built = training.get_megatron_optimizer("config", model=[])
    assert [part.optimizer for part in built.chained_optimizers] == ["ours", "adam"]
    assert distrib_optimizer.DistributedOptimizer.optimizer_state_keys == ("square_avg",)
    assert distrib_optimizer.HAVE_APEX_OR_TE is True


@pytest.mark.parametrize("has_wandb", [True, False])
def test_put_writers(monkeypatch: pytest.MonkeyPatch, has_wandb: bool) -> None:
    """Megatron's timers write to ours as to its own; without W&B nothing stands in for it."""
    wandb = SimpleNamespace(log=Mock()) if has_wandb else None
    monkeypatch.setattr(global_vars, "_GLOBAL_TENSORBOARD_WRITER", "stock")
    monkeypatch.setattr(global_vars, "_GLOBAL_WANDB_WRITER", wandb)
    monkeypatch.setattr(timers, "wandb", None)
    ours, around_wandb = Mock(), Mock()
    megatron_hooks.put_writers(lambda stock: [ours, stock][0], lambda stock: [around_wandb, stock][0])
    assert global_vars.get_tensorboard_writer() is ours
    assert global_vars.get_wandb_writer() is (around_wandb if has_wandb else None)
    kept = timers.Timers(log_level=1, log_option="max")
    monkeypatch.setattr(kept, "_get_global_min_max_time", lambda *_: {"optimizer": (0.5, 2.0)})
    for writer in (global_vars.get_tensorboard_writer(), global_vars.get_wandb_writer()):
        kept.write(["optimizer"], writer, 3)
    ours.add_scalar.assert_called_once_with("optimizer-time", 2.0, 3)
    assert around_wandb.log.call_args_list == ([call({"optimizer-time": 2.0}, 3)] if has_wandb else [])


def wandb_is_imported() -> bool:
    return "wandb" in sys.modules


@pytest.mark.ranks
def test_a_start_does_not_import_wandb() -> None:
    """The server of ranks has imported Megatron."""
    assert importlib.util.find_spec("wandb") is not None
    assert run_ranks(wandb_is_imported, 1) == [False]
