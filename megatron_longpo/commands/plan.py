"""``megatron-longpo plan``: will a training run fit on its GPUs, and how long will it take."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.data.dataset_files import dataset_file, read_index
from megatron_longpo.data.manifest import read_manifest
from megatron_longpo.data.trees import TreeKind, TreeLengths, tree_lengths
from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import check_divides, megatron_options
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.objective.reads import READS
from megatron_longpo.plan.machines import KINDS, GpuKind, read_kind
from megatron_longpo.plan.plan import Data, Layout, Plan, make_plan
from megatron_longpo.plan.search import layouts, nearest, search
from megatron_longpo.plan.step_shape import StepShape
from megatron_longpo.plan.text import as_json, plan_text, search_text
from megatron_longpo.strict_json import read_json_object


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that training has too have the names and meaning that they have there."""
    parser.add_argument("model", type=Path, help="imported checkpoint, Hugging Face folder or config.json")
    data = parser.add_argument_group("data")
    data.add_argument("--longpo-data", type=Path, metavar="PREFIX", help="built dataset; or the lengths of one pair:")
    data.add_argument("--trunk", type=int, metavar="N", help="tokens of the long context and the first question")
    data.add_argument(
        "--branches", type=int, nargs="+", default=[2048, 2048], metavar="N", help="of each answer (default: 2048)"
    )
    data.add_argument("--short-trunk", type=int, metavar="N", help="of the short context, where the objective reads it")
    data.add_argument("--pairs", type=int, default=10_000, metavar="N", help="in an epoch (default: 10000)")
    data.add_argument("--global-batch-size", type=int, default=8, metavar="N", help="pairs a step (default: 8)")
    data.add_argument("--longpo-tokens-per-microbatch", type=int, metavar="N")
    data.add_argument("--longpo-objective", choices=READS, default="longpo", metavar="NAME", help=", ".join(READS))
    data.add_argument(
        "--longpo-nll-tokens",
        choices=("all", "response"),
        default="all",
        help="what the NLL reads (default: all, for any objective; training reads the response where it has no NLL)",
    )
    _add_machine(parser.add_argument_group("GPUs"))
    _add_layout(parser.add_argument_group("layout"))
    parser.add_argument("--search", action="store_true", help="rank all layouts of these GPUs instead of planning one")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    kinds = f"{', '.join(KINDS)}, or a JSON file (default: h100-80)"
    group.add_argument("--gpus", type=int, metavar="N", help="in all (default: those that share a pair)")
    group.add_argument("--kind", default="h100-80", metavar="NAME", help=kinds)
    group.add_argument("--longpo-attention-kernel", metavar="NAME", help="default: the kind's fastest")
    group.add_argument(
        "--efficiency",
        type=float,
        default=0.85,
        metavar="X",
        help="share of the kernels' rates that the step reaches (default: 0.85)",
    )


def _add_layout(group: argparse._ArgumentGroup) -> None:
    for axis in ("tensor-model", "pipeline-model", "context"):
        group.add_argument(f"--{axis}-parallel-size", type=int, default=1, metavar="N")
    group.add_argument("--cp-comm-type", choices=("p2p", "a2a", "all_gather"), default="p2p")
    group.add_argument("--longpo-recompute", choices=("keep-attention",))
    group.add_argument("--recompute-granularity", choices=("full", "selective"))
    group.add_argument("--longpo-optimizer", choices=("rmsprop",), help="default: Megatron's Adam")
    group.add_argument(
        "--no-distributed-optimizer", action="store_true", help="training without --use-distributed-optimizer"
    )
    group.add_argument("--optimizer-cpu-offload", action="store_true")
    group.add_argument("--grad-reduce-in-bf16", action="store_true")
    group.add_argument("--longpo-online-reference", action="store_true")
    group.add_argument("--fp32", action="store_true", help="training without --bf16 or --fp16")


def run(args: argparse.Namespace) -> None:
    """Print the plan, or the layouts."""
    options, rest = _read(args)
    planner, wanted = partial(make_plan, _base(args, options), **rest), _layout(args)
    per_node, batch = rest["kind"].gpus_per_node, args.global_batch_size
    if args.search:
        plans = search(layouts(options, wanted.num_gpus, per_node, batch, wanted), planner)
    else:
        check_divides(options, wanted.tensor, wanted.pipeline, args.model)
        plans = [planner(wanted)]
    others = nearest(plans[0], options, per_node, batch, planner) if plans[0].verdict != "OK" else []
    heading = {"model": str(args.model), **rest}
    if args.json:
        print(json.dumps(as_json(plans, others, **heading)))
    else:
        print(search_text(plans, others, **heading) if args.search else plan_text(plans[0], others, **heading))


def planned(args: argparse.Namespace) -> Plan:
    """Plan the layout that the options say.

    Raises:
        UserError: an option is wrong, or the layout does not divide model and pairs.
    """
    options, rest = _read(args)
    wanted = _layout(args)
    check_divides(options, wanted.tensor, wanted.pipeline, args.model)
    return make_plan(_base(args, options), wanted, **rest)


