"""LongPO training: ``torchrun ... -m megatron_longpo.train --load DIR --longpo-data PREFIX <Megatron's options>``.

The loop, the optimizer, checkpoints, logging and signals are Megatron's ``pretrain``. Here stands what it asks
for: the model and the datasets; the forward step with its loss is step.py.
"""

import shutil
import sys
import traceback
from collections.abc import Iterator
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

from megatron_longpo import megatron_hooks, platform, run_errors
from megatron_longpo.quiet import quiet_libraries

_VERBOSE = "--longpo-verbose" in sys.argv
if not _VERBOSE:
    quiet_libraries()

platform.activate()  # before Megatron is imported, which looks for CUDA as it loads

import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.enums import ModelType  # noqa: E402
from megatron.core.num_microbatches_calculator import get_num_microbatches  # noqa: E402
from megatron.training import get_args, global_vars, pretrain  # noqa: E402
from megatron.training.argument_utils import pretrain_cfg_container_from_args  # noqa: E402
from megatron.training.arguments import core_transformer_config_from_args  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402

from megatron_longpo.arguments.first_screen import GIB, first_screen, write_arguments  # noqa: E402
from megatron_longpo.arguments.parse import parse  # noqa: E402
from megatron_longpo.arguments.planned_memory import planned_memory  # noqa: E402
from megatron_longpo.arguments.resume import mend_tracker  # noqa: E402
from megatron_longpo.arguments.run_settings import recipe_settings  # noqa: E402
from megatron_longpo.arguments.settings import LongPOSettings  # noqa: E402
from megatron_longpo.batches import loader  # noqa: E402
from megatron_longpo.console import LOG_FILE, Console, quiet, say  # noqa: E402
from megatron_longpo.data.dataset import HeldOutPairs, PairDataset  # noqa: E402
from megatron_longpo.data.trees import tree_lengths  # noqa: E402
from megatron_longpo.hf.folder import TRACKER_FILE, step_of  # noqa: E402
from megatron_longpo.hf.sidecar import copy_sidecar  # noqa: E402
from megatron_longpo.hf.training_record import write_training_record  # noqa: E402
from megatron_longpo.micro_batch import micro_batch  # noqa: E402
from megatron_longpo.model import kernels  # noqa: E402
from megatron_longpo.model.build import build_model  # noqa: E402
from megatron_longpo.non_finite import StepLosses, check_weights  # noqa: E402
from megatron_longpo.optimizer import use_rmsprop  # noqa: E402
from megatron_longpo.peak_memory import PeakMemory  # noqa: E402
from megatron_longpo.plan.memory import StepMemory  # noqa: E402
from megatron_longpo.reference.frozen import load_frozen  # noqa: E402
from megatron_longpo.reference.online import OnlineReference  # noqa: E402
from megatron_longpo.reference.options import OnlineSettings  # noqa: E402
from megatron_longpo.started_ranks import check_ranks  # noqa: E402
from megatron_longpo.step import forward_step  # noqa: E402
from megatron_longpo.watch import Watch  # noqa: E402


def main() -> int:
    """Train; returns the exit status (2: something the user can fix)."""
    try:
        with quiet(_VERBOSE) as console:
            _train(console)
    except (Exception, CheckpointException, SystemExit) as error:
        save = getattr(global_vars._GLOBAL_ARGS, "save", None)  # no arguments before options are read
        message = run_errors.explanation(error, Path(save) if save else None)
        if message is None:
            raise
        if _VERBOSE:
            traceback.print_exc()
        run_errors.report(message)
        return 2
    return 0


