"""Long texts of the miniature, and questions on them: what ``megatron-longpo generate`` is given."""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.miniature.methods import REACH
from examples.miniature.task import KINDS, Text, ask, make_text, written
from megatron_longpo.files import atomic_file

PER_KIND = 8
"""Questions of every kind on a text; `generate` puts those whose facts stand in one chunk, one a chunk."""
NEAR = 3
"""Two facts that are asked about together have at most so many between them, less one: a chunk often holds both."""


def main() -> None:
    """Write ``OUTPUT/texts.jsonl`` and ``OUTPUT/questions.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--num-texts", type=int, default=1400)
    parser.add_argument("--num-tokens", type=int, default=REACH.text_tokens, help="of a text, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    texts = {f"text-{number}": make_text(draw, options.num_tokens) for number in range(options.num_texts)}
    options.output.mkdir(parents=True, exist_ok=True)
    write_lines(options.output / "texts.jsonl", [{"id": name, "text": str(text)} for name, text in texts.items()])
    questions = [line for name, text in texts.items() for line in questions_on(draw, name, text)]
    write_lines(options.output / "questions.jsonl", questions)


def questions_on(draw: random.Random, name: str, text: Text) -> list[dict[str, object]]:
    """Lines of the file of questions, about one text, each question once."""
    lines: dict[str, dict[str, object]] = {}
    for kind in KINDS:
        for _ in range(PER_KIND):
            first = draw.randrange(len(text.facts) - NEAR)
            facts = text.facts[first : first + NEAR + 1] if kind == "two" else text.facts
            question = ask(draw, facts, kind)
            evidence = [written(fact.line) for fact in question.evidence]
            lines[question.text] = {"document": name, "question": question.text, "evidence": evidence}
    return list(lines.values())


def write_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Write JSON lines, all or none."""
    with atomic_file(path) as partial:
        partial.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
