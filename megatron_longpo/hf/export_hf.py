"""Megatron distributed checkpoint -> Hugging Face folder; the optimizer's tensors are never read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from tqdm import tqdm

from megatron_longpo.data.tokenizer import chat_template_of, load_tokenizer
from megatron_longpo.files import atomic_directory, refuse_inside
from megatron_longpo.hf.card import CARD, CardFacts, base_model, front_matter, model_card
from megatron_longpo.hf.folder import open_checkpoint, step_of
from megatron_longpo.hf.generation import complete_generation_config, read_generation_config
from megatron_longpo.hf.safetensors_file import write_safetensors
from megatron_longpo.hf.sidecar import HF_FOLDER, copy_hf_files, read_hf_config, write_hf_config
from megatron_longpo.hf.training_record import metrics_at, training_record_at
from megatron_longpo.hf.weights import DTYPES, INDEX_FILE, CheckpointWeights, read_checked

_MAX_SHARD_BYTES = 5_000_000_000


def export_hf(
    checkpoint: Path,
    output: Path,
    iteration: int | None = None,
    dtype: str = "as-is",
    base: str | None = None,
    verify: Callable[[Path], None] | None = None,
    evaluation: str = "",
) -> int:
    """Write the weights of a Megatron checkpoint as a Hugging Face folder that transformers loads, with a model card.

    Args:
        checkpoint: what ``import-hf`` wrote, or a training program's ``--save`` folder.
        output: must not exist, or be empty; appears only when complete.
        iteration: which ``iter_*`` to take; None for the latest.
        dtype: ``fp32``, ``bf16``, ``fp16``, or ``as-is`` for what each tensor is stored in.
        base: name on the Hub of the model that was imported, for the card; None for what its own files say.
        verify: called with the finished folder before it is put into place; if it raises, nothing is written.
        evaluation: Markdown for the card's section "Evaluation"; empty: it has none.

    Returns:
        Bytes of weights written.

    Raises:
        UserError: no such checkpoint, it is damaged or of another model, a weight is not finite, or what the card
            is written from is broken.
        FileExistsError: ``output`` is not empty.
    """
    refuse_inside(output, checkpoint)
    config = read_hf_config(checkpoint)
    config.pop("transformers_weights", None)  # the name of a file in the folder that was imported
    generation = read_generation_config(checkpoint / HF_FOLDER)
    weights = open_checkpoint(checkpoint, iteration)
    dtypes = {name: DTYPES.get(dtype, weights.dtype(name)) for name in weights.names()}
    tokenizer = load_tokenizer(checkpoint / HF_FOLDER)
    name, step = output.resolve().name, step_of(checkpoint, iteration)
    card = _card(checkpoint, step, name, config, chat_template_of(tokenizer) is not None, base, evaluation)
    with atomic_directory(output) as folder:
        copy_hf_files(checkpoint / HF_FOLDER, folder)
        (folder / CARD).write_text(card, encoding="utf-8")  # in the place of the imported model's own
        _record_dtype(config, set(dtypes.values()))
        write_hf_config(folder, config)
        complete_generation_config(folder, generation, tokenizer)
        num_bytes = _write_safetensors(folder, weights, dtypes)
        if verify is not None:
            verify(folder)
    return num_bytes


def _write_safetensors(folder: Path, weights: CheckpointWeights, dtypes: dict[str, torch.dtype]) -> int:
    """Write shards of at most 5 GB, and their index if there are several; two tensors are in memory at a time."""
    empty = {name: torch.empty(weights.shape(name), dtype=kind, device="meta") for name, kind in dtypes.items()}
    shards = split_torch_state_dict_into_shards(empty, max_shard_size=_MAX_SHARD_BYTES)
    num_bytes = sum(tensor.nbytes for tensor in empty.values())
    with tqdm(total=num_bytes, desc="export-hf", unit="B", unit_scale=True) as progress:

        def make(name: str) -> Tensor:
            tensor = read_checked(weights, name, dtypes[name])
            progress.update(tensor.nbytes)
            return tensor

        for filename, names in shards.filename_to_tensors.items():
            write_safetensors(folder / filename, {name: (dtypes[name], weights.shape(name)) for name in names}, make)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return num_bytes


def _card(
    checkpoint: Path,
    step: int,
    name: str,
    config: dict[str, Any],
    has_chat_template: bool,
    base: str | None,
    evaluation: str,
) -> str:
    source = front_matter(checkpoint / HF_FOLDER)
    facts = CardFacts(
        name=name,
        config=config,
        num_steps=step,
        stages=training_record_at(checkpoint, step),
        metrics=metrics_at(checkpoint, step),
        source=source,
        base_model=base_model(base, config, source),
        has_chat_template=has_chat_template,
        evaluation=evaluation,
    )
    return model_card(facts)


def _record_dtype(config: dict[str, Any], dtypes: set[torch.dtype]) -> None:
    """Let the configuration name the dtype that is written: ``from_pretrained`` takes it from there."""
    if len(dtypes) == 1:
        field = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[field] = str(dtypes.pop()).removeprefix("torch.")