def _train(console: Console | None) -> None:
    if console:
        megatron_hooks.drop_list_of_arguments()
    check_ranks()
    args, settings = parse()
    if not (args.skip_train or args.finetune) and _is_finished(Path(args.load), args.ckpt_step, args.train_iters):
        return
    if args.save and args.rank == 0:
        copy_sidecar(settings.source, Path(args.save), settings.shape.rope, args.max_position_embeddings)
        mend_tracker(args)
        write_arguments(args)  # fails where nothing can be written
    if console:
        prints = args.rank in (0, args.world_size - 1)
        console.keep_in(settings.saves / LOG_FILE if settings.saves and prints else None)
    planned = planned_memory(args, settings) if args.rank == 0 else None
    if planned:
        say(first_screen(args, settings, planned))
    if settings.rmsprop_alpha is not None:
        use_rmsprop(settings.rmsprop_alpha)
    losses = StepLosses(settings.reader.named, lambda: args.curr_iteration + 1, args.longpo_skip_steps)
    watch = Watch(settings, args, losses)
    _install_hooks(settings, losses)
    watch.install_hooks()
    batches = partial(_batches, settings=settings, watch=watch)
    batches.is_distributed = True  # type: ignore[attr-defined]  # every rank reads its own pairs from the mapped file
    pretrain(
        pretrain_cfg_container_from_args(args, None),
        batches,
        ModelType.encoder_or_decoder,
        partial(forward_step, settings=settings.step, losses=losses),
        model_provider=partial(_model, settings=settings),
    )
    _say_memory(planned)


def _say_memory(planned: StepMemory | None) -> None:
    """The most that a rank held, beside what was planned; said by the rank that planned."""
    held = torch.tensor(float(_memory_since_here().bytes()), device=torch.cuda.current_device())
    torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX)
    if planned:
        say(f"memory of a rank: {held.item() / GIB:.3f} GiB at most, {planned.total / GIB:.3f} GiB planned")


def _is_finished(loaded: Path, ckpt_step: int | None, train_iters: int) -> bool:
    """The checkpoint to go on from is the last step's already; says so."""
    if not (loaded / TRACKER_FILE).is_file():
        return False
    step = step_of(loaded, ckpt_step)
    if step < train_iters or step == 0:
        return False
    if get_args().rank == 0:
        say(f"nothing left to do: {loaded} holds step {step} of --train-iters {train_iters}")
    return True


def _install_hooks(settings: LongPOSettings, losses: StepLosses) -> None:
    megatron_hooks.use_built_dataset_helper()
    megatron_hooks.skip_warm_up()
    if get_args().transformer_impl == "transformer_engine":
        megatron_hooks.fuse_without_apex()
    if get_args().skip_train:
        megatron_hooks.report_evaluation()
    if not get_args().async_save:
        megatron_hooks.collect_written_parts_here()
    megatron_hooks.before_save(_prepare_save)
    if get_args().check_for_nan_in_loss_and_grad or get_args().longpo_skip_steps:
        megatron_hooks.wrap_schedules(losses.after)
    if get_args().longpo_skip_steps:
        megatron_hooks.before_update(losses.skips)
    if isinstance(settings.reference, OnlineSettings):
        _score_online(settings.reference, tree_lengths(settings.reader, settings.reference.reads).longest_trunk)


def _prepare_save(step: int, chunks: Any) -> None:
    """Check the weights, and remove a checkpoint of that step, which a killed run or another course left.

    Written over, old and new files could pass for a whole one. No other rank writes before it has planned with rank 0.
    """
    check_weights(step, chunks)
    if get_args().rank == 0:
        shutil.rmtree(Path(get_args().save) / f"iter_{step:07d}", ignore_errors=True)


def _score_online(settings: OnlineSettings, longest_trunk: int) -> None:
    """Let the schedules that Megatron asks for score their pairs first."""
    loaded = cache(
        partial(_online_reference, settings, longest_trunk)
    )  # at the first schedule: by then there are process groups
    megatron_hooks.wrap_schedules(lambda schedule: loaded().before(schedule))


