"""Megatron's options plus ours, checked before anything is built.

Megatron's options keep their names and meaning. The model's shape is not repeated on the command line: it is read from
the checkpoint's own config.json and becomes the parser's defaults.
"""

import argparse
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_longpo import options_help, platform
from megatron_longpo.batches import plan_batches
from megatron_longpo.console import say
from megatron_longpo.data.dataset import PairOrder, split_pairs
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.packing import BatchPlan
from megatron_longpo.data.trees import TreeLengths, tree_lengths
from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.folder import RELEASE, TRACKER_FILE
from megatron_longpo.hf.rope import checked, rope_parameters, scaling_option
from megatron_longpo.hf.sidecar import check_tokenizer, read_hf_config, read_identity
from megatron_longpo.longpo_options import add_longpo_options
from megatron_longpo.model.build import ModelShape
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.objective.objectives import OBJECTIVES, OPTIONS, Objective
from megatron_longpo.objective.preferences import Coefficients
from megatron_longpo.option_ranges import check_inert, check_numbers, check_outputs, check_packages, check_schedule
from megatron_longpo.reference.options import OnlineSettings, ReferenceOptions, References, open_reference
from megatron_longpo.step import StepSettings
from megatron_longpo.step_metrics import length_buckets
from megatron_longpo.validate_options import (
    check_lengths,
    check_optimizer,
    check_resumed_optimizer,
    check_shape,
    refuse_unsupported,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LongPOSettings:
    """Our own options, validated."""

    reader: PairReader
    reference: References
    trees: TreeLengths
    """What the objective reads of the policy, for every pair."""
    order: PairOrder
    plan: BatchPlan
    plan_text: str
    """What a step is."""
    held_out: range
    """Pairs of the validation part."""
    shape: ModelShape
    step: StepSettings
    rmsprop_alpha: float | None
    """None: Megatron's own optimizer."""
    saves: Path | None
    """Folder of the checkpoints that training saves; None if it saves none, or takes no step."""
    metrics: Path | None
    """File of --longpo-metrics."""
    source: Path
    """Folder of the checkpoint that gave the model's shape."""


def parse() -> tuple[argparse.Namespace, LongPOSettings]:
    """Parse and check the command line, and set Megatron's global arguments.

    Raises:
        UserError: an option is missing, wrong, not supported, or contradicts another, the dataset or the checkpoint.
    """
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.global_vars import set_global_variables

    defaults: dict[str, Any] = {}
    args = parse_args(partial(_add_options, defaults=defaults))
    # Ours come first: they say what to change, where an assertion of Megatron may stay silent.
    check_inert(args, defaults)
    refuse_unsupported(args)
    check_schedule(args)
    check_packages(args)
    check_outputs(args)
    check_optimizer(args)
    source = _source(args)
    check_shape(args, source)
    rope = _policy_rope(args, source)
    reader = PairReader(Path(args.longpo_data))
    check_lengths(args, reader.manifest)
    check_tokenizer("the dataset", reader.manifest, read_identity(source), source)
    objective = OBJECTIVES[args.longpo_objective]
    coefficients = objective.coefficients({name: getattr(args, f"longpo_{name}") for name in OPTIONS})
    reference = open_reference(ReferenceOptions.of(args), objective, reader.manifest, source, ParallelSizes.of(args))
    if isinstance(reference, OnlineSettings):
        identity = read_identity(reference.checkpoint)
        check_tokenizer("the dataset", reader.manifest, identity, reference.checkpoint)
    _choose_load(args, source)
    trees = tree_lengths(reader, objective.reads)
    train, held_out, _ = split_pairs(len(reader), args.split)
    order = PairOrder(train, args.seed)
    plan, args.micro_batch_size, plan_text = _plan(args, order, trees)
    validate_args(args)
    check_resumed_optimizer(args)
    set_global_variables(args)
    return args, LongPOSettings(
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
    known, _ = parser.parse_known_args()
    check_numbers(known, {name: parser.get_default(name) for name in vars(known)})  # they are computed with next
    parser.set_defaults(**_defaults(known))
    defaults |= {name: parser.get_default(name) for name in vars(known)}
    return parser


def _defaults(known: argparse.Namespace) -> dict[str, Any]:
    if not known.longpo_data:
        raise UserError("--longpo-data PREFIX is missing: the dataset that `megatron-longpo build` wrote")
    manifest = PairReader(Path(known.longpo_data)).manifest
    options = megatron_options(read_hf_config(_source(known)))
    # Megatron wants a length that context parallelism divides; pairs are padded to their own (model/layout.py).
    chunks = 2 * known.context_parallel_size
    seq_length = manifest.max_length + -manifest.max_length % chunks
    positions = (int(options["max_position_embeddings"]), seq_length, known.seq_length or 0)
    defaults: dict[str, Any] = {
        **options,
        "max_position_embeddings": max(positions),
        "seq_length": seq_length,
        "micro_batch_size": 1,
        "eval_micro_batch_size": 1,
        "eval_interval": 100,  # Megatron computes with it even where nothing is held out
        "split": "100,0,0",
        "dataloader_type": "external",
        "transformer_impl": "local",
        "tokenizer_type": "NullTokenizer",
        "ckpt_format": "torch_dist",
        # Megatron's option is a switch for the unit of the mean; scaling.py makes that unit the pair.
        "calculate_per_token_loss": True,
        "gradient_accumulation_fusion": False,  # needs Apex or Transformer Engine, like the next
        "apply_rope_fusion": False,
        # Every checkpoint can be resumed on another (tp, pp, dp) (megatron/core/optimizer/distrib_optimizer.py).
        "dist_ckpt_optim_fully_reshardable": True,
    }
    num_train, num_valid, num_test = (len(part) for part in split_pairs(manifest.num_pairs, known.split or "100,0,0"))
    if num_test:
        raise UserError(
            f"--split {known.split}: only a validation part can be held out; give two weights, such as 90,10"
        )
    if known.longpo_recompute:
        defaults |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if not known.global_batch_size:
        raise UserError("--global-batch-size is missing: pairs per optimizer step")
    if known.train_iters is None and known.train_samples is None:
        defaults["train_iters"] = _one_epoch(known.global_batch_size, num_train)
    if known.longpo_optimizer == "rmsprop":
        defaults |= {"longpo_rmsprop_alpha": 0.99, "weight_decay": 0.0}  # torch's; Megatron's 0.01 is meant for AdamW
    defaults |= _whole_evaluation(known, num_valid)
    if platform.is_cpu():
        defaults |= {
            "distributed_backend": "gloo",
            "use_cpu_initialization": True,
            "num_workers": 0,
            "masked_softmax_fusion": False,
            "bias_swiglu_fusion": False,
        }
    return defaults


def _one_epoch(batch: int, num_train: int) -> int:
    if batch > num_train:
        raise UserError(
            f"--global-batch-size {batch} is more than the {num_train} training pairs of the dataset; lower it"
        )
    return num_train // batch


def _whole_evaluation(known: argparse.Namespace, num_valid: int) -> dict[str, int]:
    """Evaluate every held-out pair, one micro-batch a data-parallel rank at a time, unless the user says otherwise."""
    if num_valid == 0:
        return {"eval_iters": 0}
    batch = known.eval_global_batch_size or _num_data_parallel_ranks(known) * _microbatch_multiple(known)
    return {"eval_global_batch_size": batch, "eval_iters": -(-num_valid // batch)}


def _plan(args: argparse.Namespace, order: PairOrder, trees: TreeLengths) -> tuple[BatchPlan, int, str]:
    return plan_batches(
        order,
        trees,
        vars(args),
        global_batch_size=args.global_batch_size,
        num_steps=args.train_iters or args.train_samples // args.global_batch_size,
        max_tokens=args.longpo_tokens_per_microbatch,
        num_ranks=_num_data_parallel_ranks(args),
        multiple=_microbatch_multiple(args),
    )


def _num_data_parallel_ranks(args: argparse.Namespace) -> int:
    """Count them by the ranks that were started, before Megatron's groups exist."""
    return max(1, int(os.environ.get("WORLD_SIZE", "1")) // ParallelSizes.of(args).together)


def _microbatch_multiple(args: argparse.Namespace) -> int:
    """An interleaved pipeline runs micro-batches in rounds of one a stage (schedules.py,
    ``forward_backward_pipelining_with_interleaving``)."""
    virtual = args.num_layers_per_virtual_pipeline_stage or args.num_virtual_stages_per_pipeline_rank
    return args.pipeline_model_parallel_size if virtual else 1


def _source(args: argparse.Namespace) -> Path:
    """The folder that holds the model's description: the imported checkpoint, or a run being resumed."""
    for folder in (args.pretrained_checkpoint, args.load):
        if folder and (Path(folder) / "hf" / "config.json").is_file():
            return Path(folder)
    given = args.pretrained_checkpoint or args.load
    if not given:
        raise UserError("--load DIR is missing: the checkpoint that `megatron-longpo import-hf` wrote")
    raise UserError(f"--load {given}: no hf/config.json there; give a folder that `megatron-longpo import-hf` wrote")


def _choose_load(args: argparse.Namespace, source: Path) -> None:
    """Resume from --save when it already holds a checkpoint, so that a job requeued with its own command goes on."""
    if not args.save or not (Path(args.save) / TRACKER_FILE).is_file() or args.pretrained_checkpoint:
        return
    if (
        Path(args.load).resolve() != Path(args.save).resolve()
        and (source / TRACKER_FILE).read_text().strip() == RELEASE
    ):
        if args.rank == 0:
            say(f"resuming from --save {args.save}, which holds a checkpoint of this run")
        args.load = args.save


def _step_settings(
    args: argparse.Namespace, objective: Objective, coefficients: Coefficients, reader: PairReader
) -> StepSettings:
    lengths_C3, _, is_long_C = reader.all_lengths()
    return StepSettings(
        max_turns=reader.max_turns,
        length_buckets=length_buckets(lengths_C3[is_long_C, 0].tolist()),
        vocab_size=args.vocab_size,
        sequence_multiple=_sequence_multiple(args),
        keep_attention=args.longpo_recompute == "keep-attention",
        objective=objective,
        coefficients=coefficients,
        nll_tokens=args.longpo_nll_tokens,
        check_finite=args.check_for_nan_in_loss_and_grad,
    )


def _sequence_multiple(args: argparse.Namespace) -> int:
    """Sequence parallelism cuts the tokens of a rank up, and FP8 products take them by sixteens."""
    parts = args.tensor_model_parallel_size if args.sequence_parallel else 1
    return parts * (16 if args.fp8 else 1)


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
