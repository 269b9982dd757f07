"""Where training gets its reference log-probs from: options, and what they lead to."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from megatron_longpo.data.manifest import Manifest
from megatron_longpo.data.render import Context
from megatron_longpo.errors import UserError
from megatron_longpo.hf.sidecar import read_identity
from megatron_longpo.objective.longpo import reference_context
from megatron_longpo.reference.cache import ReferenceCache, default_path
from megatron_longpo.reference.frozen import check_reference_checkpoint


@dataclass(frozen=True, slots=True)
class OnlineSettings:
    """A reference that is kept in memory (online.py)."""

    checkpoint: Path
    context: Context


def add_reference_options(group: argparse._ArgumentGroup) -> None:
    """Training's options about the reference."""
    group.add_argument(
        "--longpo-reference",
        metavar="FILE",
        help="reference log-probs (default: PREFIX.reference.npz, for dpo PREFIX.reference-long.npz)",
    )
    group.add_argument(
        "--longpo-online-reference",
        action="store_true",
        help="read no log-probs but keep the reference in memory, and score the pairs of every step before it",
    )
    group.add_argument(
        "--longpo-reference-checkpoint",
        metavar="DIR",
        help="the reference's imported checkpoint, where it is not the one training starts from",
    )


def open_reference(
    args: argparse.Namespace, manifest: Manifest, source: Path
) -> ReferenceCache | OnlineSettings | None:
    """What the options ask for; None for an objective that has no reference.

    Args:
        manifest: of the dataset.
        source: the checkpoint that is the reference unless the options name another.

    Raises:
        UserError: the options contradict each other or the objective, or cache or checkpoint do not fit.
    """
    context = reference_context(args.longpo_objective)
    if context is None:
        _refuse_any(args)
        return None
    checkpoint = Path(args.longpo_reference_checkpoint or source)
    if args.longpo_online_reference:
        if args.longpo_reference:
            raise UserError("--longpo-online-reference reads no log-probs; remove it or --longpo-reference")
        check_reference_checkpoint(checkpoint, args, "--longpo-reference-checkpoint")
        return OnlineSettings(checkpoint, context)
    cache = ReferenceCache.open(Path(args.longpo_reference or default_path(Path(args.longpo_data), context)))
    identity = read_identity(checkpoint)
    cache.check(
        dataset_fingerprint=manifest.fingerprint,
        weights_sha256=identity.weights_sha256,
        rope=identity.rope,
        context=context,
    )
    return cache


def _refuse_any(args: argparse.Namespace) -> None:
    for name in ("longpo_reference", "longpo_online_reference", "longpo_reference_checkpoint"):
        if getattr(args, name):
            option = "--" + name.replace("_", "-")
            raise UserError(f"--longpo-objective {args.longpo_objective} has no reference; remove {option}")
