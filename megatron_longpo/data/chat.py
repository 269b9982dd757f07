"""A conversation as text: the tokenizer's own chat template, and the exact characters of the context and the answers.

Nothing is found by searching for marker strings. Where a text stands in the rendering is learnt from rendering the
conversation a second time with a one-character stand-in in its place: the two renderings agree up to the first
character of the text and from its last character on. The stand-in is a character that the text does not hold, so the
border is exact, whatever the text says.

Invariants (tests/unit/data/test_chat.py quotes them):
  1. every conversation that ends at a message is rendered as a prefix of the whole conversation;
  2. an answer is rendered as it is, or with white space removed around it, never rewritten;
  3. a response starts where the generation prompt ends if only white space lies between that and the answer (a model
     has to produce this white space: Mistral's template writes ``[/INST]`` + `` `` + answer), else with the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateSyntaxError

from megatron_longpo.data.tokenizer import chat_template_of
from megatron_longpo.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATES = "examples/templates"
"""The folder of this repository with templates to give with ``--chat-template``."""

TEMPLATE_DATE = "26 Jul 2024"
"""What a template that prints a date is told (Llama 3's own default), or a dataset would change with the day."""

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A conversation in the template's words; ranges are half-open and count characters of ``text``."""

    text: str
    context: tuple[int, int]
    """Where the context stands, without the instruction that follows it in the same message."""
    responses: tuple[tuple[int, int], ...]
    """Per answer: where the response starts, and where the answer's own text ends (its end of turn follows)."""


def render_text(
    tokenizer: "PreTrainedTokenizerFast", context: str, instructions: Sequence[str], answers: Sequence[str]
) -> RenderedText:
    """Render user ``context + "\\n\\n" + instruction 1``, assistant ``answer 1``, user ``instruction 2``, ...

    Raises:
        UserError: the template fails, is not prefix-stable, or rewrites the context or an answer (invariants 1 and 2).
    """
    messages: list[Message] = []
    prefixes: list[str] = []
    responses: list[tuple[int, int]] = []
    for instruction, answer in zip(instructions, answers, strict=True):
        content = instruction if messages else f"{context}\n\n{instruction}"
        messages.append({"role": "user", "content": content})
        prefixes.append(apply_template(tokenizer, messages))
        responses.append(_response_range(tokenizer, messages, prefixes[-1], answer))
        messages.append({"role": "assistant", "content": answer})
        prefixes.append(apply_template(tokenizer, messages))
    text = prefixes[-1]
    for prefix in prefixes:
        _require_prefix(prefix, text)
    return RenderedText(text, _context_range(tokenizer, prefixes[0], messages[0]["content"], context), tuple(responses))


def check_chat_template(tokenizer: "PreTrainedTokenizerFast", where: object = None) -> None:
    """Refuse a tokenizer whose chat template cannot be used for any pair; costs milliseconds.

    Args:
        where: what the error begins with, if the template is not the one in the tokenizer's folder.

    Raises:
        UserError: no chat template; one that depends on the day; or one that breaks an invariant of this file on a
            synthetic conversation of three turns.
    """
    untyped: Any = tokenizer
    where = where or untyped.name_or_path or "the tokenizer"
    template = chat_template_of(tokenizer)
    if template is None:
        raise UserError(
            f"{where}: the tokenizer has no chat template; use the one of an instruction-tuned model, or give a file"
            f" with --chat-template ({TEMPLATES} has some)"
        )
    if "strftime_now" in template and "date_string" not in template:
        raise UserError(
            f"{where}: the chat template prints the date of the day (strftime_now), so the dataset would change with"
            " it; write a fixed date into a copy of the template"
        )
    try:
        render_text(tokenizer, "A line.\nAnother.", ["Which?", "Why?", "Where?"], ["This one.", "Because.", "Here."])
        _check_generation_prompt(tokenizer)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_generation_prompt(tokenizer: "PreTrainedTokenizerFast") -> None:
    """A stored answer must follow what the model is asked with, or it is trained to answer after another header."""
    question = [{"role": "user", "content": "Which?"}]
    asked = apply_template(tokenizer, question, add_generation_prompt=True)
    answered = apply_template(tokenizer, [*question, {"role": "assistant", "content": "This one."}])
    if not answered.startswith(asked):
        at = max(0, num_common(asked, answered) - 12)
        raise UserError(
            f"the chat template's generation prompt ends in {asked[at:]!r}, but a stored answer is rendered "
            f"{answered[at : at + 40]!r}: the model would learn to answer after another header than it is asked with; "
            f"give a template that begins both alike with --chat-template ({TEMPLATES} has some)"
        )


def _response_range(
    tokenizer: "PreTrainedTokenizerFast", messages: list[Message], before: str, answer: str
) -> tuple[int, int]:
    """Where the response and the answer's text stand after ``before``, the rendering of ``messages``."""
    after = apply_template(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    probe = apply_template(tokenizer, [*messages, {"role": "assistant", "content": _stand_in(answer)}])
    _require_prefix(before, after)
    _require_prefix(before, probe)
    first, last = _changed_range(after[len(before) :], probe[len(before) :])
    start, end = len(before) + first, len(before) + last
    _require_verbatim(after[start:end], answer, "an answer")
    prompt = apply_template(tokenizer, messages, add_generation_prompt=True)
    if len(prompt) <= start and after.startswith(prompt) and not after[len(prompt) : start].strip():
        start = len(prompt)
    return start, end


def _context_range(tokenizer: "PreTrainedTokenizerFast", text: str, content: str, context: str) -> tuple[int, int]:
    """Where the context stands in ``text``, the rendering of the first user message ``content`` alone."""
    start, end = _changed_range(text, apply_template(tokenizer, [{"role": "user", "content": _stand_in(content)}]))
    rendered = text[start:end]
    _require_verbatim(rendered, content, "the first user message")
    # The template may have removed white space before the context; what follows the context is the instruction.
    num_removed = _num_leading_blanks(content) - _num_leading_blanks(rendered)
    return start, start + len(context) - num_removed


def apply_template(
    tokenizer: "PreTrainedTokenizerFast", messages: list[Message], add_generation_prompt: bool = False
) -> str:
    """The conversation in the template's words; raises UserError where the template fails."""
    untyped: Any = tokenizer
    try:
        text: object = untyped.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=TEMPLATE_DATE
        )
    except TemplateSyntaxError as error:
        raise UserError(f"line {error.lineno} of the chat template is not valid Jinja ({error.message})") from error
    except Exception as error:  # a template is a program of the user's: whatever it raises is a fault in their input
        raise UserError(f"the chat template fails on this conversation ({one_line(error)})") from error
    assert isinstance(text, str)
    return text


def begin_answer(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], answer_start: str) -> str:
    """The conversation with the beginning of its next answer, as a model has it before it that wrote this itself.

    Raises:
        UserError: the template fails, or rewrites the beginning.
    """
    question: list[Message] = [{"role": "user", "content": "Which?"}]  # `messages` may be megabytes
    asked = apply_template(tokenizer, question)
    answered = apply_template(tokenizer, [*question, {"role": "assistant", "content": answer_start}])
    _, end = _response_range(tokenizer, question, asked, answer_start)
    return apply_template(tokenizer, list(messages)) + answered[len(asked) : end]


