"""What travels beside the weights: ``DIR/hf`` (configuration, tokenizer, licence) and ``DIR/longpo.json`` (identity).

``import-hf`` writes both, training copies them into its own ``--save`` folder with the RoPE it trains, ``export-hf``
hands ``DIR/hf`` back. So a checkpoint folder is self-contained: nothing refers to the folder it came from.
"""

import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_longpo.data.manifest import Manifest
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_file
from megatron_longpo.hf.rope import checked, with_rope
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.strict_json import read_json_object

FORMAT_VERSION = 2
IDENTITY_FILE = "longpo.json"
HF_FOLDER = "hf"

_CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Everything else in a Hugging Face folder is small and belongs to the model: tokenizer, templates, licence, README.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
_CODE_SUFFIXES = (".py", ".pyc", ".pkl", ".pickle", ".ckpt")
"""A model is data: programs, and pickles, which are programs too, do not travel."""
_LEFT_BEHIND = (".", "adapter_", "trainer_state", "training_args")
"""What a training program or a merged adapter left: with peft, transformers would take the folder for an adapter."""
_SUBFOLDERS = ("additional_chat_templates",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a checkpoint folder was imported from."""

    format_version: int
    weights_sha256: str
    """`fingerprint.Fingerprint` of the imported weights, by their Hugging Face names, as stored."""
    tokenizer_fingerprint: str
    """`data.render.tokenizer_fingerprint` of the tokenizer in ``hf/``."""
    num_parameters: int
    """Padding is not counted; tied embeddings count once."""
    dtype: str
    """``fp32``, ``bf16``, ``fp16`` or ``mixed``."""
    rope: RopeParameters
    """RoPE of the imported model; training may use another, the reference never does."""


def write_identity(directory: Path, identity: Identity) -> None:
    """Write ``DIRECTORY/longpo.json``, whole or not at all."""
    with atomic_file(directory / IDENTITY_FILE) as partial:
        partial.write_text(json.dumps(asdict(identity), indent=2) + "\n", encoding="utf-8")


def read_identity(directory: Path) -> Identity:
    """The identity in ``DIRECTORY/longpo.json``.

    Raises:
        UserError: the folder was not written by ``import-hf``, or by another format version.
    """
    path = directory / IDENTITY_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; make the folder with megatron-longpo import-hf")
    stored = read_json_object(path)
    if stored.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {stored.get('format_version')!r}, needs {FORMAT_VERSION}; import it again"
        )
    if isinstance(stored.get("rope"), dict):
        stored["rope"] = checked(stored["rope"], f"{path}: rope")
    for field in fields(Identity):
        if type(stored.get(field.name)) is not field.type:
            raise UserError(f"{path}: {field.name} is {stored.get(field.name)!r}; restore the file or import again")
    return Identity(**{field.name: stored[field.name] for field in fields(Identity)})


def check_tokenizer(dataset: str, manifest: Manifest, identity: Identity, checkpoint: Path) -> None:
    """``dataset``, as an error names it, holds the token ids of the model in ``checkpoint``.

    Raises:
        UserError: it was built with another tokenizer or chat template.
    """
    if manifest.tokenizer_fingerprint != identity.tokenizer_fingerprint:
        raise UserError(
            f"{dataset} was built with another tokenizer or chat template (fingerprint "
            f"{manifest.tokenizer_fingerprint[:12]}) than that of the checkpoint {checkpoint} "
            f"({identity.tokenizer_fingerprint[:12]}); build it again with --tokenizer {checkpoint}/hf and without "
            "--chat-template, or import the model with the template of the dataset (import-hf --chat-template)"
        )


def read_hf_config(directory: Path) -> dict[str, Any]:
    """``DIRECTORY/hf/config.json``.

    Raises:
        UserError: the folder holds none, or it is not a JSON object.
    """
    path = directory / HF_FOLDER / _CONFIG
    if not path.is_file():
        raise UserError(f"{path} does not exist; make the folder with megatron-longpo import-hf")
    return read_json_object(path)


def copy_hf_files(source: Path, target: Path) -> None:
    """Copy all but weights and programs from one Hugging Face folder into another; each file whole or not at all.

    Hidden files and unknown subfolders (``original/`` weights, caches) are left behind.
    """
    for folder in (source, *(source / name for name in _SUBFOLDERS)):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            left = path.name.startswith(_LEFT_BEHIND) or path.name.endswith(_WEIGHT_SUFFIXES + _CODE_SUFFIXES)
            if path.is_file() and not left:
                with atomic_file(target / path.relative_to(source)) as partial:
                    shutil.copyfile(path, partial)


def copy_sidecar(
    source_dir: Path, target_dir: Path, rope: RopeParameters | None, max_position_embeddings: int | None
) -> None:
    """Copy ``hf/`` and ``longpo.json`` from one checkpoint folder into another, with the RoPE that is trained.

    The identity comes last, so a folder that has one is complete; copying again changes nothing. Source and target may
    be the same folder.

    Args:
        rope: what the exported ``config.json`` shall say, None to keep the source's.
        max_position_embeddings: likewise, in tokens.

    Raises:
        UserError: the source is no imported folder, or the target belongs to another model.
    """
    identity = read_identity(source_dir)
    config = read_hf_config(source_dir)
    if (target_dir / IDENTITY_FILE).exists() and read_identity(target_dir) != identity:
        raise UserError(
            f"{target_dir} belongs to a model imported from other weights than {source_dir}; save in another folder"
        )
    if rope is not None:
        config = with_rope(config, rope)
    num_positions = config.get("max_position_embeddings", 0)
    if max_position_embeddings is not None:
        config["max_position_embeddings"] = max_position_embeddings
    if source_dir.resolve() != target_dir.resolve():
        copy_hf_files(source_dir / HF_FOLDER, target_dir / HF_FOLDER)
    if max_position_embeddings is not None and max_position_embeddings > num_positions:
        _lengthen_tokenizer(target_dir / HF_FOLDER / _TOKENIZER_CONFIG, max_position_embeddings)
    write_hf_config(target_dir / HF_FOLDER, config)
    write_identity(target_dir, identity)


def write_hf_config(folder: Path, config: dict[str, Any]) -> None:
    """Write ``FOLDER/config.json``, whole or not at all."""
    write_json(folder / _CONFIG, config)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _lengthen_tokenizer(path: Path, num_tokens: int) -> None:
    """Let the tokenizer's own limit follow the model's: inference servers take the lower of the two."""
    config = read_json_object(path) if path.is_file() else {}
    limit = config.get("model_max_length")
    if isinstance(limit, int | float) and limit < num_tokens:
        write_json(path, config | {"model_max_length": num_tokens})
