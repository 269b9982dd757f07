"""A Hugging Face folder as it was downloaded: whole, without code, and readable by transformers' own classes."""

from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError, one_line
from megatron_longpo.strict_json import read_json_object

_LARGEST_POINTER = 1024  # bytes; the format says so


def check_source(hf: Path) -> None:
    """Refuse a folder whose files cannot travel, before any work.

    Raises:
        UserError: a file was not downloaded (a link to nowhere, a Git LFS pointer); a file of settings is no JSON
            object, or names code of the folder's own (``auto_map``); transformers does not read ``config.json``.
    """
    for path in sorted(hf.iterdir()):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: a link to {path.readlink()}, which does not exist; download the folder again")
        if path.is_file() and _is_lfs_pointer(path):
            raise UserError(f"{path}: a Git LFS pointer and not the file itself; run git lfs pull, or download it")
        if path.is_file() and path.name.endswith("config.json"):
            _refuse_code(path)
    _check_transformers_reads(hf)


def _is_lfs_pointer(path: Path) -> bool:
    if path.stat().st_size > _LARGEST_POINTER:
        return False
    content = path.read_bytes()
    return content.startswith(b"version ") and b"\noid sha256:" in content


def _refuse_code(path: Path) -> None:
    """Refuse code of tokenizers and processors; `config.architecture` refuses that of models, wherever it is read."""
    auto_map = read_json_object(path).get("auto_map")
    if auto_map:
        raise UserError(
            f"{path}: auto_map is {auto_map}; code of a model folder is never run: remove the field if transformers'"
            " own class reads this folder the same"
        )


def _check_transformers_reads(hf: Path) -> None:
    """What its configuration class refuses would otherwise show only when the exported folder is used."""
    from transformers import AutoConfig

    try:
        config_class: Any = AutoConfig
        config_class.from_pretrained(hf, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a class makes of a wrong value
        raise UserError(
            f"{hf / 'config.json'}: transformers does not read it ({one_line(error)}); correct it"
        ) from error
