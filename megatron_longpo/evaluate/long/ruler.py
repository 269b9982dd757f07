"""RULER's prompts, made once and kept, so that every model that is compared sees the same.

lm-eval's generators write the prompts; what they leave to the caller is settled here:

- they draw from the process's random state: it is set anew for every (task, length), so a file depends on no other;
- they fit a prompt without the chat template and the answer's beginning into a length: these count here, and prompts
  are made again with more room until the longest fits, as the model will see it;
- CWE's worked example, which lm-eval makes and then leaves out, is put before the list.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from megatron_longpo.errors import UserError, import_optional
from megatron_longpo.evaluate.long.prompts import Prompt, prompt_length
from megatron_longpo.evaluate.long.ruler_data import essay_words, hotpot_questions, squad_questions
from megatron_longpo.evaluate.mirror import Mirror
from megatron_longpo.generate.engines.prompt_length import prompt_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MIN_LENGTH = 1024
"""Below it the worked examples alone leave no room."""
ATTEMPTS = 8

Rows = list[dict[str, Any]]
"""What a generator made: input, outputs, gen_prefix; input_example."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is asked of a generator."""

    tokenizer: Any
    samples: int
    length: int
    """Tokens that a prompt may have."""
    room: int
    """Of which so many are left for the answer and what else the generator does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerTask:
    """One of the 13 tasks."""

    make: Callable[[Mirror, Sizes], Rows]
    max_new_tokens: int
    """As RULER and lm-eval have them."""
    sets: tuple[str, ...] = ()
    """Of the mirror, that it needs."""


def make_prompts(
    name: str, tokenizer: "PreTrainedTokenizerFast", mirror: Mirror, *, length: int, samples: int, seed: int
) -> list[Prompt]:
    """The prompts of one task at one length; the same for the same arguments, whatever was made before.

    Args:
        name: one of `RULER_TASKS`.
        length: tokens of a whole prompt at most: chat template, answer's beginning and room for the answer included.
        samples: prompts; fewer where the data has fewer questions.

    Raises:
        UserError: the mirror lacks a set; the length is too short; no usable chat template.
    """
    task = RULER_TASKS[name]
    for one in task.sets:
        mirror.path_of(one)  # says what is missing
    around = prompt_tokens(tokenizer, [{"role": "user", "content": "."}])
    room = task.max_new_tokens + around
    for _ in range(ATTEMPTS):
        _seed(f"{seed} {name} {length}")
        rows = task.make(mirror, Sizes(tokenizer=tokenizer, samples=samples, length=length, room=room))
        prompts = [_prompt(number, row, task.max_new_tokens) for number, row in enumerate(rows)]
        prompts = [replace(prompt, length=prompt_length(tokenizer, prompt)) for prompt in prompts]
        excess = max(prompt.length for prompt in prompts) - length
        if excess <= 0:
            return prompts
        room += excess
    raise UserError(f"{name} at {length} tokens: the prompts do not fit even with {room} left for the rest")


def _prompt(number: int, row: dict[str, Any], max_new_tokens: int) -> Prompt:
    example = row.get("input_example")
    return Prompt(
        id=str(number),
        text=f"{example}\n{row['input']}" if example else row["input"],
        answer_start=row["gen_prefix"],
        references=tuple(row["outputs"]),
        max_new_tokens=max_new_tokens,
    )


def _seed(text: str) -> None:
    """Set every random state that lm-eval's generators draw from."""
    import numpy as np

    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    random.seed(number)
    np.random.seed(number)  # the global state is the one that they use
    _generators("cwe_utils").RNG.seed(number)


def _generators(module: str) -> Any:
    return import_optional(f"lm_eval.tasks.ruler.{module}", "RULER's prompts are made by lm-eval", extra="evaluate")


def _niah(haystack: str, keys: str, values: str, **counts: int) -> RulerTask:
    """A needle task: the kinds of its hay, keys and values, and how many needles it has (num_needle_k, _v, _q)."""

    def make(mirror: Mirror, sizes: Sizes) -> Rows:
        needles = _generators("prepare_niah")
        return needles.generate_samples(
            essay_words(mirror.path_of("essays")) if haystack == "essay" else needles.get_haystack(haystack),
            TOKENIZER=sizes.tokenizer,
            max_seq_length=sizes.length,
            type_haystack=haystack,
            type_needle_k=keys,
            type_needle_v=values,
            template=_generators("niah_utils").TEMPLATE,
            num_samples=sizes.samples,
            tokens_to_generate=sizes.room,
            **counts,
        )

    return RulerTask(make=make, max_new_tokens=128, sets=("essays", "punkt_tab") if haystack == "essay" else ())


