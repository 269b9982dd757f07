"""Hugging Face folder -> Megatron distributed checkpoint, without building a model.

The checkpoint is free of layout, so nothing here knows of ranks: tensors are read, joined and written one by one.
"""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_longpo.data.tokenizer import read_chat_template, tokenizer_fingerprint, vocabulary_size
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_directory, refuse_inside
from megatron_longpo.hf.card import front_matter
from megatron_longpo.hf.config import architecture, megatron_options
from megatron_longpo.hf.fingerprint import Fingerprint
from megatron_longpo.hf.folder import RELEASE, TRACKER_FILE
from megatron_longpo.hf.generation import read_generation_config
from megatron_longpo.hf.names import NameRule, extra_state_keys, name_table
from megatron_longpo.hf.rope import rope_parameters
from megatron_longpo.hf.sidecar import FORMAT_VERSION, HF_FOLDER, Identity, copy_hf_files, write_identity
from megatron_longpo.hf.source import check_source
from megatron_longpo.hf.tokenizer import complete_tokenizer, usable_tokenizer
from megatron_longpo.hf.torch_dist import Chunk, write_checkpoint
from megatron_longpo.hf.weights import DTYPES, SafetensorsFolder, dtype_label, read_checked
from megatron_longpo.strict_json import read_json_object

# What Megatron's load_checkpoint (megatron/training/checkpointing.py, 0.19) looks for beside the tensors. No ``args``:
# they would be a pickled Namespace of one run; the shape of the model comes from hf/config.json.
_COMMON_STATE = {"checkpoint_version": 3.0, "iteration": 0, "content_metadata": {"singleton_local_shards": False}}

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from megatron_longpo.hf.config import Architecture
    from megatron_longpo.model.rope_parameters import RopeParameters

_EMBEDDING = "model.embed_tokens.weight"


