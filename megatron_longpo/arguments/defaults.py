"""Defaults of Megatron's options that follow from the dataset, the checkpoint and the platform.

The model's shape is not repeated on the command line: it is read from the checkpoint's own config.json.
"""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_longpo import platform
from megatron_longpo.data.dataset import split_pairs
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.sidecar import read_hf_config
from megatron_longpo.model.parallel_sizes import ParallelSizes


def defaults_of(known: argparse.Namespace) -> dict[str, Any]:
    """Defaults by the name of the parsed value, once the options that decide them are ``known``.

    Raises:
        UserError: one of those options is missing or does not fit the dataset.
    """
    if not known.longpo_data:
        raise UserError("--longpo-data PREFIX is missing: the dataset that `megatron-longpo build` wrote")
    manifest = PairReader(Path(known.longpo_data)).manifest
    options = megatron_options(read_hf_config(source_folder(known)))
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
        "tokenizer_type": "NullTokenizer",
        "ckpt_format": "torch_dist",
        # Megatron's option is a switch for the unit of the mean; scaling.py makes that unit the pair.
        "calculate_per_token_loss": True,
        **fusions(known.transformer_impl),
        "rerun_mode": "disabled",  # non_finite.py says why
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
    if known.async_save:  # of which Megatron says nothing and saves as ever without the first of these
        strategy = "nvrx" if find_spec("nvidia_resiliency_ext") else "mcore"
        defaults |= {"use_persistent_ckpt_worker": True, "async_strategy": strategy}
    if known.longpo_skip_steps:
        defaults["check_for_nan_in_loss_and_grad"] = False  # at the first bad gradient Megatron's own check stops
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


def fusions(transformer_impl: str) -> dict[str, bool]:
    """What kernels of Transformer Engine or Apex do in one go; Megatron's options --no-... turn it off."""
    with_engine = transformer_impl == "transformer_engine"
    has_apex = find_spec("fused_weight_gradient_mlp_cuda") is not None  # Apex's, for Megatron's own linear layers
    return {"gradient_accumulation_fusion": with_engine or has_apex, "apply_rope_fusion": with_engine}


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
    batch = known.eval_global_batch_size or num_data_parallel_ranks(known) * microbatch_multiple(known)
    return {"eval_global_batch_size": batch, "eval_iters": -(-num_valid // batch)}


def source_folder(args: argparse.Namespace) -> Path:
    """The folder that holds the model's description: the imported checkpoint, or a run being resumed."""
    for folder in (args.pretrained_checkpoint, args.load):
        if folder and (Path(folder) / "hf" / "config.json").is_file():
            return Path(folder)
    given = args.pretrained_checkpoint or args.load
    if not given:
        raise UserError("--load DIR is missing: the checkpoint that `megatron-longpo import-hf` wrote")
    raise UserError(f"--load {given}: no hf/config.json there; give a folder that `megatron-longpo import-hf` wrote")


def num_data_parallel_ranks(args: argparse.Namespace) -> int:
    """Count them by the ranks that were started, before Megatron's groups exist."""
    return max(1, int(os.environ.get("WORLD_SIZE", "1")) // ParallelSizes.of(args).together)


def microbatch_multiple(args: argparse.Namespace) -> int:
    """An interleaved pipeline runs micro-batches in rounds of one a stage (schedules.py,
    ``forward_backward_pipelining_with_interleaving``)."""
    virtual = args.num_layers_per_virtual_pipeline_stage or args.num_virtual_stages_per_pipeline_rank
    return args.pipeline_model_parallel_size if virtual else 1
