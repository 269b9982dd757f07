"""Score a dataset with the frozen reference, once, before training.

    megatron-longpo score-reference --data PREFIX --checkpoint DIR                      # one process
    torchrun ... -m megatron_longpo.reference.score --data PREFIX --checkpoint DIR ...  # many ranks

Every turn of every pair is one shared pass over its short context (trunk, both branches), or, with ``--context long``,
every pair one over the long context; by the same model code as in training, with the rotary settings the checkpoint was
imported with. Finished pairs go to a journal at once; a killed run goes on where it stopped; the cache appears when all
pairs are there.
"""

import argparse
import os
import sys
import time
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longpo import platform
from megatron_longpo.errors import UserError
from megatron_longpo.quiet import quiet_libraries

quiet_libraries()
platform.activate()  # before Megatron is imported

from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402
from tqdm import tqdm  # noqa: E402

from megatron_longpo.data.dataset import conversation_arrays  # noqa: E402
from megatron_longpo.data.indexed import PairReader  # noqa: E402
from megatron_longpo.data.render import Context, TrunkAndBranches  # noqa: E402
from megatron_longpo.data.trees import TreeKind, tree_lengths  # noqa: E402
from megatron_longpo.hf.sidecar import Identity, check_tokenizer, read_identity  # noqa: E402
from megatron_longpo.journal import Journal  # noqa: E402
from megatron_longpo.locks import Lock  # noqa: E402
from megatron_longpo.model.build import TRANSFORMER_IMPLS, check_transformer_impl  # noqa: E402
from megatron_longpo.model.exchange import CP_COMM_TYPES  # noqa: E402
from megatron_longpo.model.parallel_sizes import ParallelSizes  # noqa: E402
from megatron_longpo.reference import journal as journals  # noqa: E402
from megatron_longpo.reference.cache import ReferenceManifest, default_path, write_cache  # noqa: E402
from megatron_longpo.reference.frozen import (  # noqa: E402
    Conversation,
    FrozenReference,
    check_reference_checkpoint,
    load_frozen,
    score,
)
from megatron_longpo.started_ranks import check_ranks  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ANSWERS = ("chosen", "rejected")
PAIRS_PER_CALL = 8
"""Pairs between two journal writes; their turns are the micro-batches of one pipeline schedule."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of score-reference."""
    parser.add_argument("--data", type=Path, required=True, metavar="PREFIX", help="dataset that build wrote")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder that import-hf wrote")
    parser.add_argument(
        "--context",
        choices=get_args(Context),
        default="short",
        help="what stands before the answers: each turn's short context, or the whole document, for the objective dpo "
        "(default: short)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: PREFIX.reference.npz, or PREFIX.reference-long.npz"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 with CUDA, fp32 without")
    parser.add_argument("--tensor-model-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--context-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--cp-comm-type", nargs="+", default=["p2p"], metavar="TYPE", help=", ".join(CP_COMM_TYPES))
    parser.add_argument("--hierarchical-context-parallel-sizes", type=int, nargs="+", metavar="N", help="of a2a+p2p")
    parser.add_argument("--sequence-parallel", action="store_true")
    parser.add_argument("--transformer-impl", choices=TRANSFORMER_IMPLS, default="local", help="as training's")
    parser.add_argument("--overwrite", action="store_true", help="score again although the cache is there")


def run(args: argparse.Namespace) -> int:
    """Score as the parsed options say; returns the exit status."""
    score_dataset(
        args.data,
        args.checkpoint,
        context=args.context,
        output=args.output or default_path(args.data, args.context),
        dtype=DTYPES[args.dtype or ("fp32" if platform.is_cpu() else "bf16")],
        sizes=ParallelSizes.of(args),
        sequence_parallel=args.sequence_parallel,
        transformer_impl=args.transformer_impl,
        may_overwrite=args.overwrite,
    )
    return 0


def score_dataset(
    data: Path,
    checkpoint: Path,
    *,
    context: Context,
    output: Path,
    dtype: torch.dtype,
    sizes: ParallelSizes,
    sequence_parallel: bool,
    transformer_impl: str,
    may_overwrite: bool,
) -> None:
    """Score every pair and write the cache.

    Args:
        data: prefix of the dataset.
        context: what stands before the answers.
        output: the cache to write.
        sizes: of the axes that the ranks of this run are divided among.
        may_overwrite: replace ``output`` where it is there.

    Raises:
        UserError: dataset and checkpoint do not fit each other, or the ranks do not fit the model.
    """
    started = time.monotonic()
    reader, identity = check_inputs(data, checkpoint, sizes, transformer_impl)
    _refuse_existing(output, may_overwrite)
    manifest = ReferenceManifest(
        dataset_fingerprint=reader.manifest.fingerprint,
        weights_sha256=identity.weights_sha256,
        rope=identity.rope,
        dtype=str(dtype).removeprefix("torch."),
        context=context,
    )
    _start_ranks(sizes)
    try:
        folder = journals.journal_folder(output)
        lock = _lock_for_all(folder, output, may_overwrite)
        reference = load_frozen(
            checkpoint,
            dtype=dtype,
            sequence_parallel=sequence_parallel,
            cp_comm_type=sizes.cp_comm_type,
            transformer_impl=transformer_impl,
            longest_trunk=tree_lengths(reader, [TreeKind(context)]).longest_trunk,
        )
        scored = asdict(manifest)
        done = journals.read_pairs(folder, scored)
        dist.barrier()  # every rank has read the same journals before any of them writes
        with journals.open_journal(folder, scored, dist.get_rank()) as journal:
            _score_missing(reader, context, reference, journal, done)
        dist.barrier()
        if lock is not None:
            done = journals.read_pairs(folder, scored)
            write_cache(output, manifest, [done[index] for index in range(len(reader))])
            journals.remove(folder, lock)
            print(
                f"scored {len(reader):,} pairs on their {context} contexts, {manifest.dtype}, weights "
                f"{identity.weights_sha256[:12]} -> {output} in {time.monotonic() - started:.1f} s"
            )
        dist.barrier()
    finally:
        dist.destroy_process_group()


def check_inputs(
    data: Path, checkpoint: Path, sizes: ParallelSizes, transformer_impl: str
) -> tuple[PairReader, Identity]:
    """Open dataset and checkpoint, and hold them against each other and the layout.

    Raises:
        UserError: they do not fit each other, or the ranks do not fit the model.
    """
    reader, identity = PairReader(data), read_identity(checkpoint)
    check_tokenizer(f"--data {data}", reader.manifest, identity, checkpoint)
    check_transformer_impl(transformer_impl)
    check_reference_checkpoint(checkpoint, sizes, "--checkpoint")
    return reader, identity


def check_world(num_ranks: int, sizes: ParallelSizes) -> None:
    """Hold the ranks to be divisible among the axes; raises UserError."""
    if num_ranks % sizes.together:
        raise UserError(f"{num_ranks} ranks are not a multiple of tensor x pipeline x context = {sizes.together}")


def _refuse_existing(output: Path, may_overwrite: bool) -> None:
    if output.exists() and not may_overwrite:
        raise UserError(f"{output} is already there; add --overwrite to score again")


def _lock_for_all(folder: Path, output: Path, may_overwrite: bool) -> Lock | None:
    """Rank 0 locks the journals' folder for all ranks of this run; every rank raises what kept it from that."""
    lock, fault = None, [""]
    if dist.get_rank() == 0:
        try:
            lock = journals.lock_folder(folder)
            _refuse_existing(output, may_overwrite)  # again: the run that held the lock may have finished it
        except (UserError, OSError) as error:
            fault = [str(error)]
    dist.broadcast_object_list(fault)
    if fault[0]:
        raise UserError(fault[0])
    return lock


def _start_ranks(sizes: ParallelSizes) -> None:
    """Join the ranks that torchrun started, or be the only one."""
    check_world(check_ranks(), sizes)
    if not dist.is_initialized():
        if not platform.is_cpu():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo" if platform.is_cpu() else "nccl")
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        sizes.tensor,
        sizes.pipeline,
        context_parallel_size=sizes.context,
        hierarchical_context_parallel_sizes=list(sizes.hierarchical) if sizes.hierarchical else None,
    )
    model_parallel_cuda_manual_seed(0)


