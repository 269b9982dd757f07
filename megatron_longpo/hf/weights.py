"""Weights by their Hugging Face names, one tensor at a time, from either side of the door."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_longpo.errors import UserError
from megatron_longpo.hf.names import NameRule
from megatron_longpo.hf.safetensors_file import SAFETENSORS_DTYPES
from megatron_longpo.hf.torch_dist import CheckpointReader
from megatron_longpo.strict_json import is_object, read_json_object

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INDEX_FILE = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CONFIG = "config.json"
_ADAPTER = "adapter_config.json"


class Weights(Protocol):
    """A set of tensors with Hugging Face names."""

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype: ...
    def where(self, name: str) -> str:
        """The file or folder, for messages."""
        ...

    def read(self, name: str) -> Tensor: ...


class SafetensorsFolder:
    """The weights of a Hugging Face folder, out of the files that transformers would take.

    Opening reads the headers only. Names are those of the causal language model (see ``rename``).

    Raises:
        UserError: no safetensors, a file is missing or damaged, a name occurs twice, or a dtype is not supported.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._stored: dict[str, str] = {}
        for path in _weight_files(folder):
            self._read_header(path)

    def rename(self, stored: str, name: str) -> None:
        """Give the tensor that is stored as ``stored`` the name ``name``."""
        for table in (self._files, self._shapes, self._dtypes):
            table[name] = table.pop(stored)  # type: ignore[assignment,arg-type]
        self._stored[name] = stored

    def names(self) -> list[str]:
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def where(self, name: str) -> str:
        return str(self._files[name])

    def read(self, name: str) -> Tensor:
        # The file is mapped, and what was read of it stays resident while it is open: opening costs less than a model.
        opened: Any = safe_open(self._files[name], framework="pt")
        with opened as file:
            return file.get_tensor(self._stored.get(name, name))

    def _read_header(self, path: Path) -> None:
        try:
            opened: Any = safe_open(path, framework="pt")
        except FileNotFoundError:
            raise UserError(f"{path} does not exist, but {INDEX_FILE} names it; download the folder again") from None
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file ({error}); download it again") from None
        with opened as file:
            headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            for name, header in headers.items():
                if name in self._files:
                    raise UserError(f"{path}: tensor {name} is also in {self._files[name]}; remove the stale file")
                if (stored := header.get_dtype()) not in SAFETENSORS_DTYPES:
                    needed = ", ".join(SAFETENSORS_DTYPES)
                    raise UserError(f"{path}: tensor {name} has dtype {stored}; needs one of {needed}")
                self._files[name] = path
                self._shapes[name] = tuple(header.get_shape())
                self._dtypes[name] = SAFETENSORS_DTYPES[stored]