def _vt(mirror: Mirror, sizes: Sizes) -> Rows:
    tracking = _generators("vt_utils")
    make = tracking.sys_vartrack_w_noise_random
    # lm-eval gives its worked example 500 tokens, and searches for ever where a tokenizer needs more for the shortest.
    shortest, _ = tracking.generate_input_output(5, 1, 4, is_icl=True)
    example_tokens = max(500, len(sizes.tokenizer(shortest).input_ids) + 100)
    example = make(tokenizer=sizes.tokenizer, num_samples=1, max_seq_length=example_tokens, incremental=5)[0]
    smallest, _ = tracking.generate_input_output(10, 1, 4)
    _require_fit(f"{example['input']} {' '.join(example['outputs'])}\n{smallest}", sizes)
    return make(
        tokenizer=sizes.tokenizer,
        num_samples=sizes.samples,
        max_seq_length=sizes.length,
        tokens_to_generate=sizes.room,
        icl_example=example,
    )


def _cwe(mirror: Mirror, sizes: Sizes) -> Rows:
    words = _generators("cwe_utils")
    example, smallest, _ = words.generate_input_output(10, sizes.length)
    _require_fit(f"{example}\n{smallest}", sizes)
    return words.sys_word_pair_random(
        num_samples=sizes.samples,
        max_seq_length=sizes.length,
        tokenizer=sizes.tokenizer,
        tokens_to_generate=sizes.room,
    )


def _fwe(mirror: Mirror, sizes: Sizes) -> Rows:
    return _generators("fwe_utils").sys_kwext(
        tokenizer=sizes.tokenizer,
        max_seq_length=sizes.length - sizes.room,  # this generator leaves no room for the answer
        num_samples=sizes.samples,
        vocab_size=sizes.length // 50,  # what it would take without that room
    )


def _qa(name: str) -> RulerTask:
    def make(mirror: Mirror, sizes: Sizes) -> Rows:
        read = squad_questions if name == "squad" else hotpot_questions
        found = read(mirror.path_of(name))
        return _generators("qa_utils").generate_samples(
            tokenizer=sizes.tokenizer,
            docs=found.paragraphs,
            qas=found.questions,
            max_seq_length=sizes.length,
            num_samples=min(sizes.samples, len(found.questions)),
            tokens_to_generate=sizes.room,
            # RULER begins at 4096; in a shorter prompt a step of ten paragraphs is more than there is room for.
            incremental=10 if sizes.length >= 4096 else 1,
        )

    return RulerTask(make=make, max_new_tokens=32, sets=(name,))


def _require_fit(smallest: str, sizes: Sizes) -> None:
    """Refuse what these two generators would try for ever."""
    needed = len(sizes.tokenizer(smallest).input_ids) + sizes.room
    if needed > sizes.length:
        raise UserError(
            f"the smallest prompt has {needed} tokens with this tokenizer and does not fit into {sizes.length}; give "
            "greater --lengths"
        )


RULER_TASKS: dict[str, RulerTask] = {
    "ruler_niah_single_1": _niah("repeat", "words", "numbers"),
    "ruler_niah_single_2": _niah("essay", "words", "numbers"),
    "ruler_niah_single_3": _niah("essay", "words", "uuids"),
    "ruler_niah_multikey_1": _niah("essay", "words", "numbers", num_needle_k=4),
    "ruler_niah_multikey_2": _niah("needle", "words", "numbers"),
    "ruler_niah_multikey_3": _niah("needle", "uuids", "uuids"),
    "ruler_niah_multiquery": _niah("essay", "words", "numbers", num_needle_q=4),
    "ruler_niah_multivalue": _niah("essay", "words", "numbers", num_needle_v=4),
    "ruler_vt": RulerTask(make=_vt, max_new_tokens=30),
    "ruler_cwe": RulerTask(make=_cwe, max_new_tokens=120),
    "ruler_fwe": RulerTask(make=_fwe, max_new_tokens=50),
    "ruler_qa_squad": _qa("squad"),
    "ruler_qa_hotpot": _qa("hotpotqa"),
}