def _stand_in(text: str) -> str:
    """A character of Unicode's private-use area that ``text`` does not hold; no template strips or reads it."""
    return next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)


def _changed_range(text: str, probe: str) -> tuple[int, int]:
    """The range of ``text`` in which it differs from ``probe``."""
    start = num_common(text, probe)
    longest = min(len(text), len(probe)) - start
    num_trailing = num_common(text[len(text) - longest :][::-1], probe[len(probe) - longest :][::-1])
    return start, len(text) - num_trailing


def num_common(a: str, b: str) -> int:
    """Length of the longest common beginning."""
    shorter = min(len(a), len(b))
    return next((index for index in range(shorter) if a[index] != b[index]), shorter)


def _num_leading_blanks(text: str) -> int:
    return len(text) - len(text.lstrip())


def _require_prefix(prefix: str, text: str) -> None:
    if text.startswith(prefix):
        return
    position = num_common(prefix, text)
    raise UserError(
        "the chat template is not prefix-stable: a conversation is not rendered as the beginning of the longer one"
        f" (at character {position}: {prefix[position : position + 24]!r}, then {text[position : position + 24]!r});"
        " give one that renders every message the same wherever the conversation ends with --chat-template"
        f" ({TEMPLATES} has some)"
    )


def _require_verbatim(rendered: str, text: str, what: str) -> None:
    if rendered not in text or rendered.strip() != text.strip():
        raise UserError(
            f"the chat template rewrites {what} (renders {rendered[:40]!r} for {text[:40]!r});"
            " use a template that renders contents as they are"
        )
