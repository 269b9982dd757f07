"""Reference log-probs on disk: one file beside the dataset, one (chosen, rejected) pair of sums a turn.

``PREFIX.reference.npz``, or ``PREFIX.reference-long.npz`` for a reference that read the long contexts, holds ``logp``
(float64 [turns of all pairs, 2], nats), ``first_turn`` (int64 [pairs + 1]) and ``manifest`` (JSON): what was scored, on
which context, by which model, with which rotary settings. Training compares all of it with what it is about to use; a
mismatch is refused, because it would train on wrong numbers without a sign.
"""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_longpo.data.render import Context
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_file
from megatron_longpo.model.rope_parameters import RopeParameters

FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class ReferenceManifest:
    """Where the numbers of a cache come from."""

    dataset_fingerprint: str
    weights_sha256: str
    rope: RopeParameters
    dtype: str
    """Type in which the reference ran: "float32", "bfloat16" or "float16"."""
    context: Context
    """What stood before the answers."""
    format_version: int = FORMAT_VERSION


class ReferenceCache:
    """The reference log-probs of a dataset, in memory (16 bytes a turn)."""

    def __init__(
        self, path: Path, manifest: ReferenceManifest, logp: NDArray[np.float64], first: NDArray[np.int64]
    ) -> None:
        self.path, self.manifest = path, manifest
        self._logp, self._first = logp, first

    @classmethod
    def open(cls, path: Path) -> "ReferenceCache":
        """Read a cache.

        Raises:
            UserError: there is none, it is not whole, or another version wrote it.
        """
        if not path.is_file():
            raise UserError(
                f"{path}: no reference log-probs there; run `megatron-longpo score-reference` first, for an objective "
                "whose reference reads the long context with --context long"
            )
        try:
            with np.load(path, allow_pickle=False) as arrays:
                fields = json.loads(str(arrays["manifest"]))
                logp, first = arrays["logp"], arrays["first_turn"]
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise UserError(f"{path}: damaged ({error}); delete it and run score-reference again") from error
        if fields.get("format_version") != FORMAT_VERSION:
            raise UserError(f"{path}: format {fields.get('format_version')}, need {FORMAT_VERSION}; score it again")
        manifest = ReferenceManifest(**fields | {"rope": RopeParameters(**fields["rope"])})
        return cls(path, manifest, logp, first)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, pair_index: int) -> NDArray[np.float64]:
        """The sums of one pair: [turns, 2], chosen and rejected, nats."""
        if not 0 <= pair_index < len(self):
            raise IndexError(pair_index)
        return self._logp[self._first[pair_index] : self._first[pair_index + 1]]

    def check(self, *, dataset_fingerprint: str, weights_sha256: str, rope: RopeParameters, context: Context) -> None:
        """Refuse a cache that was made from something else.

        Raises:
            UserError: naming what differs.
        """
        for what, cached, wanted, remedy in (
            ("dataset", self.manifest.dataset_fingerprint, dataset_fingerprint, "score the dataset again"),
            (
                "model",
                self.manifest.weights_sha256,
                weights_sha256,
                "score it with this checkpoint, or name the right one with --longpo-reference-checkpoint",
            ),
            ("RoPE", self.manifest.rope, rope, "score it again with the reference's own RoPE"),
            (
                "context",
                self.manifest.context,
                context,
                f"score the dataset with --context {context}, or choose an objective for this one",
            ),
        ):
            if cached != wanted:
                shown = [value[:12] if isinstance(value, str) else str(value) for value in (cached, wanted)]
                raise UserError(f"{self.path}: scored with another {what} ({shown[0]}, need {shown[1]}); {remedy}")


def default_path(prefix: Path, context: Context = "short") -> Path:
    """Where the cache of the dataset ``prefix`` lies unless the user says otherwise."""
    return prefix.with_name(prefix.name + (".reference.npz" if context == "short" else ".reference-long.npz"))


def write_cache(path: Path, manifest: ReferenceManifest, logp_by_pair: list[list[tuple[float, float]]]) -> None:
    """Write a cache, whole or not at all: ``logp_by_pair[i][t]`` is (chosen, rejected) of turn t of pair i, nats."""
    first = np.cumsum([0, *map(len, logp_by_pair)])
    logp = np.array([turn for turns in logp_by_pair for turn in turns], dtype=np.float64).reshape(-1, 2)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, logp=logp, first_turn=first, manifest=np.array(json.dumps(asdict(manifest))))
