"""Every replacement of a function of Megatron-Core 0.19.2 by one of ours; what only a CPU needs is in platform.py.

Each hook is for the rest of the process and names the file and the function that it changes. Megatron is imported
inside the hooks, because platform.py must have prepared the process before.
"""

import importlib.util
import queue
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from megatron_longpo.errors import UserError


def replace(owner: Any, name: str, new: Any) -> Any:
    """Put ``new`` in the place of an attribute that must exist, and return what stood there.

    Args:
        owner: a module or a class of Megatron.

    Raises:
        UserError: there is no such attribute, so the replacement would silently do nothing.
    """
    where = owner.__name__ if not isinstance(owner, type) else f"{owner.__module__}.{owner.__qualname__}"
    if not hasattr(owner, name):
        installed = version("megatron-core")
        raise UserError(f"{where} of megatron-core {installed} has no {name}; install megatron-core>=0.19.2,<0.20")
    old = getattr(owner, name)
    setattr(owner, name, new)
    return old


def drop_list_of_arguments() -> None:
    """Let Megatron not print its 800 options (arguments.py, _print_args): first_screen.py writes them to a file."""
    from megatron.training import arguments

    replace(arguments, "_print_args", lambda title, args: None)


def use_built_dataset_helper() -> None:
    """Let the dataset helper that megatron-core's wheel holds be used as it is (datasets/utils.py, compile_helpers).

    Megatron would run ``make`` for it at every start, and the wheel has no Makefile. Without a built one it still does.
    """
    from megatron.core.datasets import utils

    if importlib.util.find_spec("megatron.core.datasets.helpers_cpp"):
        replace(utils, "compile_helpers", lambda: None)


def skip_warm_up() -> None:
    """Let Megatron not warm its fused functions up (initialize.py, _warmup_jit_function).

    It would do so on ``--seq-length`` tokens times ``--micro-batch-size``, which for pairs that share a micro-batch is
    their number: 60 GB of nothing for 16 pairs of 131,072 tokens of a 7B model. The first step compiles them as well.
    """
    from megatron.training import initialize

    replace(initialize, "_warmup_jit_function", lambda **_: None)


def fuse_without_apex() -> None:
    """Let the output layer be made with ``--gradient-accumulation-fusion`` where Transformer Engine is installed and
    Apex is not (tensor_parallel/layers.py, _grad_accum_fusion_available).

    Transformer Engine's layers have that fusion themselves. The output layer is Megatron's own and would do it by Apex,
    without which Megatron refuses to make it. But it is never called: logprob.py reads its weight, adds the gradient.
    """
    import megatron.core.tensor_parallel.layers as layers

    replace(layers, "_grad_accum_fusion_available", True)


def report_evaluation() -> None:
    """Let ``--skip-train`` report its evaluation as training does (training.py, evaluate_and_print_results)."""
    from megatron.training import training

    def evaluate_and_report(*args: Any, **kwargs: Any) -> Any:
        return stock(*args, **kwargs | {"write_to_tensorboard": True})

    stock = replace(training, "evaluate_and_print_results", evaluate_and_report)


def around_training_log(before: Callable[[dict[str, Any]], None], after: Callable[[int], None]) -> None:
    """Call ``before`` with the means of a step and ``after`` with its number (training.py, training_log)."""
    from megatron.training import training

    def training_log(
        loss_dict: dict[str, Any], total_loss_dict: Any, learning_rate: Any, iteration: int, *args: Any, **kwargs: Any
    ) -> Any:
        before(loss_dict)
        result = stock(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs)
        after(iteration)
        return result

    stock = replace(training, "training_log", training_log)


def after_train_step(do: Callable[[dict[str, Any], float | None], None]) -> None:
    """Call ``do`` with the means of a step and its gradient norm, before anything is saved (training.py, train_step).

    The means are empty but on the last pipeline stage; the norm is None where loss scaling skipped the step.
    """
    from megatron.training import training

    def train_step(*args: Any, **kwargs: Any) -> Any:
        result = stock(*args, **kwargs)
        do(result[0], result[5])
        return result

    stock = replace(training, "train_step", train_step)


def before_save(do: Callable[[int, Any], None]) -> None:
    """Call ``do`` with a checkpoint's step and model chunks before it is written (training.py,
    save_checkpoint_and_time)."""
    from megatron.training import training

    def save_checkpoint_and_time(iteration: int, model: Any, *args: Any, **kwargs: Any) -> None:
        do(iteration, model)
        stock(iteration, model, *args, **kwargs)

    stock = replace(training, "save_checkpoint_and_time", save_checkpoint_and_time)