def _read(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model by Megatron's names, and by make_plan's names what a plan depends on besides model and layout."""
    _check(args)
    kind, data = read_kind(args.kind), _data(args)
    kernel = _kernel(args.longpo_attention_kernel, kind)
    return read_model(args.model), {"data": data, "kind": kind, "kernel": kernel, "efficiency": args.efficiency}


def read_model(path: Path) -> dict[str, Any]:
    """The shape of a model, by Megatron's names, from a folder or its config.json.

    Raises:
        UserError: there is none, or it is of a model that cannot be trained here.
    """
    for found in (path, path / "config.json", path / "hf" / "config.json"):
        if found.is_file():
            return megatron_options(read_json_object(found))
    raise UserError(f"{path}: no config.json there; give a Hugging Face folder or what `import-hf` wrote")


def _check(args: argparse.Namespace) -> None:
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool) and number <= 0:
                raise UserError(f"--{name.replace('_', '-')} {number} must be above 0")
    if args.efficiency > 1:
        raise UserError(f"--efficiency {args.efficiency:g} is a share of the kernels' rates: at most 1")
    if (args.trunk is None) == (args.longpo_data is None):
        raise UserError("give --longpo-data PREFIX, a built dataset, or --trunk N, the tokens of a pair's long context")
    if len(args.branches) > 2:
        raise UserError(f"--branches {' '.join(map(str, args.branches))}: a pair has two, chosen and rejected")
    if args.longpo_recompute and args.recompute_granularity:
        raise UserError("--longpo-recompute keep-attention is full recomputation: remove --recompute-granularity")
    if args.cp_comm_type == "a2a" and args.search:
        raise UserError("--search compares layouts under --cp-comm-type p2p or all_gather, which any heads allow")


def _data(args: argparse.Namespace) -> Data:
    reads = READS[args.longpo_objective].policy
    trees = _trees_of_dataset(args.longpo_data, reads) if args.longpo_data else _trees_of_a_pair(args, reads)
    num_pairs = len(trees.tokens) if args.longpo_data else args.pairs
    if args.global_batch_size > num_pairs:
        raise UserError(f"--global-batch-size {args.global_batch_size} is more than the {num_pairs} pairs; lower it")
    return Data(
        trees=trees,
        num_pairs=num_pairs,
        global_batch_size=args.global_batch_size,
        max_tokens=args.longpo_tokens_per_microbatch,
        all_rows=args.longpo_nll_tokens == "all",
    )


def _trees_of_dataset(prefix: Path, reads: Sequence[TreeKind]) -> TreeLengths:
    read_manifest(dataset_file(prefix, ".manifest.json"))  # the dataset is whole
    return tree_lengths(read_index(prefix), reads)


def _trees_of_a_pair(args: argparse.Namespace, reads: Sequence[TreeKind]) -> TreeLengths:
    """A batch of pairs of one turn that are all alike."""
    trunks = {"long": args.trunk, "short": args.short_trunk}
    branches = dict(zip(("chosen", "rejected"), (*args.branches, args.branches[-1]), strict=False))
    if any(trunks[kind.context] is None for kind in reads):
        raise UserError(f"--longpo-objective {args.longpo_objective} reads short contexts too; give --short-trunk N")
    lengths = [
        (trunks[kind.context], *(branches[name] if name in kind.answers else 0 for name in branches)) for kind in reads
    ]
    pairs = np.arange(args.global_batch_size)
    return TreeLengths(np.tile(pairs, len(reads)), np.repeat(np.array(lengths, np.int64), len(pairs), axis=0))


def _kernel(name: str | None, kind: GpuKind) -> str:
    if name is None:
        return next(iter(kind.attention_tflops))
    if name not in kind.attention_tflops:
        there = ", ".join(kind.attention_tflops)
        raise UserError(f"--longpo-attention-kernel {name}: its rate on {kind.name} is not known; known are {there}")
    return name


def _layout(args: argparse.Namespace) -> Layout:
    sizes = (args.tensor_model_parallel_size, args.pipeline_model_parallel_size, args.context_parallel_size)
    together = int(np.prod(sizes))
    gpus = args.gpus or together
    if gpus % together and not args.search:
        raise UserError(f"--gpus {gpus} is not divisible by the {together} GPUs that share a pair: change either")
    return Layout(
        tensor=1 if args.search else sizes[0],
        pipeline=1 if args.search else sizes[1],
        context=1 if args.search else sizes[2],
        data=gpus if args.search else gpus // together,
        recompute=args.longpo_recompute or args.recompute_granularity or "none",
        offloads_optimizer=args.optimizer_cpu_offload,
        half_gradients=args.grad_reduce_in_bf16,
    )


def _base(args: argparse.Namespace, options: dict[str, Any]) -> StepShape:
    return StepShape(
        options=options,
        trees=(),
        sizes=ParallelSizes(1, 1, 1, [args.cp_comm_type], None),
        recompute="none",
        optimizer=args.longpo_optimizer or "adam",
        shares_optimizer=not args.no_distributed_optimizer,
        online_reference=args.longpo_online_reference,
        element_size=4 if args.fp32 else 2,
    )
