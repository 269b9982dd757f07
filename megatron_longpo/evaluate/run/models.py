"""The models of a run: folders in the Hugging Face layout, and what their configurations say."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longpo.data.chat import check_chat_template
from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engines.weights import weights_sample
from megatron_longpo.strict_json import read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
"""Of generation_config.json: what has no effect. Sampling has none under greedy decoding; it is named all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of ``--models``."""

    name: str
    order: int
    """Its place there, from 0."""
    folder: Path
    weights: str
    """Fingerprint (`weights_sample`)."""
    context: int
    """Positions, in tokens: max_position_embeddings."""
    dtype: str
    """Of the checkpoint."""
    defaults: str
    """What the folder would have generation do, and is not done: like ``repetition_penalty 1.05``; empty if nothing."""
    tokenizer: "PreTrainedTokenizerFast"
    fingerprint: str
    """The tokenizer's, its chat template included."""


def open_models(given: Sequence[tuple[str, Path]], chat_template: str | None) -> tuple[Model, ...]:
    """Read what there is to know before anything is loaded.

    Args:
        given: (name, folder); the others are compared with the first.
        chat_template: Jinja source in place of the folders' own.

    Raises:
        UserError: a name cannot be one, or is given twice; a folder holds no model, no tokenizer, or no usable chat
            template; two folders hold the same model.
    """
    names = [name for name, _ in given]
    if bad := next((name for name in names if not _NAME.fullmatch(name)), None):
        raise UserError(f"--models {bad}=...: a name has letters, digits, points, hyphens and underscores only")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--models gives the name {twice} twice; each model needs its own")
    models = tuple(_open(name, order, folder, chat_template) for order, (name, folder) in enumerate(given))
    for one in models:
        same = models[[other.weights for other in models].index(one.weights)]
        if same is not one:
            raise UserError(
                f"--models: {same.name} and {one.name} are the same model, by config.json and weights; leave one out"
            )
    return models


def _open(name: str, order: int, folder: Path, chat_template: str | None) -> Model:
    weights = weights_sample(folder)
    config = read_json_object(folder / "config.json")
    context = config.get("max_position_embeddings")
    if type(context) is not int or context < 1:
        raise UserError(f"{folder}/config.json: no max_position_embeddings, so its context length is unknown; add it")
    tokenizer = load_tokenizer(folder, chat_template)
    check_chat_template(tokenizer, None if chat_template is None else "--chat-template")
    return Model(
        name=name,
        order=order,
        folder=folder,
        weights=weights,
        context=context,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
        defaults=_defaults(folder / "generation_config.json"),
        tokenizer=tokenizer,
        fingerprint=tokenizer_fingerprint(tokenizer),
    )


def _defaults(path: Path) -> str:
    fields = read_json_object(path) if path.is_file() else {}
    given = {name: fields[name] for name in _NEUTRAL if name in fields and fields[name] is not None}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value != _NEUTRAL[name])
