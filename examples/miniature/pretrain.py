"""Teach a model the miniature's short texts, from random weights.

Usage: python -m examples.miniature.pretrain --seed 0 --output DIR

Ten minutes on one core. Three things make so small a model learn to look things up at all: a quarter of what it reads
is random words of which pieces come again and again; texts are short at first; and answers weigh
as much as all the rest. A killed run goes on from its last 500 steps.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM

from examples.miniature.evaluate import examine, load
from examples.miniature.model import BOS, END, LENGTH, PAD, SPECIAL, USER, head_ids, new_model, save, turn_ids
from examples.miniature.task import KINDS, RELATIONS, SKILLS, VOCABULARY, Question, ask, ask_skill, make_text
from megatron_longpo.files import atomic_directory, atomic_file

STEPS, SEQUENCES, LEARNING_RATE = 4000, 64, 2e-3
COPIES, SKILL_PART = 0.25, 0.1
"""Parts of what is read: random words again and again, and the skills; the rest are texts and questions."""
LEARNT = 0.45
"""Texts become longer while answers cost less than this, in nats a token."""
ROOMS = (14, 14, 26)
"""Tokens kept for one question or two, drawn for each text."""
SAVED_EVERY = 500
Sequence = tuple[list[int], list[bool]]
"""Token ids, and which of them are answers."""


def sample(draw: random.Random, part: float) -> Sequence:
    """Draw a sequence of at most LENGTH tokens; texts fill ``part`` of the room at most."""
    kind = draw.random()
    if kind < COPIES:
        return _copies(draw)
    if kind < COPIES + SKILL_PART:
        return _conversation([BOS], lambda: ask_skill(draw, draw.choice(SKILLS)))
    room = LENGTH - 2 - draw.choice(ROOMS)
    size = max(20, int(min(part, draw.uniform(0.5, 1.0)) * room))
    text = make_text(draw, size, repeated=draw.choice((0.0, 0.5)), num_relations=draw.choice((1, 2, len(RELATIONS))))
    while len(text.facts) < 2:
        text = make_text(draw, size)
    return _conversation(head_ids(text), lambda: ask(draw, text.facts, draw.choice(KINDS)))


def _conversation(ids: list[int], question: Callable[[], Question]) -> Sequence:
    """Questions and answers after ``ids``, as many as fit."""
    is_answer = [False] * len(ids)
    while True:
        asked, answer = turn_ids(question())
        if ids[-1] in (BOS, END):
            asked.insert(0, USER)
        if len(ids) + len(asked) + len(answer) > LENGTH:
            return ids, is_answer
        ids = [*ids, *asked, *answer]
        is_answer += [False] * len(asked) + [True] * len(answer)


def _copies(draw: random.Random) -> Sequence:
    """Random words, pieces of them again and again: what teaches to look up and to copy."""
    words = draw.sample(range(len(SPECIAL), len(VOCABULARY)), draw.randint(8, 20))
    ids = [BOS]
    while len(ids) < LENGTH:
        first = draw.randrange(len(words) - 3)
        ids += words[first : first + draw.randint(4, 8)]
    return ids[:LENGTH], [False] * LENGTH


class Pretraining:
    """Model, optimizer and how far they are."""

    def __init__(self, seed: int, steps: int = STEPS) -> None:
        """Begin with random weights."""
        torch.manual_seed(seed)
        self.seed, self.steps = seed, steps
        self.model = new_model()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
        )
        self.step, self.part, self.average = 0, 0.25, 5.0
        self.first_losses: list[float] = []

    def one_step(self) -> float:
        """Take a step; returns the answers' mean NLL before it, in nats a token."""
        draw = random.Random(f"{self.seed} {self.step}")
        if self.average < LEARNT:
            self.part = min(1.0, self.part + 0.01)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * self._schedule()
        answers, others = nll(self.model, [sample(draw, self.part) for _ in range(SEQUENCES)])
        (answers + others).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.average += 0.1 * (answers.item() - self.average)
        if self.step <= 5:
            self.first_losses.append(answers.item())
        return answers.item()

    def _schedule(self) -> float:
        """Warm-up, then constant, then down to nothing over the last two fifths."""
        done = self.step / self.steps
        return min(1.0, self.step / 50) * min(1.0, max(0.02, (1 - done) / 0.4))

    def save(self, path: Path) -> None:
        """Write all of it."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_file(path) as partial:
            torch.save(state | {"progress": self._progress()}, partial)

    def load(self, path: Path) -> None:
        """Go on from what was saved, if it is of the same run."""
        state: dict[str, Any] = torch.load(path)
        seed, steps, *progress = state["progress"]
        if (seed, steps) == (self.seed, self.steps):
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.part, self.average, self.first_losses = progress

    def _progress(self) -> tuple[Any, ...]:
        return self.seed, self.steps, self.step, self.part, self.average, self.first_losses


def nll(model: LlamaForCausalLM, sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
    """Mean NLL of answer tokens, and of all others."""
    size = max(len(ids) for ids, _ in sequences)
    ids_BS = torch.tensor([ids + [PAD] * (size - len(ids)) for ids, _ in sequences])
    is_answer_BS = torch.tensor([is_answer + [False] * (size - len(is_answer)) for _, is_answer in sequences])[:, 1:]
    logits_BSV = model(input_ids=ids_BS, use_cache=False).logits[:, :-1]
    nll_BS = F.cross_entropy(logits_BSV.transpose(1, 2), ids_BS[:, 1:], reduction="none")
    is_other_BS = (ids_BS[:, 1:] != PAD) & ~is_answer_BS
    return nll_BS[is_answer_BS].mean(), nll_BS[is_other_BS].mean()


def main() -> None:
    """Train, examine and save a base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    run, partial = Pretraining(options.seed, options.steps), options.output.with_suffix(".partial.pt")
    if partial.exists():
        run.load(partial)
    with tqdm(total=run.steps, initial=run.step, unit="step", mininterval=1.0) as progress:
        while run.step < run.steps:
            run.one_step()
            progress.set_postfix_str(f"answers {run.average:.3f} nats a token, texts of {run.part:.0%} length")
            progress.update()
            if run.step % SAVED_EVERY == 0:
                run.save(partial)
    with atomic_directory(options.output) as folder:
        save(run.model, folder)
        accuracy = examine(load(folder), options.seed)
        record = {"seed": run.seed, "steps": run.steps, "first_losses": run.first_losses, "accuracy": accuracy}
        (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    partial.unlink(missing_ok=True)
    print(json.dumps(accuracy, indent=2))


if __name__ == "__main__":
    main()
