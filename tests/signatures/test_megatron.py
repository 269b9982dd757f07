"""Megatron calls what stands in the place of its functions with arguments that it takes, and by what they mean.

Every call of a replaced function in the installed megatron-core is read from its source and made on our replacement,
each argument being its own text. What Megatron's function then gets, and what ours reads of arguments and results, is
compared with what the text says.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megatron_longpo import megatron_hooks, platform
from tests.mutations import Mutation
from tests.signatures.mutated import is_noticed, mutations

platform.activate(announce=False)

import megatron.core  # noqa: E402
from megatron.core.datasets import utils as dataset_utils  # noqa: E402
from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402
from megatron.training import arguments, initialize, training  # noqa: E402

MEGATRON = Path(megatron.core.__file__).resolve().parents[1]
PASSED_ON = (
    "evaluate_and_print_results",
    "training_log",
    "train_step",
    "save_checkpoint_and_time",
    "evaluate",
    "get_forward_backward_func",
    "get_megatron_optimizer",
)
"""Functions of training.py that ours call in turn."""
ALONE: list[tuple[str, Any, str]] = [
    ("drop_list_of_arguments", arguments, "_print_args"),
    ("use_built_dataset_helper", dataset_utils, "compile_helpers"),
    ("skip_warm_up", initialize, "_warmup_jit_function"),
    ("collect_written_parts_here", filesystem_async, "get_write_results_queue"),
]
"""Hook, owner and name of functions that ours stand in for."""
MUTATIONS = mutations(
    "megatron_longpo/megatron_hooks.py",
    (
        "log-rate-and-step-swapped",
        "learning_rate: Any, iteration: int, *args",
        "iteration: Any, learning_rate: int, *args",
    ),
    (
        "log-losses-swapped-on",
        "stock(loss_dict, total_loss_dict, learning",
        "stock(total_loss_dict, loss_dict, learning",
    ),
    ("norm-from-another-place", "result[5]", "result[4]"),
    ("means-from-another-place", "do(result[0], ", "do(result[1], "),
    ("evaluation-from-another-place", "results[0] or", "results[1] or"),
    ("save-step-and-model-swapped", "stock(iteration, model, *args", "stock(model, iteration, *args"),
    ("save-model-and-step-taken", "(iteration: int, model: Any, *args", "(model: Any, iteration: int, *args"),
    ("report-switch-renamed", '{"write_to_tensorboard": True}', '{"write_to_log": True}'),
    ("schedule-takes-a-position", "get_forward_backward_func(**kwargs: Any)", "get_forward_backward_func(args: Any)"),
    ("warm-up-size-renamed", "lambda **_: None", "lambda tp=None: None"),
    ("queue-without-a-mode", 'lambda mp_mode="spawn": written', "lambda: written"),
    ("list-of-arguments-takes-one", "lambda title, args: None", "lambda args: None"),
)


@cache
def sources() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in MEGATRON.rglob("*.py")}


@cache
def trees_with(name: str) -> list[ast.Module]:
    call = re.compile(rf"(?<!def )\b{name}\(")
    return [ast.parse(text) for text in sources().values() if call.search(text)]


@cache
def call_sites(name: str, in_training_only: bool) -> list[tuple[ast.Call, list[str]]]:
    """Every call of a function, and the names that its results get."""
    trees = [ast.parse(sources()[MEGATRON / "training" / "training.py"])] if in_training_only else trees_with(name)
    found: dict[ast.Call, list[str]] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            found.setdefault(node, [])
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            found[node.value] = re.findall(r"\w+", ast.unparse(node.targets[0]))
    sites = [(call, names) for call, names in found.items() if getattr(call.func, "id", None) == name]
    assert sites, f"Megatron does not call {name}"
    return sites


def given(call: ast.Call) -> tuple[list[str], dict[str, str]]:
    """The arguments of a call as text."""
    return [ast.unparse(one) for one in call.args], {str(one.arg): ast.unparse(one.value) for one in call.keywords}


def made(name: str, install: Callable[[], None], changed: dict[str, Any]) -> None:
    """Every call reaches Megatron's function as it is written, but for ``changed``, and gets its results."""
    stock = getattr(training, name)
    for call, results in call_sites(name, True):
        seen: list[dict[str, Any]] = []

        def note(*args: Any, **kwargs: Any) -> Any:
            seen.append(dict(inspect.signature(stock).bind(*args, **kwargs).arguments))  # noqa: B023
            return Result(results)  # noqa: B023

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, name, note)
            install()
            args, kwargs = given(call)
            result = getattr(training, name)(*args, **kwargs)
        assert seen == [dict(inspect.signature(stock).bind(*args, **kwargs).arguments) | changed]
        assert not results or list(result) == results


