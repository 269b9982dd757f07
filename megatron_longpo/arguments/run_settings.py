"""What a run really uses, in words that outlive it: hf/training_record.py keeps them beside the checkpoints.

Read after validation, so defaults are included. No paths, no names of machines. A setting that does not apply is left
out.
"""

import argparse
from importlib.metadata import version
from typing import Any

import torch

from megatron_longpo import __version__, platform
from megatron_longpo.arguments.settings import LongPOSettings
from megatron_longpo.data.manifest import Manifest
from megatron_longpo.hf.sidecar import read_identity
from megatron_longpo.hf.training_record import Settings
from megatron_longpo.model.kernels import choose_for
from megatron_longpo.reference.options import OnlineSettings


def recipe_settings(args: argparse.Namespace, settings: LongPOSettings) -> Settings:
    """The settings of this run by section.

    Args:
        args: Megatron's, after validation.
        settings: ours.
    """
    objective = settings.step.objective
    sections = {
        "method": {"description": objective.description, "tags": [*objective.tags, "long-context"]},
        "objective": _objective(args, settings),
        "reference": _reference(settings),
        "model": _model(args, settings),
        "optimizer": _optimizer(args),
        "schedule": _schedule(args),
        "batches": _batches(args),
        "precision": _precision(args),
        "layout": _layout(args),
        "versions": _versions(args),
        "data": _data(settings),
    }
    known = {section: {n: v for n, v in values.items() if v is not None} for section, values in sections.items()}
    return {section: values for section, values in known.items() if values}


def course(args: argparse.Namespace, settings: LongPOSettings) -> Settings:
    """The settings that decide which pairs a step has and what its loss means."""
    batches, data = _batches(args), _data(settings)
    return {
        "objective": _objective(args, settings),
        "reference": _reference(settings),
        "batches": {name: batches[name] for name in ("global_batch_size", "seed")},
        "data": {name: data[name] for name in ("fingerprint", "num_held_out_pairs")},
    }


def _objective(args: argparse.Namespace, settings: LongPOSettings) -> dict[str, Any]:
    own = settings.step.objective.settings(settings.step.coefficients)
    return own | {"nll_tokens": args.longpo_nll_tokens}


def _reference(settings: LongPOSettings) -> dict[str, Any]:
    contexts = "+".join(kind.context for kind in settings.step.objective.reference)
    if isinstance(settings.reference, OnlineSettings):
        identity = read_identity(settings.reference.checkpoint)
        return {"context": contexts, "rope": identity.rope.as_dict(), "weights_sha256": identity.weights_sha256}
    for cache in settings.reference.values():  # all of one model, or opening them would have been refused
        scored = cache.manifest
        weights = scored.weights_sha256
        return {"context": contexts, "rope": scored.rope.as_dict(), "dtype": scored.dtype, "weights_sha256": weights}
    return {}


def _model(args: argparse.Namespace, settings: LongPOSettings) -> dict[str, Any]:
    identity = read_identity(settings.source)
    return {
        "num_parameters": identity.num_parameters,
        "imported_weights_sha256": identity.weights_sha256,
        "max_position_embeddings": args.max_position_embeddings,
        "rope": settings.shape.rope.as_dict(),
    }


def _optimizer(args: argparse.Namespace) -> dict[str, Any]:
    adam = "adamw" if args.optimizer == "adam" else args.optimizer  # Megatron's has decoupled weight decay
    values: dict[str, Any] = {"name": args.longpo_optimizer or adam}
    if args.longpo_optimizer == "rmsprop":
        values |= {"alpha": args.longpo_rmsprop_alpha, "epsilon": args.adam_eps}
    elif args.optimizer == "adam":
        values |= {"beta1": args.adam_beta1, "beta2": args.adam_beta2, "epsilon": args.adam_eps}
    return values | {"weight_decay": args.weight_decay, "clip_grad": args.clip_grad}


def _schedule(args: argparse.Namespace) -> dict[str, Any]:
    if args.use_checkpoint_opt_param_scheduler and args.iteration and not args.no_load_optim:
        return {}  # the checkpoint's goes on, whatever the options say
    return {
        "learning_rate": args.lr,
        "decay": args.lr_decay_style,
        "min_learning_rate": args.min_lr,
        "warmup_fraction": args.lr_warmup_fraction,
        "warmup_steps": args.lr_warmup_iters or None,
        "warmup_pairs": args.lr_warmup_samples or None,
        "decay_steps": args.lr_decay_iters,
        "decay_pairs": args.lr_decay_samples,
    }


def _batches(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "global_batch_size": args.global_batch_size,
        "planned_steps": args.train_iters,
        "tokens_per_microbatch": args.longpo_tokens_per_microbatch,
        "trunk_multiple": args.longpo_trunk_multiple,
        "seed": args.seed,
    }


def _precision(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "weights": str(args.params_dtype).removeprefix("torch."),
        "fp8": args.fp8,
        "gradients_reduced_in": "float32" if args.accumulate_allreduce_grads_in_fp32 else None,
    }


def _layout(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "num_ranks": args.world_size,
        "device": "CPU" if platform.is_cpu() else torch.cuda.get_device_name(),
        "tensor_parallel": args.tensor_model_parallel_size,
        "sequence_parallel": args.sequence_parallel,
        "pipeline_parallel": args.pipeline_model_parallel_size,
        "context_parallel": args.context_parallel_size,
        "data_parallel": args.data_parallel_size,
        "distributed_optimizer": args.use_distributed_optimizer,
        "recompute": args.longpo_recompute or args.recompute_granularity,
        "transformer_impl": args.transformer_impl,
        # Transformer Engine's trunk has none of these.
        "attention_kernel": choose_for(args, any_length=args.transformer_impl == "transformer_engine").name,
    }


def _versions(args: argparse.Namespace) -> dict[str, Any]:
    packages = ["megatron-core", "torch", "transformers"]
    if args.transformer_impl == "transformer_engine":
        packages.append("transformer-engine")
    return {"megatron-longpo": __version__, **{name: version(name) for name in packages}}


def _data(settings: LongPOSettings) -> dict[str, Any]:
    manifest: Manifest = settings.reader.manifest
    shortest, median, longest = manifest.lengths["pair"]
    return {
        "num_pairs": manifest.num_pairs,
        "num_held_out_pairs": len(settings.held_out),
        "num_turns": manifest.num_turns,
        "num_tokens": manifest.num_tokens,
        "shortest_pair": shortest,
        "median_pair": median,
        "longest_pair": longest,
        "max_length": manifest.max_length,
        "overlong": manifest.overlong,
        "num_truncated": manifest.num_truncated,
        "num_skipped": manifest.num_skipped,
        "num_bad": manifest.num_bad or None,
        "fingerprint": manifest.fingerprint,
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
    }