class CheckpointWeights:
    """The weights of a Megatron checkpoint, cut back to their Hugging Face names; padding rows are left out.

    Raises:
        UserError: the checkpoint does not hold this model.
    """

    def __init__(self, checkpoint: CheckpointReader, rules: list[NameRule], num_layers: int) -> None:
        self._checkpoint = checkpoint
        _check_keys(checkpoint, rules, num_layers)
        self._sources: dict[str, tuple[NameRule, int, int]] = {
            name: (rule, layer, part)
            for rule in rules
            for layer in range(num_layers if rule.per_layer else 1)
            for part, name in enumerate(rule.hf_names(layer))
        }
        self._last: tuple[tuple[str, int], list[Tensor]] | None = None

    def names(self) -> list[str]:
        """All names in the order of the forward pass: the parts of a joined tensor follow each other."""
        return list(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        rule, _, part = self._sources[name]
        return rule.hf_shapes[part]

    def dtype(self, name: str) -> torch.dtype:
        return self._checkpoint.dtype(self._sources[name][0].megatron)

    def where(self, name: str) -> str:
        return str(self._checkpoint.directory)

    def read(self, name: str) -> Tensor:
        rule, layer, part = self._sources[name]
        # The parts of one joined tensor are asked for one after the other: read and cut it once.
        if self._last is None or self._last[0] != (rule.megatron, layer):
            box = rule.joined_shape
            if rule.per_layer:
                joined = self._checkpoint.read(rule.megatron, (layer, *(0 for _ in box)), (1, *box))[0]
            else:
                joined = self._checkpoint.read(rule.megatron, tuple(0 for _ in box), box)
            self._last = ((rule.megatron, layer), rule.cut(joined))
        return self._last[1][part]


def read_checked(weights: Weights, name: str, dtype: torch.dtype) -> Tensor:
    """Read one tensor as ``dtype``.

    Raises:
        UserError: it holds NaN or infinity, or a value is too large for ``dtype``.
    """
    tensor = weights.read(name)
    if not _is_finite(tensor):
        raise UserError(f"{weights.where(name)}: tensor {name} holds NaN or infinity; these weights are not usable")
    if tensor.dtype == dtype:
        return tensor
    tensor = tensor.to(dtype)
    if not _is_finite(tensor):
        kind = str(dtype).removeprefix("torch.")
        raise UserError(f"{weights.where(name)}: tensor {name} does not fit into {kind}; use --dtype bf16 or fp32")
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    """All of it, in one pass: NaN is both the least and the greatest. torch.isfinite alone takes 14 times as long."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def dtype_label(dtypes: Iterable[torch.dtype]) -> str:
    """``fp32``, ``bf16`` or ``fp16``, or ``mixed``."""
    found = set(dtypes)
    if len(found) > 1:
        return "mixed"
    return next(label for label, dtype in DTYPES.items() if dtype in found)


def _weight_files(folder: Path) -> list[Path]:
    """The files, by transformers' own order (modeling_utils.py, ``_get_resolved_checkpoint_files``, transformers 5)."""
    config = read_json_object(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    candidates = [config["transformers_weights"]] if config.get("transformers_weights") else [_SINGLE, INDEX_FILE]
    for name in candidates:
        if (path := folder / str(name)).is_file():
            return _files_of_index(path) if path.name.endswith(".index.json") else [path]
    if (folder / _ADAPTER).is_file():
        raise UserError(f"{folder} is an adapter and no whole model; merge it into its base model and save that")
    if any(folder.glob("*.bin")):
        raise UserError(
            f"{folder} holds pickled weights (*.bin) only; load the model with transformers and save_pretrained() it"
        )
    raise UserError(f"{folder} holds neither {' nor '.join(candidates)}; --hf needs a folder of Hugging Face weights")


def _files_of_index(path: Path) -> list[Path]:
    weight_map = read_json_object(path).get("weight_map")
    files: set[str] = {str(name) for name in weight_map.values()} if is_object(weight_map) else set()
    if not files:
        raise UserError(f"{path}: no weight_map; download the folder again")
    return [path.parent / name for name in sorted(files)]


def _check_keys(checkpoint: CheckpointReader, rules: list[NameRule], num_layers: int) -> None:
    keys = set(checkpoint.keys())
    for rule in rules:
        needed = ((num_layers,) if rule.per_layer else ()) + rule.joined_shape
        if rule.megatron not in keys:
            _other_model(checkpoint, f"{rule.megatron} is missing")
        stored = checkpoint.shape(rule.megatron)
        padded = rule.megatron in ("embedding.word_embeddings.weight", "output_layer.weight")
        if padded and stored[0] >= needed[0]:
            stored = (needed[0], *stored[1:])
        if stored != needed:
            _other_model(checkpoint, f"{rule.megatron} has shape {list(stored)}, needs {list(needed)}")
        if checkpoint.dtype(rule.megatron) not in DTYPES.values():
            _other_model(checkpoint, f"{rule.megatron} has dtype {checkpoint.dtype(rule.megatron)}")
    model_keys = {key for key in keys if key.startswith(("embedding.", "decoder.", "output_layer."))}
    surplus = sorted(model_keys - {rule.megatron for rule in rules})
    if surplus:
        _other_model(checkpoint, f"{surplus[0]} is not part of the model in hf/config.json")


def _other_model(checkpoint: CheckpointReader, found: str) -> NoReturn:
    raise UserError(f"{checkpoint.directory}: {found}; the checkpoint is not of the model in hf/config.json")