def _online_reference(settings: OnlineSettings, longest_trunk: int) -> OnlineReference:
    args = get_args()
    model = load_frozen(
        settings.checkpoint,
        dtype=args.params_dtype,
        sequence_parallel=args.sequence_parallel,
        cp_comm_type=args.cp_comm_type,
        transformer_impl=args.transformer_impl,
        longest_trunk=longest_trunk,
    )
    return OnlineReference(model, settings.reads)


def _model(
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    config: Any = None,
    pg_collection: Any = None,
    *,
    settings: LongPOSettings,
) -> nn.Module:
    """Megatron's model provider."""
    _choose_kernel()
    _memory_since_here()
    return build_model(
        config or core_transformer_config_from_args(get_args()),
        settings.shape,
        pre_process=pre_process,
        post_process=post_process,
        vp_stage=vp_stage,
        pg_collection=pg_collection,
    )


@cache
def _memory_since_here() -> PeakMemory:
    """Of this rank, from the making of the model on."""
    return PeakMemory()


@cache  # Megatron asks for a model once for every virtual pipeline stage
def _choose_kernel() -> None:
    """Say what computes attention, before anything long."""
    args = get_args()
    kernels.use_only(args.longpo_attention_kernel)
    branches, trunk = kernels.choose_for(args, any_length=True).name, "Transformer Engine"
    if args.transformer_impl == "local":
        trunk = f"the kernel {kernels.choose_for(args).name}"
    if args.rank == 0:
        others = "" if trunk.endswith(f" {branches}") else f", of the branches by {branches}"
        slow = ", which is slow: add --bf16" if branches == "plain" and not (args.bf16 or args.fp16) else ""
        say(f"attention by {trunk}{others}{slow}")


def _batches(
    num_samples: tuple[int, int, int], vp_stage: int | None = None, *, settings: LongPOSettings, watch: Watch
) -> tuple[Iterator[Any] | None, Iterator[Any] | None, None]:
    """Megatron's dataset provider: the micro-batches of this data-parallel rank, of training and of held-out pairs.

    Called after the checkpoint is loaded, so it is also where the metrics and the recipe learn which step training
    goes on from.
    """
    args = get_args()
    watch.install_writer(args.iteration)
    if settings.saves and args.rank == 0:
        _write_training_record(settings, settings.saves)
    rank, num_ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    cached, reads = settings.reference, settings.step.objective.reads
    if isinstance(cached, OnlineSettings):
        cached, reads = {}, (*reads, *cached.reads)
    with_short = any(kind.context == "short" for kind in reads)
    exit_signal = args.exit_signal if args.exit_signal_handler else None
    cp_group = parallel_state.get_context_parallel_group()
    make = partial(micro_batch, settings=settings.step, cp_rank=cp_group.rank(), cp_size=cp_group.size())
    train = valid = None
    if not args.skip_train:
        pairs = PairDataset(settings.reader, settings.order, cached, with_short)
        planned = settings.plan.microbatches(args.consumed_train_samples, get_num_microbatches(), rank)
        train = watch.phases.waiting(loader(pairs, planned, make, args.num_workers, exit_signal))
    period = args.eval_iters * args.eval_global_batch_size
    if settings.held_out and period:
        held_out = HeldOutPairs(settings.reader, settings.held_out[:period], period, cached, with_short)
        first = 0 if args.skip_train else args.consumed_valid_samples
        in_turn = ([sample] for sample in count(first + rank, num_ranks))
        valid = loader(held_out, in_turn, make, args.num_workers, exit_signal)
    return train, valid, None


def _write_training_record(settings: LongPOSettings, save: Path) -> None:
    args = get_args()
    loaded = Path(args.load)
    if not (loaded / TRACKER_FILE).is_file():  # Megatron's own order
        loaded = Path(args.pretrained_checkpoint)
    loaded_step = args.iteration or step_of(loaded, args.ckpt_step)
    write_training_record(save, loaded, loaded_step, args.iteration, recipe_settings(args, settings))


if __name__ == "__main__":
    run_errors.leave(main())
