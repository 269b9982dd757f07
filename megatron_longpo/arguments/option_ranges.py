"""Megatron's options that it would take and fail on later, with a traceback, or not read at all in a run on pairs.

Megatron checks little of what it parses (megatron/training/arguments.py 0.19, ``validate_args``): a negative count ends
in an assertion deep in the loop, a path that cannot be made in an OSError on one rank while the others wait.
"""

import argparse
import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError
from megatron_longpo.metrics_file import check_metrics_file


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number may have."""

    least: float = 0.0
    above: bool = False
    """``least`` itself is not allowed."""
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return (value > self.least if self.above else value >= self.least) and value < self.below

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least:g}"
        return low + (f" and below {self.below:g}" if math.isfinite(self.below) else "")


COUNT, NOT_NEGATIVE, POSITIVE, FRACTION = Range(1), Range(), Range(above=True), Range(below=1.0)

RANGES: dict[str, Range] = {
    **dict.fromkeys(
        (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "context_parallel_size",
            "num_layers_per_virtual_pipeline_stage",
            "num_virtual_stages_per_pipeline_rank",
            "microbatch_group_size_per_vp_stage",
            "global_batch_size",
            "eval_global_batch_size",
            "train_iters",
            "train_samples",
            "longpo_tokens_per_microbatch",
            "longpo_trunk_multiple",
            "eval_interval",
            "save_interval",
            "save_retain_interval",
            "non_persistent_save_interval",
            "exit_interval",
            "exit_duration_in_mins",
            "log_interval",
            "tensorboard_log_interval",
            "tensorboard_queue_size",
            "lr_decay_iters",
            "lr_decay_samples",
            "lr_wsd_decay_iters",
            "lr_wsd_decay_samples",
            "seq_length",
            "max_position_embeddings",
            "make_vocab_size_divisible_by",
            "recompute_num_layers",
            "distributed_timeout_minutes",
            "ddp_bucket_size",
            "hysteresis",
        ),
        COUNT,
    ),
    **dict.fromkeys(
        (
            "eval_iters",
            "lr_warmup_iters",
            "lr_warmup_samples",
            "lr_warmup_init",
            "lr",
            "min_lr",
            "decoupled_lr",
            "decoupled_min_lr",
            "weight_decay",
            "start_weight_decay",
            "end_weight_decay",
            "clip_grad",
            "num_workers",
            "longpo_skip_steps",
            "manual_gc_interval",
            "profile_step_start",
            "profile_step_end",
            "attention_dropout",
            "hidden_dropout",
        ),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        (
            "adam_eps",
            "init_method_std",
            "loss_scale",
            "initial_loss_scale",
            "min_loss_scale",
            "longpo_peak_tflops",
        ),
        POSITIVE,
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "sgd_momentum", "lr_warmup_fraction"), FRACTION),
    "loss_scale_window": COUNT,
    "seed": Range(below=2.0**32),  # which numpy's generator takes
    "timing_log_level": Range(below=3),
}
"""Ranges by the name of the parsed value; a value of None was not given."""

INERT = {
    "data_path": "--data-path (the pairs are --longpo-data)",
    "train_data_path": "--train-data-path (the pairs are --longpo-data)",
    "valid_data_path": "--valid-data-path (held-out pairs are --split)",
    "test_data_path": "--test-data-path (held-out pairs are --split)",
    "data_args_path": "--data-args-path (the pairs are --longpo-data)",
    "per_split_data_args_path": "--per-split-data-args-path (the pairs are --longpo-data)",
    "mock_data": "--mock-data (the pairs are --longpo-data)",
    "data_cache_path": "--data-cache-path (the dataset is mapped as it is)",
    "tokenizer_model": "--tokenizer-model (the dataset holds token ids)",
    "vocab_file": "--vocab-file (the dataset holds token ids)",
    "merge_file": "--merge-file (the dataset holds token ids)",
    "reset_position_ids": "--reset-position-ids (trees have positions of their own)",
    "reset_attention_mask": "--reset-attention-mask (trees have attention of their own)",
    "eod_mask_loss": "--eod-mask-loss (--longpo-nll-tokens says what the NLL counts)",
    "rl_use_sequence_packing": "--rl-use-sequence-packing (--longpo-tokens-per-microbatch packs pairs)",
}
"""Options that nothing reads in a run on pairs: name of the parsed value -> how to say it."""


def check_numbers(args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Hold every number to its range, and every one that the user gave to be finite.

    Args:
        defaults: of the parser, by name.

    Raises:
        UserError: naming the option.
    """
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value) and value != defaults.get(name):
            raise UserError(f"{option(name)} {value} is not a finite number; give one")
    for name, allowed in RANGES.items():
        value = getattr(args, name, None)
        if value is not None and value not in allowed:
            raise UserError(f"{option(name)} {value:g} must be {allowed}")


