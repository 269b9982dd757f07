"""``generation_config.json`` of an exported folder: there, and it knows where an answer ends."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longpo.data.tokenise import end_of_turn_id
from megatron_longpo.errors import UserError
from megatron_longpo.hf.sidecar import write_json
from megatron_longpo.strict_json import is_array, read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GENERATION_CONFIG = "generation_config.json"


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """``FOLDER/generation_config.json``, None if there is none.

    Raises:
        UserError: it is no JSON object, or its ``eos_token_id`` no token id and no list of them.
    """
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return None
    config = read_json_object(path)
    ends = config.get("eos_token_id")
    if ends is not None and any(type(end) is not int for end in (ends if is_array(ends) else [ends])):
        raise UserError(f"{path}: eos_token_id is {ends!r}; it must be a token id or a list of them: correct it")
    return config


def complete_generation_config(
    folder: Path, stored: dict[str, Any] | None, tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """Make ``FOLDER/generation_config.json`` if there is none, and count the end of turn among its ends of sequence.

    A model that was trained to end its answers with a token that generation does not know never stops. Everything else
    in an existing file stays as it is, also a combination of values that transformers would not save.

    Args:
        folder: with its ``config.json``.
        stored: what `read_generation_config` says of the folder.
        tokenizer: the folder's.
    """
    config = _from_model_config(folder) if stored is None else dict(stored)
    ends = _ends_of_sequence(config, read_json_object(folder / "config.json"))
    end_of_turn = _end_of_turn(tokenizer)
    if end_of_turn is not None and end_of_turn not in ends:
        ends.append(end_of_turn)
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if config != stored:
        write_json(folder / GENERATION_CONFIG, config)


def _from_model_config(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig, GenerationConfig

    config_class: Any = AutoConfig
    made = GenerationConfig.from_model_config(config_class.from_pretrained(folder))  # pyright: ignore[reportUnknownMemberType]
    config = made.to_diff_dict()
    config.pop("_from_model_config", None)  # transformers would feel free to make it again, without what is added
    return config


def _ends_of_sequence(generation_config: dict[str, Any], model_config: dict[str, Any]) -> list[int]:
    ends = generation_config.get("eos_token_id")
    if ends is None:
        ends = model_config.get("eos_token_id")
    if ends is None:
        return []
    return list(ends) if is_array(ends) else [ends]


def _end_of_turn(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """None for a model without a chat template that says it."""
    try:
        return end_of_turn_id(tokenizer)
    except UserError:
        return None
