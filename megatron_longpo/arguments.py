"""Megatron's options plus ours, checked before anything is built.

Megatron's options keep their names and meaning. The model's shape is not repeated on the command line: it is read from
the checkpoint's own config.json and becomes the parser's defaults.
"""

import argparse
import importlib.util
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longpo import platform
from megatron_longpo.data.dataset import split_pairs
from megatron_longpo.data.indexed import Manifest, PairReader
from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.sidecar import Identity, read_hf_config, read_identity
from megatron_longpo.model.build import ModelShape
from megatron_longpo.reference.cache import ReferenceCache, default_path
from megatron_longpo.step import StepSettings

TRACKER = "latest_checkpointed_iteration.txt"

CHANGEABLE = ("rotary_base", "max_position_embeddings", "attention_dropout", "hidden_dropout", "init_method_std")
"""What the checkpoint suggests and the user may set otherwise; the rest of its shape is fixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongPOSettings:
    """Our own options, validated."""

    reader: PairReader
    reference: ReferenceCache
    shape: ModelShape
    step: StepSettings
    metrics: Path | None
    source: Path
    """Folder of the checkpoint that gave the model's shape."""


def parse() -> tuple[argparse.Namespace, LongPOSettings]:
    """Parse and check the command line, and set Megatron's global arguments.

    Raises:
        UserError: an option is missing, wrong, not supported, or contradicts another, the dataset or the checkpoint.
    """
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.global_vars import set_global_variables

    args = parse_args(_add_options)
    # Ours come first: they say what to change, where an assertion of Megatron may stay silent.
    _refuse_unsupported(args)
    source = _source(args)
    _check_shape(args, source)
    reader = PairReader(Path(args.longpo_data))
    _check_lengths(args, reader.manifest)
    _check_tokenizer(reader.manifest, read_identity(source), source)
    reference = _reference(args, reader.manifest, source)
    _choose_load(args, source)
    try:
        validate_args(args)
    except AssertionError as error:
        asserted = traceback.extract_tb(error.__traceback__)[-1].line
        raise UserError(f"Megatron refuses the options: {error or asserted}") from error
    set_global_variables(args)
    return args, LongPOSettings(
        reader=reader,
        reference=reference,
        shape=_model_shape(args),
        step=_step_settings(args),
        metrics=Path(args.longpo_metrics) if args.longpo_metrics else None,
        source=source,
    )


