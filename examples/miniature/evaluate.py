"""How many questions models of the miniature answer right, by length of the text and kind of question.

Usage: python -m examples.miniature.evaluate --models base=DIR longpo=DIR --output FILE
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from examples.miniature.methods import ANSWER_TOKENS, QUESTION_ROOM
from examples.miniature.model import END, LENGTH, PAD, head_ids, turn_ids
from examples.miniature.task import (
    KINDS,
    MAX_ANSWER_TOKENS,
    SKILLS,
    VOCABULARY,
    Question,
    Text,
    ask,
    ask_skill,
    make_text,
)
from megatron_longpo.files import atomic_file

MULTIPLES = (1, 2, 4, 8)
"""Lengths of the examined texts, in lengths of the texts that the base is taught."""
ROOM = QUESTION_ROOM + ANSWER_TOKENS
"""Tokens for a question and its answer."""
EXAM_SEED = 11
Exam = Sequence[tuple[Text | None, Sequence[Question]]]
"""Texts and questions on them; no text for the skills."""
Exams = dict[str, dict[str, float]]
"""Accuracy by exam (lengths, as "4"; "skills") and kind of question; "all" is the mean over questions."""


def make_exam(seed: int, multiple: int, num_texts: int = 32, per_kind: int = 5) -> Exam:
    """Questions of every kind on texts of ``multiple`` lengths, each with its question and answer."""
    draw = random.Random(f"{seed} {multiple}")
    texts = [make_text(draw, multiple * LENGTH - ROOM) for _ in range(num_texts)]
    return [(text, [ask(draw, text.facts, kind) for kind in KINDS for _ in range(per_kind)]) for text in texts]


def make_skill_exam(seed: int, per_kind: int = 100) -> Exam:
    """Questions that need no text."""
    draw = random.Random(f"{seed} skills")
    return [(None, [ask_skill(draw, kind) for kind in SKILLS for _ in range(per_kind)])]


def examine(model: LlamaForCausalLM, seed: int = EXAM_SEED, multiples: Sequence[int] = MULTIPLES) -> Exams:
    """All exams, on texts of those lengths and of the skills."""
    exams = {str(multiple): make_exam(seed, multiple) for multiple in multiples}
    return {name: accuracy(model, exam) for name, exam in (exams | {"skills": make_skill_exam(seed)}).items()}


def accuracy(model: LlamaForCausalLM, exam: Exam) -> dict[str, float]:
    """Part of the questions answered exactly, by kind; "all" is the mean over questions."""
    hits: dict[str, list[bool]] = {}
    for text, questions in exam:
        for question, is_right in zip(questions, are_right(model, text, questions), strict=True):
            hits.setdefault(question.kind, []).append(is_right)
    every = [hit for of_kind in hits.values() for hit in of_kind]
    return {kind: sum(found) / len(found) for kind, found in (hits | {"all": every}).items()}


@torch.inference_mode()
def are_right(model: LlamaForCausalLM, text: Text | None, questions: Sequence[Question]) -> list[bool]:
    """Whether greedy decoding gives exactly the right answer to each question.

    The right answer is shown, and each token of it, the end included, must be the likeliest: greedy decoding would then
    have written it, and nothing else. The text is read once for all questions.
    """
    turns = [turn_ids(question) for question in questions]
    longest = max(len(prompt) + len(answer) for prompt, answer in turns)
    rows = [(prompt + answer + [PAD] * longest)[:longest] for prompt, answer in turns]
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([head_ids(text)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(rows))
    tops = model(input_ids=torch.tensor(rows), past_key_values=cache).logits.argmax(-1).tolist()
    return [top[len(prompt) - 1 :][: len(answer)] == answer for top, (prompt, answer) in zip(tops, turns, strict=True)]


@torch.inference_mode()
def answers_to(model: LlamaForCausalLM, text: Text | None, questions: Sequence[Question]) -> list[str]:
    """What the model answers, greedily; "..." where it goes on."""
    found: list[str] = []
    for question in questions:
        ids, words = head_ids(text) + turn_ids(question)[0], list[str]()
        while len(words) <= MAX_ANSWER_TOKENS:
            top = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if top == END:
                break
            ids.append(top)
            words.append(VOCABULARY[top])
        found.append(" ".join(words[:MAX_ANSWER_TOKENS]) + (" ..." if len(words) > MAX_ANSWER_TOKENS else ""))
    return found


def load(folder: Path, rope_theta: float | None = None) -> LlamaForCausalLM:
    """A model of the miniature in fp32, with another RoPE base than the folder's if one is given."""
    config = LlamaConfig.from_pretrained(folder, local_files_only=True)
    if rope_theta is not None:
        config.rope_parameters = {"rope_type": "default", "rope_theta": rope_theta}
    return LlamaForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, local_files_only=True).eval()


def named_model(given: str) -> tuple[str, Path, float | None]:
    """NAME=DIR[:THETA] -> name, folder and RoPE's base; raises ArgumentTypeError."""
    name, _, where = given.partition("=")
    folder, _, theta = where.partition(":")
    if not Path(folder, "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{given}: {folder or 'nothing'} is no Hugging Face folder; give NAME=DIR")
    try:
        return name, Path(folder), float(theta) if theta else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{given}: {theta!r} is no number") from None


def main() -> None:
    """Examine the models and write what they got right, and three answers of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", required=True, type=named_model, metavar="NAME=DIR[:THETA]", help="THETA: RoPE's base"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=EXAM_SEED)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    ((text, questions), *_) = make_exam(options.seed, 4)
    assert text is not None
    shown = [next(question for question in questions if question.kind == kind) for kind in KINDS]
    for name, folder, theta in tqdm(options.models, unit="model", mininterval=1.0):
        model = load(folder, theta)
        results[name] = {"accuracy": examine(model, options.seed), "answers": answers_to(model, text, shown)}
    asked = [{"question": one.text, "answer": one.answer} for one in shown]
    with atomic_file(options.output) as partial:
        partial.write_text(json.dumps({"text": str(text), "asked": asked, "models": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