def import_hf(
    hf: Path,
    output: Path,
    dtype: str = "as-is",
    chat_template: Path | None = None,
    verify: Callable[[Path], None] | None = None,
) -> Identity:
    """Write the Hugging Face model in ``hf`` as a Megatron checkpoint folder ``output``.

    Args:
        hf: folder with config.json, safetensors and tokenizer.
        output: must not exist, or be empty; appears only when complete.
        dtype: ``fp32``, ``bf16``, ``fp16``, or ``as-is`` for what each tensor is stored in.
        chat_template: a Jinja file that takes the place of the folder's template in ``output/hf``.
        verify: called with the finished folder before it is put into place; if it raises, nothing is written.

    Raises:
        UserError: the model, its files, a value in them or the template is not usable.
        FileExistsError: ``output`` is not empty.
    """
    model = open_model(hf, output, dtype, chat_template)
    with atomic_directory(output) as folder:
        copy_hf_files(hf, folder / HF_FOLDER)
        complete_tokenizer(folder / HF_FOLDER, model.tokenizer, model.template)
        (folder / RELEASE).mkdir()
        weights, dtypes, shape = model.weights, model.dtypes, model.shape
        source = _Source(weights, dtypes)
        chunks = _chunks(name_table(shape), shape.num_layers, source)
        with source.progress:
            write_checkpoint(folder / RELEASE, chunks, extra_state_keys(shape), _COMMON_STATE)
        identity = Identity(
            format_version=FORMAT_VERSION,
            weights_sha256=source.fingerprint.hexdigest(),
            tokenizer_fingerprint=tokenizer_fingerprint(model.tokenizer),
            num_parameters=sum(prod(weights.shape(name)) for name in dtypes),
            dtype=dtype_label(dtypes.values()),
            rope=model.rope,
        )
        write_identity(folder, identity)
        (folder / TRACKER_FILE).write_text(RELEASE, encoding="ascii")
        if verify is not None:
            verify(folder)
    return identity


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A Hugging Face folder that can be imported; no weight is read yet."""

    shape: "Architecture"
    rope: "RopeParameters"
    tokenizer: "PreTrainedTokenizerFast"
    template: str | None
    weights: SafetensorsFolder
    dtypes: dict[str, torch.dtype]
    """In which each tensor is to be stored, by its Hugging Face name."""


def open_model(hf: Path, output: Path, dtype: str = "as-is", chat_template: Path | None = None) -> OpenModel:
    """Refuse before any work what Megatron would compute differently, or the export could not take over.

    Raises:
        UserError, FileExistsError: as `import_hf`, but for values of weights and for ``output``.
    """
    if not hf.is_dir():
        raise UserError(f"--hf {hf}: no such folder; give a Hugging Face folder")
    refuse_inside(output, hf)
    template = read_chat_template(chat_template) if chat_template else None
    config = read_json_object(hf / "config.json")
    megatron_options(config)
    check_source(hf)
    front_matter(hf)
    read_generation_config(hf)
    shape = architecture(config)
    tokenizer = usable_tokenizer(hf, template, chat_template)
    _check_vocabulary(vocabulary_size(tokenizer), shape.vocab_size)
    weights = SafetensorsFolder(hf)
    rules = name_table(shape)
    names = _check_names(weights, rules, shape.num_layers)
    dtypes = {name: DTYPES.get(dtype, weights.dtype(name)) for name in names}
    _check_dtypes(weights, rules, shape.num_layers, dtypes)
    return OpenModel(shape, rope_parameters(config), tokenizer, template, weights, dtypes)


class _Source:
    """Reads each tensor once, counted by the progress bar and taken into the fingerprint."""

    def __init__(self, weights: SafetensorsFolder, dtypes: dict[str, torch.dtype]) -> None:
        self._weights = weights
        self.dtypes = dtypes
        self.fingerprint = Fingerprint()
        num_bytes = sum(prod(weights.shape(name)) * dtype.itemsize for name, dtype in dtypes.items())
        self.progress = tqdm(total=num_bytes, desc="import-hf", unit="B", unit_scale=True)

    def joined(self, rule: NameRule, layer: int) -> Tensor:
        parts = [read_checked(self._weights, name, self.dtypes[name]) for name in rule.hf_names(layer)]
        for name, part in zip(rule.hf_names(layer), parts, strict=True):
            self.fingerprint.add(name, part)
            self.progress.update(part.nbytes)
        return rule.join(parts)


def _chunks(rules: list[NameRule], num_layers: int, source: _Source) -> Iterator[Chunk]:
    for rule in rules:
        box = rule.joined_shape
        dtype = source.dtypes[rule.hf_names(0)[0]]
        if not rule.per_layer:
            yield Chunk(rule.megatron, box, (0,) * len(box), box, dtype, partial(source.joined, rule, 0))
            continue
        for layer in range(num_layers):
            offsets = (layer, *(0 for _ in box))
            make = partial(source.joined, rule, layer)
            yield Chunk(rule.megatron, (num_layers, *box), offsets, (1, *box), dtype, make)


def _check_names(weights: SafetensorsFolder, rules: list[NameRule], num_layers: int) -> list[str]:
    """The names to import, after checking that they are there, and nothing else is, with the right shapes."""
    needed = {
        name: shape
        for rule in rules
        for layer in range(num_layers if rule.per_layer else 1)
        for name, shape in zip(rule.hf_names(layer), rule.hf_shapes, strict=True)
    }
    _rename(weights, needed.keys())
    present = {name for name in weights.names() if not name.endswith("rotary_emb.inv_freq")}
    missing, surplus = sorted(needed.keys() - present), sorted(present - needed.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{weights.folder}: tensor {missing[0]}{more} is missing; config.json asks for it")
    if surplus == ["lm_head.weight"]:
        _check_tied_head(weights)
    elif surplus:
        more = f" (and {len(surplus) - 1} more)" if len(surplus) > 1 else ""
        raise UserError(
            f"{weights.where(surplus[0])}: tensor {surplus[0]}{more} is not part of the model in config.json; "
            "check model_type and num_hidden_layers"
        )
    for name, shape in needed.items():
        if weights.shape(name) != shape:
            raise UserError(
                f"{weights.where(name)}: tensor {name} has shape {list(weights.shape(name))}, config.json asks for "
                f"{list(shape)}"
            )
    return list(needed)


def _rename(weights: SafetensorsFolder, needed: Set[str]) -> None:
    """Find tensors under the other names that transformers loads them by.

    A model that was saved without its output layer has names without ``model.``, and the one tensor of tied embeddings
    may stand under the output layer's name.
    """
    for stored in weights.names():
        if f"model.{stored}" in needed and f"model.{stored}" not in weights.names():
            weights.rename(stored, f"model.{stored}")
    present = weights.names()
    is_tied = "lm_head.weight" not in needed
    if is_tied and "lm_head.weight" in present and _EMBEDDING not in present:
        weights.rename("lm_head.weight", _EMBEDDING)


def _check_vocabulary(num_ids: int, num_rows: int) -> None:
    if num_ids > num_rows:
        raise UserError(
            f"the tokenizer has token ids up to {num_ids - 1}, config.json says vocab_size {num_rows}; it is "
            "of another model, or the embedding was not resized when tokens were added"
        )


def _check_dtypes(
    weights: SafetensorsFolder, rules: list[NameRule], num_layers: int, dtypes: dict[str, torch.dtype]
) -> None:
    """The parts that one global tensor is made of, over all layers, must have one dtype."""
    for rule in rules:
        names = [name for layer in range(num_layers if rule.per_layer else 1) for name in rule.hf_names(layer)]
        other = next((name for name in names if dtypes[name] != dtypes[names[0]]), None)
        if other is not None:
            raise UserError(
                f"{weights.where(other)}: tensor {other} is {dtype_label([dtypes[other]])}, {names[0]} is "
                f"{dtype_label([dtypes[names[0]]])}, and Megatron stores them as one; choose a --dtype"
            )


def _check_tied_head(weights: SafetensorsFolder) -> None:
    """A tied model may store its output layer once more; it must be the embedding then."""
    if not torch.equal(weights.read("lm_head.weight"), weights.read(_EMBEDDING)):
        raise UserError(
            f"{weights.where('lm_head.weight')}: lm_head.weight differs from the embedding, but config.json says "
            "tie_word_embeddings; set it to false if the output layer was trained by itself"
        )
