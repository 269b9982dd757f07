"""The tokenizer that travels with a checkpoint: whoever loads ``DIR/hf`` or the exported model gets the same ids."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longpo.data.chat import check_chat_template
from megatron_longpo.data.sentencepiece_model import is_bare
from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError
from megatron_longpo.files import atomic_file
from megatron_longpo.hf.sidecar import write_json
from megatron_longpo.strict_json import read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TEMPLATE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"


def usable_tokenizer(folder: Path, chat_template: str | None, template_file: Path | None) -> "PreTrainedTokenizerFast":
    """The tokenizer of a Hugging Face folder, with the given chat template if there is one.

    Args:
        chat_template: Jinja source that takes the place of the folder's template.
        template_file: where that was read, for errors.

    Raises:
        UserError: no usable tokenizer, or a given template that no pair can be rendered with.
    """
    tokenizer = load_tokenizer(folder, chat_template)
    if chat_template is not None:
        check_chat_template(tokenizer, template_file)
    return tokenizer


def complete_tokenizer(folder: Path, tokenizer: "PreTrainedTokenizerFast", chat_template: str | None) -> None:
    """Write into ``folder``, a copy of the folder that ``tokenizer`` was loaded from, what the copy lacks.

    That is ``tokenizer.json`` beside a bare sentencepiece model, which transformers would convert to other ids (see
    `data/sentencepiece_model.py`), and the given chat template.

    Raises:
        UserError: settings beside a bare model change its ids once there is a ``tokenizer.json``.
    """
    if chat_template is not None:
        _write_template(folder, chat_template)
    if is_bare(folder):
        _write_converted(folder, tokenizer)


def _write_template(folder: Path, chat_template: str) -> None:
    """As transformers 5 keeps it: in a file of its own, and no longer in tokenizer_config.json."""
    with atomic_file(folder / _TEMPLATE) as partial:
        partial.write_text(chat_template, encoding="utf-8")
    settings = _settings(folder)
    if settings.pop("chat_template", None) is not None:
        write_json(folder / _SETTINGS, settings)


def _write_converted(folder: Path, tokenizer: "PreTrainedTokenizerFast") -> None:
    """What the folder's own settings say stays; what they leave open is written as it was taken."""
    settings = _settings(folder)
    tokenizer.save_pretrained(str(folder))  # pyright: ignore[reportUnknownMemberType]
    write_json(folder / _SETTINGS, _settings(folder) | settings)
    if tokenizer_fingerprint(load_tokenizer(folder)) != tokenizer_fingerprint(tokenizer):
        raise UserError(
            f"{_SETTINGS}: with these settings transformers reads the sentencepiece model otherwise once it is saved as"
            " tokenizer.json; give a folder that has a tokenizer.json"
        )


def _settings(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else {}