def collect_written_parts_here() -> None:
    """Let a checkpoint that is written in this process be reported in it (dist_checkpointing/strategies/
    filesystem_async.py, get_write_results_queue).

    Megatron hands the list of what was written to a helper process and back, for saving in the background. Such a
    process first imports Megatron: ten seconds on a slow core at a run's first checkpoint.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    written: queue.Queue[Any] = queue.Queue()
    replace(filesystem_async, "get_write_results_queue", lambda mp_mode="spawn": written)


def after_evaluation(do: Callable[[dict[str, Any]], None]) -> None:
    """Call ``do`` with the means of an evaluation, before they are logged (training.py, evaluate)."""
    from megatron.training import training

    def evaluate(*args: Any, **kwargs: Any) -> Any:
        results = stock(*args, **kwargs)
        do(results[0] or {})
        return results

    stock = replace(training, "evaluate", evaluate)


def count_tokens_of_a_step(count: Callable[[], tuple[float, float]]) -> None:
    """Let FLOPs and throughput use ``count``'s tokens and squared lengths (training.py,
    consume_seqlen_stats_in_iteration), where Megatron would count ``--seq-length`` for each sample."""
    from megatron.training import training

    replace(training, "consume_seqlen_stats_in_iteration", count)


def wrap_schedules(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap each schedule that ``train`` and ``evaluate`` ask for (training.py, get_forward_backward_func)."""
    from megatron.training import training

    def get_forward_backward_func(**kwargs: Any) -> Any:
        return wrap(stock(**kwargs))

    stock = replace(training, "get_forward_backward_func", get_forward_backward_func)


def change_optimizer(change: Callable[[Any], None], state_names: tuple[str, ...]) -> None:
    """Let ``change`` exchange the torch optimizer in each of Megatron's optimizers that trains parameters.

    Three places of Megatron follow:

    - training.py, get_megatron_optimizer, returns the changed optimizer;
    - optimizer/distrib_optimizer.py, optimizer_state_keys, are the state tensors that are stored and resharded;
    - optimizer/distrib_optimizer.py, HAVE_APEX_OR_TE, says only that a parameter's state holds no step to be stored.
    """
    from megatron.core.optimizer import distrib_optimizer
    from megatron.training import training

    def get_megatron_optimizer(*args: Any, **kwargs: Any) -> Any:
        optimizer = stock(*args, **kwargs)
        for part in optimizer.chained_optimizers:
            if not part.is_stub_optimizer:
                change(part)
        return optimizer

    stock = replace(training, "get_megatron_optimizer", get_megatron_optimizer)
    replace(distrib_optimizer.DistributedOptimizer, "optimizer_state_keys", state_names)
    replace(distrib_optimizer, "HAVE_APEX_OR_TE", True)


def before_update(skips: Callable[[Any, bool], bool]) -> None:
    """Let ``skips`` say whether a step leaves weights and optimizer as they are (training.py, get_megatron_optimizer).

    It is called on all ranks with the optimizer, whose gradients are ready, and with whether loss scaling leaves the
    step out. What follows is the same: optimizer/optimizer.py, ChainedOptimizer.step.
    """
    from megatron.training import training

    def get_megatron_optimizer(*args: Any, **kwargs: Any) -> Any:
        optimizer = stock(*args, **kwargs)
        prepare = optimizer.prepare_grads
        optimizer.prepare_grads = lambda: skips(optimizer, prepare())
        return optimizer

    stock = replace(training, "get_megatron_optimizer", get_megatron_optimizer)


def import_timers() -> None:
    """Import Megatron's timers without W&B, which they would import where it is installed (core/timers.py): two seconds
    of every start. `put_writers` hands it to them where it is used."""
    if "wandb" in sys.modules:
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]  # what Python takes for a module that is not there
    try:
        import megatron.core.timers  # noqa: F401
    finally:
        del sys.modules["wandb"]


def put_writers(tensorboard: Callable[[Any], Any], wandb: Callable[[Any], Any]) -> None:
    """Put what these make around the TensorBoard writer and around the wandb module (or None) in their place
    (global_vars.py), also for the timers of --log-timers-to-tensorboard, which look at what they write to (core/
    timers.py, Timers.write)."""
    import megatron.core.timers as timers
    from megatron.training import global_vars

    writer = tensorboard(global_vars.get_tensorboard_writer())
    replace(global_vars, "_GLOBAL_TENSORBOARD_WRITER", writer)
    replace(timers, "SummaryWriter", type(writer))
    if global_vars.get_wandb_writer():
        module = wandb(global_vars.get_wandb_writer())
        replace(global_vars, "_GLOBAL_WANDB_WRITER", module)
        replace(timers, "wandb", module)