class Result(tuple[str, ...]):
    """The names that results get, or one thing that is called and has parts."""

    chained_optimizers = ()

    def prepare_grads(self) -> None: ...

    def __call__(self) -> None: ...


def compare_hooks(hooks: ModuleType) -> None:
    """All replacements: what reaches Megatron's functions, and what ours take for the step, its means and its norm."""
    seen: list[Any] = []
    made("evaluate_and_print_results", hooks.report_evaluation, {"write_to_tensorboard": True})
    made("training_log", partial(hooks.around_training_log, seen.append, seen.append), {})
    made("train_step", partial(hooks.after_train_step, lambda means, norm: seen.append((means, norm))), {})
    made("save_checkpoint_and_time", partial(hooks.before_save, lambda *both: seen.append(both)), {})
    made("evaluate", partial(hooks.after_evaluation, seen.append), {})
    made("get_forward_backward_func", partial(hooks.wrap_schedules, lambda schedule: schedule), {})
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in replaced_by(hooks.change_optimizer):
            patch.setattr(owner, name, getattr(owner, name))
        made("get_megatron_optimizer", partial(hooks.change_optimizer, seen.append, ()), {})
    made("get_megatron_optimizer", partial(hooks.before_update, lambda *_: False), {})
    saves = [("iteration", "model")] * len(call_sites("save_checkpoint_and_time", True))
    logs = ["loss_dict", "iteration"] * len(call_sites("training_log", True))
    steps = [("loss_dict", "grad_norm")] * len(call_sites("train_step", True))
    assert seen == [*logs, *steps, *saves, "total_loss_dict"]
    for hook, owner, name in ALONE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, getattr(owner, name))
            getattr(hooks, hook)()
            for call, _ in call_sites(name, False):
                args, kwargs = given(call)
                inspect.signature(getattr(owner, name)).bind(*args, **kwargs)


def replaced_by(hook: Callable[..., Any]) -> Iterator[tuple[Any, str]]:
    """What a hook replaces beside a function of training.py."""
    from megatron.core.optimizer import distrib_optimizer

    for owner in (distrib_optimizer, distrib_optimizer.DistributedOptimizer):
        for name in ("HAVE_APEX_OR_TE", "optimizer_state_keys"):
            if hasattr(owner, name) and name in inspect.getsource(hook):
                yield owner, name


def test_every_call_of_a_replaced_function() -> None:
    compare_hooks(megatron_hooks)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_a_swapped_argument_of_a_hook_is_noticed(mutation: Mutation) -> None:
    assert is_noticed(mutation, compare_hooks)


def test_every_replacement_is_compared() -> None:
    """But for values, and a function without arguments whose two results are named below."""
    source = ast.parse(inspect.getsource(megatron_hooks))
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call) and ast.unparse(node.func) == "replace"]
    names = {ast.literal_eval(call.args[1]) for call in calls}
    values = {"optimizer_state_keys", "HAVE_APEX_OR_TE", "_grad_accum_fusion_available"}
    values |= {"_GLOBAL_TENSORBOARD_WRITER", "_GLOBAL_WANDB_WRITER", "SummaryWriter", "wandb"}
    assert names == {*PASSED_ON, *(name for _, _, name in ALONE), *values, "consume_seqlen_stats_in_iteration"}


@pytest.mark.parametrize("name", ["train_step", "evaluate"])
def test_every_return_has_the_place_that_is_read(name: str) -> None:
    """The means are first; of train_step the gradient norm is sixth, None where a step was skipped."""
    function = ast.parse(inspect.getsource(getattr(training, name))).body[0]
    assert isinstance(function, ast.FunctionDef)
    returns = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    (_, results), *_ = call_sites(name, True)
    for value in returns:
        assert isinstance(value, ast.Tuple) and len(value.elts) == len(results)
        texts = [ast.unparse(one) for one in value.elts]
        assert texts[0] in ("{}", "loss_reduced", "None", "total_loss_dict")
        assert name == "evaluate" or texts[5] in ("grad_norm", "None")


def test_tokens_come_before_squared_lengths() -> None:
    from megatron_longpo import watch

    ((call, results),) = call_sites("consume_seqlen_stats_in_iteration", True)
    assert given(call) == ([], {}) and results == ["total_real_tokens_in_batch", "seqlen_squared_sum_in_batch"]
    source = inspect.getsource(watch)
    assert "count_tokens_of_a_step(self._of_the_last_step(trees.tokens, squares_P))" in source
    assert "return float(first_P[pairs].sum()), float(second_P[pairs].sum())" in source
