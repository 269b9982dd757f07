"""What a run prints before its first step: the model, the data, what is trained, and where everything goes."""

import argparse
from pathlib import Path

from megatron_longpo import __version__, platform
from megatron_longpo.arguments.settings import LongPOSettings
from megatron_longpo.files import atomic_file
from megatron_longpo.hf.sidecar import read_identity
from megatron_longpo.hf.training_record import METRICS_FILE
from megatron_longpo.metrics_file import metrics_paths
from megatron_longpo.plan.memory import StepMemory
from megatron_longpo.reference.options import OnlineSettings

ARGUMENTS_FILE = "arguments.txt"
"""This file beside the checkpoints holds every option of Megatron and ours with the value that it has in this run."""

MIB, GIB = 2**20, 2**30


def first_screen(args: argparse.Namespace, settings: LongPOSettings, memory: StepMemory) -> str:
    """Describe a run in about fifteen lines.

    Args:
        args: Megatron's, after validation.
        memory: what is planned for a rank.
    """
    objective, num_samples = settings.step.objective, args.global_batch_size * args.train_iters
    num_train = len(settings.trees.tokens) - len(settings.held_out)
    rows = {
        "model": _model(args, settings),
        "memory": _memory(memory),
        "data": _data(settings),
        "reads": "; ".join(f"{kind.context} trunk + {' + '.join(kind.answers)}" for kind in objective.reads),
        "objective": ", ".join(f"{name} {_short(value)}".rstrip() for name, value in _objective(settings)),
        "reference": _reference(settings),
        "optimizer": f"{args.longpo_optimizer or args.optimizer}, learning rate {_short(args.lr)} "
        f"({args.lr_decay_style}), weight decay {_short(args.weight_decay)}, clipping at {_short(args.clip_grad)}",
        "layout": _layout(args),
        "a step": f"{args.global_batch_size} pairs; {settings.plan_text}",
        "steps": "none, the held-out pairs are evaluated"
        if args.skip_train
        else f"{args.train_iters}, {num_samples / num_train:.2f} epochs",
        "loads": args.load,
        "saves": f"{args.save}, every {args.save_interval or args.train_iters} steps" if args.save else "nothing",
        "metrics": ", ".join(_metrics(args, settings)) or "the terminal only",
    }
    width = max(map(len, rows))
    lines = [f"  {name:<{width}}  {text}" for name, text in rows.items() if text]
    return "\n".join((f"megatron-longpo {__version__}", *lines))


def write_arguments(args: argparse.Namespace) -> None:
    """Write all options to ``SAVE/arguments.txt``."""
    with atomic_file(Path(args.save) / ARGUMENTS_FILE) as partial:
        text = "".join(f"{name}: {value}\n" for name, value in sorted(vars(args).items()) if name[0] != "_")
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _model(args: argparse.Namespace, settings: LongPOSettings) -> str:
    identity = read_identity(settings.source)
    dtype = str(args.params_dtype).removeprefix("torch.")
    return (
        f"{identity.num_parameters / 1e6:,.1f}M parameters in {dtype}, {args.num_layers} layers of {args.hidden_size}, "
        f"{args.num_attention_heads} heads on {args.num_query_groups} key-value heads, up to "
        f"{args.max_position_embeddings:,} positions, RoPE base {settings.shape.rope.rope_theta:g}"
    )


def _memory(memory: StepMemory) -> str:
    parts = {part: memory.parts[part] for part in ("weights", "gradients", "optimizer")}
    parts["activations"] = memory.total - sum(parts.values())
    each = ", ".join(f"{part} {gibibytes(size)}" for part, size in parts.items() if size)
    return f"{gibibytes(memory.total)} a rank planned: {each}"


def gibibytes(size: float) -> str:
    """A size in bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def _layout(args: argparse.Namespace) -> str:
    return (
        f"{args.world_size} {'rank' if args.world_size == 1 else 'ranks'} ({_device()}): tensor "
        f"{args.tensor_model_parallel_size}, pipeline {args.pipeline_model_parallel_size}, context "
        f"{args.context_parallel_size}, data {args.data_parallel_size}"
    )


def _data(settings: LongPOSettings) -> str:
    manifest = settings.reader.manifest
    shortest, median, longest = manifest.lengths["pair"]
    held_out = f", {len(settings.held_out)} of them held out" if settings.held_out else ""
    return (
        f"{manifest.num_pairs:,} pairs{held_out}, {manifest.num_turns:,} turns; trunk + longer branch {shortest:,} to "
        f"{longest:,} tokens, median {median:,.0f}"
    )


def _objective(settings: LongPOSettings) -> list[tuple[str, object]]:
    (_, name), *coefficients = settings.step.objective.settings(settings.step.coefficients).items()
    return [(str(name), ""), *coefficients, ("NLL over", f"{settings.step.nll_tokens} tokens")]


def _reference(settings: LongPOSettings) -> str:
    contexts = " and ".join(kind.context for kind in settings.step.objective.reference)
    if not contexts:
        return "none"
    if isinstance(settings.reference, OnlineSettings):
        return f"{settings.reference.checkpoint} in memory, reads the {contexts} context"
    files = ", ".join(str(cache.path) for cache in settings.reference.values())
    return f"{files}, which read the {contexts} context"


def _metrics(args: argparse.Namespace, settings: LongPOSettings) -> list[str]:
    files = metrics_paths(settings.saves and settings.saves / METRICS_FILE, settings.metrics).values()
    others = [args.tensorboard_dir, f"W&B {args.wandb_project}" if args.wandb_project else None]
    return [str(one) for one in (*files, *others) if one]


def _device() -> str:
    if platform.is_cpu():
        return "CPU, gloo"
    import torch

    return torch.cuda.get_device_name()


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
