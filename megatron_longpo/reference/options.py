"""Where training gets its reference log-probs from: options, and what they lead to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from megatron_longpo.data.manifest import Manifest
from megatron_longpo.data.render import Context
from megatron_longpo.data.trees import TreeKind
from megatron_longpo.errors import UserError
from megatron_longpo.hf.sidecar import read_identity
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.objective.objectives import Objective
from megatron_longpo.reference.cache import ReferenceCache, default_path
from megatron_longpo.reference.frozen import check_reference_checkpoint


@dataclass(frozen=True, slots=True)
class ReferenceOptions:
    """What training's options say about the reference."""

    data: Path
    """Prefix of the dataset, beside which the log-probs lie unless ``files`` names others."""
    files: Sequence[str] | None
    online: bool
    checkpoint: str | None

    @classmethod
    def of(cls, options: Any) -> Self:
        """Take them from parsed options."""
        return cls(
            data=Path(options.longpo_data),
            files=options.longpo_reference,
            online=options.longpo_online_reference,
            checkpoint=options.longpo_reference_checkpoint,
        )


@dataclass(frozen=True, slots=True)
class OnlineSettings:
    """A reference that is kept in memory (online.py)."""

    checkpoint: Path
    reads: tuple[TreeKind, ...]
    """What the objective reads of the reference."""


References = dict[Context, ReferenceCache] | OnlineSettings
"""Log-probs by the context they were taken on (empty for an objective without a reference), or a model in memory."""


def add_reference_options(add_argument: Callable[..., object]) -> None:
    """Add training's options about the reference by a parser's or group's ``add_argument``."""
    add_argument(
        "--longpo-reference",
        metavar="FILE",
        nargs="+",
        help="reference log-probs, a file for each context that the objective's reference reads (default: "
        "PREFIX.reference.npz for short contexts, PREFIX.reference-long.npz for long ones)",
    )
    add_argument(
        "--longpo-online-reference",
        action="store_true",
        help="read no log-probs but keep the reference in memory, and score the pairs of every step before it",
    )
    add_argument(
        "--longpo-reference-checkpoint",
        metavar="DIR",
        help="the reference's imported checkpoint, where it is not the one training starts from",
    )


def open_reference(
    options: ReferenceOptions, objective: Objective, manifest: Manifest, source: Path, sizes: ParallelSizes
) -> References:
    """Find what the options ask for and the objective reads.

    Args:
        manifest: of the dataset.
        source: the checkpoint that is the reference unless the options name another.
        sizes: of the axes that a model in memory would lie on.

    Raises:
        UserError: the options contradict each other or the objective, or cache or checkpoint do not fit.
    """
    if not objective.reference:
        _refuse_any(options, objective)
        return {}
    checkpoint = Path(options.checkpoint or source)
    if options.online:
        if options.files:
            raise UserError("--longpo-online-reference reads no log-probs; remove it or --longpo-reference")
        check_reference_checkpoint(checkpoint, sizes, "--longpo-reference-checkpoint")
        return OnlineSettings(checkpoint, objective.reference)
    caches = _caches(options, objective)
    identity = read_identity(checkpoint)
    for context, cache in caches.items():
        cache.check(
            dataset_fingerprint=manifest.fingerprint,
            weights_sha256=identity.weights_sha256,
            rope=identity.rope,
            context=context,
        )
    return caches


def _caches(options: ReferenceOptions, objective: Objective) -> dict[Context, ReferenceCache]:
    """The files that are named, by the context that each says it was scored on; else those beside the dataset."""
    contexts: list[Context] = [kind.context for kind in objective.reference]
    if not options.files:
        return {context: ReferenceCache.open(default_path(options.data, context)) for context in contexts}
    files = [ReferenceCache.open(Path(name)) for name in options.files]
    if len(files) == 1 and len(contexts) == 1:
        return {contexts[0]: files[0]}  # its own check says what does not fit
    found: dict[Context, ReferenceCache] = {cache.manifest.context: cache for cache in files}
    if len(found) != len(files) or set(found) != set(contexts):
        raise UserError(
            f"--longpo-reference has log-probs on {', '.join(cache.manifest.context for cache in files)} contexts, and "
            f"--longpo-objective {objective.name} reads {' and '.join(contexts)}; give one file for each"
        )
    return found


def _refuse_any(options: ReferenceOptions, objective: Objective) -> None:
    given = {
        "--longpo-reference": options.files,
        "--longpo-online-reference": options.online,
        "--longpo-reference-checkpoint": options.checkpoint,
    }
    for option, value in given.items():
        if value:
            raise UserError(f"--longpo-objective {objective.name} has no reference; remove {option}")