def _add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add our group and the defaults that follow from the dataset, the checkpoint and the platform."""
    group = parser.add_argument_group("LongPO")
    group.add_argument("--longpo-data", metavar="PREFIX", help="dataset that `megatron-longpo build` wrote")
    group.add_argument("--longpo-reference", metavar="FILE", help="reference log-probs (default: PREFIX.reference.npz)")
    group.add_argument(
        "--longpo-reference-checkpoint",
        metavar="DIR",
        help="the checkpoint that scored them, where it is not the one training starts from",
    )
    group.add_argument("--longpo-beta", type=float, default=0.01, help="inverse temperature of the margin")
    group.add_argument("--longpo-pref-coef", type=float, default=0.01, help="weight of the preference term")
    group.add_argument("--longpo-nll-coef", type=float, default=1.0, help="weight of the NLL term")
    group.add_argument(
        "--longpo-nll-tokens",
        choices=("all", "response"),
        default="all",
        help="NLL over every predicted token of trunk + chosen branch, or over chosen response tokens only",
    )
    group.add_argument("--longpo-metrics", metavar="FILE", help="append one JSON line a step")
    known, _ = parser.parse_known_args()
    parser.set_defaults(**_defaults(known))
    return parser


def _defaults(known: argparse.Namespace) -> dict[str, Any]:
    if not known.longpo_data:
        raise UserError("--longpo-data PREFIX is missing: the dataset that `megatron-longpo build` wrote")
    manifest = PairReader(Path(known.longpo_data)).manifest
    options = megatron_options(read_hf_config(_source(known)))
    options["max_position_embeddings"] = max(int(options["max_position_embeddings"]), manifest.max_length)
    defaults: dict[str, Any] = {
        **options,
        "seq_length": manifest.max_length,
        "micro_batch_size": 1,
        "eval_interval": 100,  # Megatron computes with it even where nothing is held out
        "split": "100,0,0",
        "dataloader_type": "single",
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
    if known.train_iters is None and known.train_samples is None:
        defaults["train_iters"] = _one_epoch(known, num_train)
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


def _one_epoch(known: argparse.Namespace, num_train: int) -> int:
    if not (batch := known.global_batch_size):
        raise UserError("--global-batch-size is missing: pairs per optimizer step")
    if batch > num_train:
        raise UserError(
            f"--global-batch-size {batch} is more than the {num_train} training pairs of the dataset; lower it"
        )
    return num_train // batch


def _whole_evaluation(known: argparse.Namespace, num_valid: int) -> dict[str, int]:
    """Evaluate every held-out pair, one micro-batch a data-parallel rank at a time, unless the user says otherwise."""
    if num_valid == 0:
        return {"eval_iters": 0}
    model_parallel = known.tensor_model_parallel_size * known.pipeline_model_parallel_size
    data_parallel = max(1, int(os.environ.get("WORLD_SIZE", "1")) // model_parallel)
    batch = known.eval_global_batch_size or data_parallel
    return {"eval_global_batch_size": batch, "eval_iters": -(-num_valid // batch)}


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
    if not args.save or not (Path(args.save) / TRACKER).is_file() or args.pretrained_checkpoint:
        return
    if Path(args.load).resolve() != Path(args.save).resolve() and (source / TRACKER).read_text().strip() == "release":
        if args.rank == 0:
            print(f"resuming from --save {args.save}, which holds a checkpoint of this run", flush=True)
        args.load = args.save


def _refuse_unsupported(args: argparse.Namespace) -> None:
    """Options of Megatron that this release does not combine with pairs."""
    refused = {
        "--context-parallel-size": args.context_parallel_size > 1,
        "--micro-batch-size (1 pair per micro-batch)": args.micro_batch_size != 1,
        "--num-layers-per-virtual-pipeline-stage": args.num_layers_per_virtual_pipeline_stage is not None,
        "--num-virtual-stages-per-pipeline-rank": args.num_virtual_stages_per_pipeline_rank is not None,
        "--num-experts": args.num_experts is not None,
        "--transformer-impl (local is)": args.transformer_impl != "local",
        "--fp8-format": args.fp8 is not None,
        "--mtp-num-layers": args.mtp_num_layers is not None,
        "--position-embedding-type (rope is)": args.position_embedding_type != "rope",
        "--rotary-interleaved": args.rotary_interleaved,
        "--dataloader-type (single is)": args.dataloader_type != "single",
        "--use-torch-fsdp2 or --use-megatron-fsdp": args.use_torch_fsdp2 or args.use_megatron_fsdp,
        "--attention-dropout and --hidden-dropout above 0": args.attention_dropout > 0 or args.hidden_dropout > 0,
        "--full-validation": args.full_validation,
        "--use-distributed-optimizer without Transformer Engine or Apex (Megatron cannot resume torch's Adam)": (
            args.use_distributed_optimizer and not platform.is_cpu() and not _has_fused_adam()
        ),
    }
    for option, is_set in refused.items():
        if is_set:
            raise UserError(f"{option} is not supported by this version of megatron-longpo; remove it")
    if not args.calculate_per_token_loss:
        raise UserError("the mean over pairs needs --calculate-per-token-loss, which is the default; do not unset it")
    if args.longpo_beta <= 0 or args.longpo_pref_coef < 0 or args.longpo_nll_coef < 0:
        raise UserError("--longpo-beta must be above 0, --longpo-pref-coef and --longpo-nll-coef at least 0")
    if args.longpo_pref_coef == 0 and args.longpo_nll_coef == 0:
        raise UserError("--longpo-pref-coef and --longpo-nll-coef are both 0: there is nothing to train")


def _has_fused_adam() -> bool:
    return any(importlib.util.find_spec(name) for name in ("transformer_engine", "apex"))


def _check_shape(args: argparse.Namespace, source: Path) -> None:
    for name, value in megatron_options(read_hf_config(source)).items():
        if name not in CHANGEABLE and getattr(args, name) != value:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is {getattr(args, name)} but the checkpoint {source} has {value}; remove it")
    tp, pp = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    for name, size in (
        ("num_attention_heads", tp),
        ("num_query_groups", tp),
        ("ffn_hidden_size", tp),
        ("num_layers", pp),
    ):
        if getattr(args, name) % size:
            axis = "tensor" if size is tp and name != "num_layers" else "pipeline"
            raise UserError(
                f"{name} = {getattr(args, name)} of {source} is not divisible by --{axis}-model-parallel-size {size}; "
                f"choose a divisor"
            )


def _check_lengths(args: argparse.Namespace, manifest: Manifest) -> None:
    if args.max_position_embeddings < manifest.max_length:
        raise UserError(
            f"--max-position-embeddings {args.max_position_embeddings} is below the dataset's --max-length "
            f"{manifest.max_length}; raise it or build the dataset with a smaller one"
        )


def _check_tokenizer(manifest: Manifest, identity: Identity, source: Path) -> None:
    if manifest.tokenizer_fingerprint != identity.tokenizer_fingerprint:
        raise UserError(
            f"the dataset was built with another tokenizer or chat template (fingerprint "
            f"{manifest.tokenizer_fingerprint[:12]}) than that of the checkpoint {source} "
            f"({identity.tokenizer_fingerprint[:12]}); build it again with --tokenizer {source}/hf"
        )


def _reference(args: argparse.Namespace, manifest: Manifest, source: Path) -> ReferenceCache:
    checkpoint = Path(args.longpo_reference_checkpoint or source)
    path = Path(args.longpo_reference) if args.longpo_reference else default_path(Path(args.longpo_data))
    cache = ReferenceCache.open(path)
    cache.check(
        dataset_fingerprint=manifest.fingerprint,
        weights_sha256=read_identity(checkpoint).weights_sha256,
        rotary_base=read_identity(checkpoint).rotary_base,
    )
    return cache


def _step_settings(args: argparse.Namespace) -> StepSettings:
    return StepSettings(
        vocab_size=args.vocab_size,
        sequence_multiple=args.tensor_model_parallel_size if args.sequence_parallel else 1,
        beta=args.longpo_beta,
        pref_coef=args.longpo_pref_coef,
        nll_coef=args.longpo_nll_coef,
        nll_over_all=args.longpo_nll_tokens == "all",
        check_finite=args.check_for_nan_in_loss_and_grad,
    )


def install_writer(wrap: Callable[[Any | None], Any]) -> None:
    """Put ``wrap(TensorBoard writer or None)`` in the place of Megatron's writer, on the last rank, where it logs."""
    from megatron.training import get_args, global_vars

    if get_args().rank == get_args().world_size - 1:
        global_vars._GLOBAL_TENSORBOARD_WRITER = wrap(global_vars.get_tensorboard_writer())


def _model_shape(args: argparse.Namespace) -> ModelShape:
    return ModelShape(
        vocab_size=args.vocab_size,
        padded_vocab_size=args.padded_vocab_size,
        max_position_embeddings=args.max_position_embeddings,
        rotary_base=args.rotary_base,
        tied_embeddings=not args.untie_embeddings_and_output_weights,
    )
