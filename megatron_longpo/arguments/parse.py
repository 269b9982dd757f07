"""Megatron's options plus ours, checked before anything is built.

Megatron's options keep their names and meaning. This folder and train.py, which drives Megatron, are the only places of
training that see parsed options; what lies deeper takes plain values.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_longpo import platform
from megatron_longpo.arguments import options_help
from megatron_longpo.arguments.defaults import (
    defaults_of,
    microbatch_multiple,
    num_data_parallel_ranks,
    source_folder,
)
from megatron_longpo.arguments.longpo_options import add_longpo_options
from megatron_longpo.arguments.option_ranges import (
    check_inert,
    check_numbers,
    check_outputs,
    check_packages,
    check_schedule,
)
from megatron_longpo.arguments.resume import check_course, choose_checkpoint
from megatron_longpo.arguments.settings import LongPOSettings
from megatron_longpo.arguments.validate_options import (
    check_lengths,
    check_optimizer,
    check_resumed_optimizer,
    check_shape,
    refuse_unsupported,
)
from megatron_longpo.batches import plan_batches
from megatron_longpo.data.dataset import PairOrder, split_pairs
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.packing import BatchPlan
from megatron_longpo.data.trees import TreeLengths, tree_lengths
from megatron_longpo.hf.rope import checked, rope_parameters, scaling_option
from megatron_longpo.hf.sidecar import check_tokenizer, read_hf_config, read_identity
from megatron_longpo.model import kernels
from megatron_longpo.model.build import ModelShape
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.objective.objectives import OBJECTIVES, OPTIONS, Objective
from megatron_longpo.objective.preferences import Coefficients
from megatron_longpo.reference.options import OnlineSettings, ReferenceOptions, open_reference
from megatron_longpo.step_metrics import length_buckets
from megatron_longpo.step_settings import StepSettings


def parse() -> tuple[argparse.Namespace, LongPOSettings]:
    """Parse and check the command line, and set Megatron's global arguments.

    Raises:
        UserError: an option is missing, wrong, not supported, or contradicts another, the dataset or the checkpoint.
    """
    from megatron.training.global_vars import set_global_variables

    args, made = check()
    set_global_variables(args)  # which says how large the padded vocabulary is
    settings = made()
    check_course(args, settings)
    return args, settings


def training_parser() -> argparse.ArgumentParser:
    """All options of training, before dataset and checkpoint give some of them other defaults."""
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    options_help.prepare(parser, add_longpo_options(parser))
    return parser


def check() -> tuple[argparse.Namespace, Callable[[], LongPOSettings]]:
    """`parse` without a trace: nothing is set, opened for writing or sent. The settings can be had after `parse` only.

    Raises:
        UserError: as `parse`.
    """
    from megatron.training.arguments import parse_args, validate_args

    defaults: dict[str, Any] = {}
    args = parse_args(partial(_add_options, defaults=defaults))
    # Ours come first: they say what to change, where an assertion of Megatron may stay silent.
    check_inert(args, defaults)
    refuse_unsupported(args)
    check_schedule(args)
    check_packages(args)
    check_outputs(args)
    check_optimizer(args)
    source = source_folder(args)
    check_shape(args, source)
    rope = _policy_rope(args, source)
    reader = PairReader(Path(args.longpo_data))
    check_lengths(args, reader.manifest)
    check_tokenizer("the dataset", reader.manifest, read_identity(source), source)
    objective = OBJECTIVES[args.longpo_objective]
    coefficients = objective.coefficients({name: getattr(args, f"longpo_{name}") for name in OPTIONS})
    args.longpo_nll_tokens = args.longpo_nll_tokens or ("all" if coefficients.nll_coef else "response")
    reference = open_reference(ReferenceOptions.of(args), objective, reader.manifest, source, ParallelSizes.of(args))
    if isinstance(reference, OnlineSettings):
        identity = read_identity(reference.checkpoint)
        check_tokenizer("the dataset", reader.manifest, identity, reference.checkpoint)
    choose_checkpoint(args, source)
    trees = tree_lengths(reader, objective.reads)
    train, held_out, _ = split_pairs(len(reader), args.split)
    order = PairOrder(train, args.seed)
    args.longpo_trunk_multiple = args.longpo_trunk_multiple or _trunk_multiple(args, trees)
    plan, args.micro_batch_size, plan_text = _plan(args, order, trees.padded(args.longpo_trunk_multiple))
    validate_args(args)
    check_resumed_optimizer(args)
    return args, lambda: LongPOSettings(
        reader=reader,
        reference=reference,
        trees=trees,
        order=order,
        plan=plan,
        plan_text=plan_text,
        held_out=held_out,
        shape=_model_shape(args, rope),
        step=_step_settings(args, objective, coefficients, reader),
        rmsprop_alpha=args.longpo_rmsprop_alpha,
        saves=Path(args.save) if args.save and not args.skip_train else None,
        metrics=Path(args.longpo_metrics) if args.longpo_metrics else None,
        source=source,
    )


def _add_options(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> argparse.ArgumentParser:
    """Add our group, and the defaults that follow from dataset, checkpoint and platform; note all in ``defaults``."""
    options_help.prepare(parser, add_longpo_options(parser))
    parser.set_defaults(transformer_impl="local")  # other defaults follow from it
    known, _ = parser.parse_known_args()
    check_numbers(known, {name: parser.get_default(name) for name in vars(known)})  # they are computed with next
    parser.set_defaults(**defaults_of(known))
    defaults |= {name: parser.get_default(name) for name in vars(known)}
    return parser


def _trunk_multiple(args: argparse.Namespace, trees: TreeLengths) -> int:
    """Choose by what attends trunks here, which so is the first thing that a run does on its device."""
    args.params_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32  # as Megatron
    kernels.use_only(args.longpo_attention_kernel)
    if not platform.is_cpu():
        torch.cuda.set_device(args.local_rank)
    return kernels.trunk_multiple(args, trees.longest_trunk)


def _plan(args: argparse.Namespace, order: PairOrder, trees: TreeLengths) -> tuple[BatchPlan, int, str]:
    return plan_batches(
        order,
        trees,
        vars(args),
        global_batch_size=args.global_batch_size,
        num_steps=args.train_iters or args.train_samples // args.global_batch_size,
        max_tokens=args.longpo_tokens_per_microbatch,
        num_ranks=num_data_parallel_ranks(args),
        multiple=microbatch_multiple(args),
    )


def _step_settings(
    args: argparse.Namespace, objective: Objective, coefficients: Coefficients, reader: PairReader
) -> StepSettings:
    lengths_C3, _, is_long_C = reader.all_lengths()
    return StepSettings(
        max_turns=reader.max_turns,
        length_buckets=length_buckets(lengths_C3[is_long_C, 0].tolist()),
        vocab_size=args.vocab_size,
        sequence_multiple=_sequence_multiple(args),
        trunk_multiple=args.longpo_trunk_multiple,
        keep_attention=args.longpo_recompute == "keep-attention",
        objective=objective,
        coefficients=coefficients,
        nll_tokens=args.longpo_nll_tokens,
    )


def _sequence_multiple(args: argparse.Namespace) -> int:
    """Sequence parallelism cuts the tokens of a rank up; FP8 products take them by sixteens, MXFP8's blocks by 32."""
    parts = args.tensor_model_parallel_size if args.sequence_parallel else 1
    return parts * ((32 if args.fp8_recipe == "mxfp8" else 16) if args.fp8 else 1)


def _policy_rope(args: argparse.Namespace, source: Path) -> RopeParameters:
    """What the policy is trained with: the checkpoint's own, but for the base and the scaling that options give."""
    if args.longpo_rope_scaling is not None:
        return scaling_option(args.longpo_rope_scaling, "--longpo-rope-scaling", args.rotary_base)
    own = rope_parameters(read_hf_config(source)).as_dict()
    return checked(own | {"rope_theta": args.rotary_base}, "--rotary-base")


def _model_shape(args: argparse.Namespace, rope: RopeParameters) -> ModelShape:
    return ModelShape(
        vocab_size=args.vocab_size,
        padded_vocab_size=args.padded_vocab_size,
        max_position_embeddings=args.max_position_embeddings,
        rope=rope,
        tied_embeddings=not args.untie_embeddings_and_output_weights,
    )