def check_schedule(args: argparse.Namespace) -> None:
    """Hold the options of the learning rate to each other, as megatron/core/optimizer_param_scheduler.py asserts later.

    Raises:
        UserError: a learning rate is missing, or the warm-up is not shorter than the decay.
    """
    if args.skip_train:
        return
    if args.lr is None:
        raise UserError("--lr is missing: the learning rate after warm-up; the released LongPO run has 5e-7")
    if args.min_lr > args.lr:
        raise UserError(f"--min-lr {args.min_lr:g} is above --lr {args.lr:g}; lower it")
    if args.lr_warmup_init > args.lr:
        raise UserError(f"--lr-warmup-init {args.lr_warmup_init:g} is above --lr {args.lr:g}; lower it")
    if args.lr_warmup_fraction is not None and (args.lr_warmup_iters or args.lr_warmup_samples):
        raise UserError("--lr-warmup-fraction and --lr-warmup-iters or -samples are given; remove one")
    for unit in ("iters", "samples"):
        warmup, decay = getattr(args, f"lr_warmup_{unit}"), getattr(args, f"lr_decay_{unit}")
        total = decay or getattr(args, f"train_{unit}")
        if warmup and total and warmup >= total:
            whole = f"--lr-decay-{unit}" if decay else f"--train-{unit}"
            raise UserError(f"--lr-warmup-{unit} {warmup} is not below {whole} {total}; lower it")


def check_inert(args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Refuse options that do nothing here.

    Raises:
        UserError: naming the option and what to use in its place.
    """
    for name, text in INERT.items():
        if getattr(args, name, None) not in (None, False, [], ""):
            raise UserError(f"{text} does nothing in a run on pairs; remove it")
    if args.tokenizer_type != defaults["tokenizer_type"]:
        raise UserError("--tokenizer-type does nothing in a run on pairs: the dataset holds token ids; remove it")
    if args.seq_length < defaults["seq_length"]:
        raise UserError(
            f"--seq-length {args.seq_length} is below {defaults['seq_length']}, the dataset's --max-length; leave it "
            "out, it follows from the dataset"
        )


def check_packages(args: argparse.Namespace) -> None:
    """Find the packages of the loggers that are asked for.

    Raises:
        UserError: one is missing, or W&B lacks a name.
    """
    for given, package, wanted in (
        (args.wandb_project, "wandb", "--wandb-project"),
        (args.tensorboard_dir, "tensorboard", "--tensorboard-dir"),
    ):
        if given and importlib.util.find_spec(package) is None:
            raise UserError(f"{wanted} needs the package {package}, which is not installed: pip install {package}")
    if args.wandb_project and not args.wandb_exp_name:
        raise UserError("--wandb-project needs --wandb-exp-name: the name of the run; add it")
    if args.wandb_project and not (args.wandb_save_dir or args.save):  # Megatron would join None to a path
        raise UserError("--wandb-project needs a folder to write to; add --save or --wandb-save-dir")


def check_outputs(args: argparse.Namespace) -> None:
    """Hold every folder that will be written to be one that can be.

    Raises:
        UserError: it, or what it would lie in, is a file or cannot be written.
    """
    if args.save_interval and not args.save:
        raise UserError("--save-interval is given without --save: nothing would be saved; add --save DIR or remove it")
    if args.save and not args.save_interval and not args.skip_train:
        raise UserError("--save is given without --save-interval: after how many steps to save; add it")
    folders = {name: getattr(args, name) for name in ("save", "tensorboard_dir", "wandb_save_dir")}
    for name, folder in folders.items():
        if folder:
            check_folder(Path(folder), option(name))
    if args.longpo_metrics:
        check_folder(Path(args.longpo_metrics).resolve().parent, "--longpo-metrics")
        check_metrics_file(Path(args.longpo_metrics))


def check_folder(folder: Path, what: str) -> None:
    """Hold a folder to be there and writable, or to be one that can be made."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{what} {folder}: {there} is not a folder; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{what} {folder}: {there} cannot be written; choose another, or change its permissions")


def option(name: str) -> str:
    """The option of a parsed value."""
    return "--" + name.replace("_", "-")
