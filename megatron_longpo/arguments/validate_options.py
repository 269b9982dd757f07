"""What the training program refuses, each with one line that says what to change; nothing is built before."""

import argparse
import importlib.util
from pathlib import Path

from megatron_longpo import platform
from megatron_longpo.data.indexed import Manifest
from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import check_divides, megatron_options
from megatron_longpo.hf.folder import TRACKER_FILE, checkpoint_folder
from megatron_longpo.hf.rope import ROPE_EXAMPLE
from megatron_longpo.hf.sidecar import read_hf_config
from megatron_longpo.hf.torch_dist import CheckpointReader
from megatron_longpo.model.build import check_transformer_impl
from megatron_longpo.model.exchange import check_exchange
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.optimizer import STATE

CHANGEABLE = ("rotary_base", "max_position_embeddings", "attention_dropout", "hidden_dropout", "init_method_std")
"""What the checkpoint suggests and the user may set otherwise; the rest of its shape is fixed."""

MEGATRONS_ROPE = {
    "position_embedding_type": "rope",
    "rope_type": None,
    "use_rope_scaling": False,
    "rope_scaling_factor": 8.0,
    "rotary_seq_len_interpolation_factor": None,
    "rotary_scaling_factor": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
    "yarn_original_max_position_embeddings": None,
    "yarn_beta_fast": None,
    "yarn_beta_slow": None,
    "yarn_correction_range_round_to_int": None,
}
"""Megatron's options of RoPE scaling and their defaults. They cannot say what a config.json can: llama3's bounds and
yarn's factor are missing (megatron/training/arguments.py 0.19); one option of ours can."""


def refuse_unsupported(args: argparse.Namespace) -> None:
    """Options of Megatron that this release does not combine with pairs."""
    refused = {
        "--micro-batch-size (pairs share one by --longpo-tokens-per-microbatch)": args.micro_batch_size != 1,
        "--eval-micro-batch-size": args.eval_micro_batch_size != 1,
        "--rampup-batch-size": args.rampup_batch_size is not None,
        "--step-batch-size-schedule": args.step_batch_size_schedule is not None,
        "--num-experts": args.num_experts is not None,
        "--fp8-format without --transformer-impl transformer_engine": (
            args.fp8 is not None and args.transformer_impl != "transformer_engine"
        ),
        "--no-fp8-wgrad (Transformer Engine ignores it)": not args.fp8_wgrad,
        "--mtp-num-layers": args.mtp_num_layers is not None,
        "--rotary-interleaved": args.rotary_interleaved,
        "--dataloader-type (external is)": args.dataloader_type != "external",
        "--use-torch-fsdp2 or --use-megatron-fsdp": args.use_torch_fsdp2 or args.use_megatron_fsdp,
        "--hybrid-context-parallel": args.hybrid_context_parallel,
        "--attention-dropout and --hidden-dropout above 0": args.attention_dropout > 0 or args.hidden_dropout > 0,
        "--tp-comm-overlap": args.tp_comm_overlap,
        "--cuda-graph-impl (the layout of a pair changes from step to step)": args.cuda_graph_impl != "none",
        "--full-validation": args.full_validation,
        "--no-rope-freq": args.no_rope_freq is not None,
        f"--longpo-skip-steps with --rerun-mode {args.rerun_mode}": (
            args.longpo_skip_steps > 0 and args.rerun_mode != "disabled"
        ),
    }
    for option, is_set in refused.items():
        if is_set:
            raise UserError(f"{option} is not supported by this version of megatron-longpo; remove it")
    for name, default in MEGATRONS_ROPE.items():
        if getattr(args, name) != default:
            raise UserError(
                f"--{name.replace('_', '-')} is not read; give RoPE scaling in Hugging Face's form, for instance "
                f"--longpo-rope-scaling {ROPE_EXAMPLE}"
            )
    if not args.calculate_per_token_loss:
        raise UserError("the mean over pairs needs --calculate-per-token-loss, which is the default; do not unset it")
    check_transformer_impl(args.transformer_impl)
    if args.longpo_recompute and args.transformer_impl != "local":
        raise UserError(
            f"--longpo-recompute {args.longpo_recompute} needs attention that gives its log-sum-exp, which Transformer "
            f"Engine does not; choose --transformer-impl local, or Megatron's own --recompute-granularity"
        )
    if args.longpo_recompute and args.recompute_granularity != "full":
        raise UserError(
            f"--longpo-recompute {args.longpo_recompute} is full recomputation that keeps attention; remove "
            f"--recompute-granularity {args.recompute_granularity}"
        )