def _score_missing(
    reader: PairReader, context: Context, reference: FrozenReference, journal: Journal, done: Container[int]
) -> None:
    """Score this data-parallel rank's share of the pairs that are not ``done``, and journal them."""
    missing = [index for index in range(len(reader)) if index not in done]
    mine = missing[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]
    writes = (
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == parallel_state.get_context_parallel_rank() == 0
    )
    start, tokens = time.monotonic(), 0
    progress = tqdm(total=len(mine), unit="pair", desc="reference", disable=dist.get_rank() != 0, mininterval=1.0)
    for first in range(0, len(mine), PAIRS_PER_CALL):
        indices = mine[first : first + PAIRS_PER_CALL]
        conversations = [reader[index].conversations(context) for index in indices]
        logp = iter(score(reference, [(_tensors(one), ANSWERS) for of_pair in conversations for one in of_pair]))
        if writes:
            journal.append(
                *(
                    journals.pair_line(index, [(turn[0], turn[1]) for _ in of_pair for turn in _rows(next(logp))])
                    for index, of_pair in zip(indices, conversations, strict=True)
                )
            )
        tokens += sum(sum(one.lengths) for of_pair in conversations for one in of_pair)
        progress.set_postfix_str(f"{tokens / (time.monotonic() - start):,.0f} tokens/s")
        progress.update(len(indices))
    progress.close()


def _rows(logp_K2: Tensor) -> list[list[float]]:
    return cast(list[list[float]], logp_K2.tolist())  # pyright: ignore[reportUnknownMemberType]


def _tensors(conversation: TrunkAndBranches) -> Conversation:
    return {name: torch.as_tensor(array) for name, array in conversation_arrays(conversation).items()}


def main() -> int:
    """Entry point under torchrun; returns the exit status."""
    parser = argparse.ArgumentParser(prog="megatron_longpo.reference.score", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except (UserError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"megatron_longpo.reference.score: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
