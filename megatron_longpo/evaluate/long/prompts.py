"""What a model is asked in a long-context task, and the middle of it left out where it is too long.

RULER's prompts are made once (ruler.py) and kept as JSON lines::

    {"id": "0", "text": "...", "answer_start": "The special magic number ... is", "references": ["7416"],
     "max_new_tokens": 128, "length": 4091}
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from megatron_longpo import strict_json
from megatron_longpo.data.tokenise import codec_of
from megatron_longpo.data.tokenizer import chat_template_of
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Request, Sampling
from megatron_longpo.generate.engines.prompt_length import prompt_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question, with all that it takes to ask and to score it."""

    id: str
    text: str
    """The user's message."""
    answer_start: str = ""
    """The model continues it."""
    references: tuple[str, ...]
    options: tuple[str, ...] = ()
    """Texts of A to D of a multiple choice."""
    max_new_tokens: int
    length: int = 0
    """Tokens of the whole prompt, the template's and the answer's room among them; 0 if not counted yet."""

    @property
    def sha256(self) -> str:
        """16 hexadecimal digits that tell it from other prompts, before anything is cut from it."""
        return hashlib.sha256(f"{self.text}\0{self.answer_start}".encode()).hexdigest()[:16]

    def request(self) -> Request:
        """Greedy, with the policy's RoPE where an engine has two."""
        sampling = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=self.max_new_tokens)
        messages = ({"role": "user", "content": self.text},)
        return Request(messages=messages, sampling=sampling, seed=0, context="long", answer_start=self.answer_start)


def prompt_length(tokenizer: "PreTrainedTokenizerFast", prompt: Prompt) -> int:
    """Tokens that a model needs for a prompt: the rendered conversation, the answer's beginning, and its room.

    Raises:
        UserError: the chat template fails.
    """
    return prompt_tokens(tokenizer, prompt.request().messages, prompt.answer_start) + prompt.max_new_tokens


def cut_middle(tokenizer: "PreTrainedTokenizerFast", prompt: Prompt, limit: int) -> Prompt:
    """The prompt with its length; of a longer one as many tokens of its beginning as of its end, together ``limit``.

    InfiniteBench cuts so (src/eval_utils.py: truncate_input), because the question stands at the end.

    Args:
        limit: tokens, the template's and the answer's room among them.

    Raises:
        UserError: the template and the answer alone are longer.
    """
    length = prompt.length or prompt_length(tokenizer, prompt)
    if length <= limit:
        return replace(prompt, length=length)
    codec: Any = codec_of(tokenizer, chat_template_of(tokenizer)).backend
    offsets = codec.encode(prompt.text, add_special_tokens=False).offsets
    kept = len(offsets) - (length - limit)
    while kept > 1:
        half = kept // 2
        shorter = replace(prompt, text=prompt.text[: offsets[half][0]] + prompt.text[offsets[-half][0] :])
        length = prompt_length(tokenizer, shorter)
        if length <= limit:
            return replace(shorter, length=length)
        kept -= length - limit  # where the halves meet, words may merge otherwise
    raise UserError(f"{limit} tokens hold not even the chat template and the {prompt.max_new_tokens} of the answer")


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write JSON lines; the caller makes the file atomic."""
    with path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            fields = {name: value for name, value in asdict(prompt).items() if value not in ((), "")}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def read_prompts(path: Path) -> Iterator[Prompt]:
    """Yield the prompts of a file that `write_prompts` wrote.

    Raises:
        UserError: the file cannot be read, or a line is no prompt; with file and line.
    """
    for where, fields in strict_json.read_lines(path, "remove the file and make it again with evaluate make-ruler"):
        if fault := _fault(fields):
            raise UserError(f"{where}: no prompt ({fault}); remove the file and run make-ruler again")
        values: dict[str, Any] = {
            name: tuple(value) if strict_json.is_array(value) else value for name, value in fields.items()
        }
        yield Prompt(**values)


def _fault(fields: object) -> str | None:
    if not strict_json.is_object(fields):
        return "no object"
    types = get_type_hints(Prompt)
    needed = ("id", "text", "references", "max_new_tokens", "length")
    if unknown := next((name for name in (*fields, *needed) if name not in types or name not in fields), None):
        return f'"{unknown}" is missing or not known'
    for name, value in fields.items():
        kind = types[name]
        if get_args(kind):
            if not strict_json.is_array(value) or not all(type(one) is str for one in value):
                return f'"{name}" is no list of texts'
        elif type(value) is not kind:
            return f'"{name}" is of the type {type(value).__name__}'
    return None