def check_optimizer(args: argparse.Namespace) -> None:
    """RMSprop stands with options that it has; what Megatron cannot do with an optimizer is refused."""
    is_rmsprop, alpha = args.longpo_optimizer == "rmsprop", args.longpo_rmsprop_alpha
    if alpha is not None and not is_rmsprop:
        raise UserError(f"--longpo-rmsprop-alpha {alpha} is for --longpo-optimizer rmsprop; add that or remove this")
    if alpha is not None and not 0 <= alpha < 1:
        raise UserError(f"--longpo-rmsprop-alpha {alpha} must be at least 0 and below 1")
    refused = {
        f"--optimizer {args.optimizer}": args.optimizer != "adam",
        f"--adam-beta1 {args.adam_beta1}": args.adam_beta1 != 0.9,
        f"--adam-beta2 {args.adam_beta2} (--longpo-rmsprop-alpha is)": args.adam_beta2 != 0.999,
        "--optimizer-cuda-graph": args.optimizer_cuda_graph,
        "--use-precision-aware-optimizer without --optimizer-cpu-offload": (
            args.use_precision_aware_optimizer and not args.optimizer_cpu_offload
        ),
    }
    for option, is_set in refused.items():
        if is_rmsprop and is_set:
            raise UserError(f"{option} is not an option of --longpo-optimizer rmsprop; remove it")
    if args.use_distributed_optimizer and not (is_rmsprop or platform.is_cpu() or _has_fused_adam()):
        raise UserError(
            "--use-distributed-optimizer needs Transformer Engine or Apex: Megatron cannot resume torch's Adam; add "
            "one, remove the option or take --longpo-optimizer rmsprop"
        )
    if args.optimizer_cpu_offload and platform.is_cpu():
        raise UserError("--optimizer-cpu-offload: there is no CUDA, so the optimizer is on the CPU as it is; remove it")
    if args.optimizer_cpu_offload and not (args.bf16 or args.fp16):
        raise UserError(
            "--optimizer-cpu-offload needs --bf16 or --fp16: Megatron's offloading optimizer does not take fp32 weights"
        )


def check_resumed_optimizer(args: argparse.Namespace) -> None:
    """The checkpoint to go on from holds the state of the optimizer that goes on, or none."""
    if args.no_load_optim or args.finetune or not (Path(args.load) / TRACKER_FILE).is_file():
        return
    names = CheckpointReader(checkpoint_folder(Path(args.load), args.ckpt_step)).keys()
    stored = {name.split(".")[2] for name in names if name.startswith("optimizer.state.")}
    if stored and (STATE in stored) != (args.longpo_optimizer == "rmsprop"):
        was, change = ("rmsprop", "add") if STATE in stored else ("Megatron's own", "remove")
        raise UserError(
            f"the optimizer of {args.load} is {was}: {change} --longpo-optimizer rmsprop, or start its state anew with "
            "--no-load-optim"
        )


def _has_fused_adam() -> bool:
    return any(importlib.util.find_spec(name) for name in ("transformer_engine", "apex"))


def check_shape(args: argparse.Namespace, source: Path) -> None:
    """The options do not contradict the checkpoint's shape, and the parallel axes can share it."""
    for name, value in megatron_options(read_hf_config(source)).items():
        if name not in CHANGEABLE and getattr(args, name) != value:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is {getattr(args, name)} but the checkpoint {source} has {value}; remove it")
    check_divides(vars(args), args.tensor_model_parallel_size, args.pipeline_model_parallel_size, source)
    check_exchange(ParallelSizes.of(args), vars(args))


def check_lengths(args: argparse.Namespace, manifest: Manifest) -> None:
    """Every pair fits the positions that the model is trained for."""
    if args.max_position_embeddings < manifest.max_length:
        raise UserError(
            f"--max-position-embeddings {args.max_position_embeddings} is below the dataset's --max-length "
            f"{manifest.max_length}; raise it or build the dataset with a smaller one"
        )
