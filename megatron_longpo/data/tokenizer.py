"""Tokenizers: loaded from a local folder, with its chat template or another, and named by a fingerprint."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from megatron_longpo.data.sentencepiece_model import is_bare, load_bare
from megatron_longpo.errors import UserError, one_line

if TYPE_CHECKING:  # transformers takes seconds to import; whoever only reads a dataset does not wait for it
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(directory: Path, chat_template: str | None = None) -> "PreTrainedTokenizerFast":
    """Load the fast tokenizer of a Hugging Face folder; no network, no code from the folder.

    A folder with nothing but a sentencepiece model will do (`sentencepiece_model.py`). A chat template is not required
    here (base models have none); `render.check_chat_template` requires it.

    Args:
        chat_template: Jinja source that takes the place of the folder's template (`read_chat_template`).

    Raises:
        UserError: no such folder, no loadable tokenizer in it, or one without the fast (Rust) implementation,
            which alone knows the character offsets that spans are computed from.
    """
    from transformers import PreTrainedTokenizerFast

    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; give a Hugging Face folder that holds a tokenizer")
    try:
        tokenizer = load_bare(directory) if is_bare(directory) else _load(directory)
    except UserError:
        raise
    except Exception as error:  # whatever a broken or foreign folder makes the loaders raise is the folder's fault
        raise UserError(
            f"{directory}: no tokenizer can be loaded ({one_line(error)}); the folder needs tokenizer.json and"
            " tokenizer_config.json, or a sentencepiece tokenizer.model; code from the folder is never run"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"{directory}: {type(tokenizer).__name__} is not a fast tokenizer, so it knows no character offsets;"
            " give a folder with a tokenizer.json"
        )
    if len(tokenizer.get_vocab()) < 2:  # transformers 5 makes an empty tokenizer where the vocabulary files are missing
        raise UserError(f"{directory}: the tokenizer has an empty vocabulary; the folder needs its tokenizer.json")
    if chat_template is not None:
        untyped: Any = tokenizer
        untyped.chat_template = chat_template
    return tokenizer


def read_chat_template(path: Path) -> str:
    """The Jinja source in a file; `render.check_chat_template` says whether it can be used.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is empty.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--chat-template {path}: {error.strerror}; give a file with a Jinja chat template") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--chat-template {path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    if not source.strip():
        raise UserError(f"--chat-template {path}: the file is empty; give a file with a Jinja chat template")
    return source


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Sha256 (hex) of all that decides which token ids a conversation gets.

    That is the serialised fast tokenizer (vocabulary, merges, normaliser, added tokens, ...) without its padding and
    truncation state, which callers change and rendering ignores; the chat template (None for a base model); and those
    special tokens that the template calls by name. The same tokenizer saved and loaded again has the same fingerprint.
    """
    backend = cast(dict[str, Any], json.loads(tokenizer.backend_tokenizer.to_str()))
    backend.pop("padding")
    backend.pop("truncation")
    template = chat_template_of(tokenizer)
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name in (template or "")}
    content = json.dumps([backend, template, named], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def chat_template_of(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """The Jinja source of the chat template, or None; of several named ones, the one named ``default``.

    Raises:
        UserError: there are several and none is named ``default``.
    """
    untyped: Any = tokenizer
    if not untyped.chat_template:
        return None
    try:
        return untyped.get_chat_template()
    except ValueError as error:
        raise UserError(
            f"{untyped.name_or_path}: the tokenizer has the chat templates {', '.join(untyped.chat_template)} and none"
            " named default; name the one to use so"
        ) from error


def vocabulary_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """One more than the largest token id, added tokens included; ids may have gaps, so a count can be too small."""
    return max(tokenizer.get_vocab().values()) + 1


def _load(directory: Path) -> object:
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    return loader.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
