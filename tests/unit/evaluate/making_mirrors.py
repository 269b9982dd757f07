"""Small mirrors of hand-made sets, as `evaluate prepare` would lay them out."""

import json
import random
from pathlib import Path
from typing import Any

from megatron_longpo.evaluate.mirror import Mirror, open_mirror, record_set

WORDS = ("rain", "stone", "house", "river", "night", "bread")


def make_mirror(folder: Path) -> Mirror:
    """SQuAD, HotpotQA and InfiniteBench of a few questions each, three essays, and NLTK's punkt that knows nothing."""
    _write(folder, "squad", "squad/dev-v2.0.json", json.dumps({"data": [_article(number) for number in range(30)]}))
    hotpot = json.dumps([_hotpot(number) for number in range(20)])
    _write(folder, "hotpotqa", "hotpotqa/hotpot_dev_distractor_v1.json", hotpot)
    files: list[Path] = []
    for name, answer in (("sum", ["All goes well."]), ("qa", ["in Lyon", "Lyon"]), ("choice", ["In May"])):
        options = ["In March", "In May", "In June", "Never"] if name == "choice" else []
        rows = [_novel(number, answer, options) for number in range(3)]
        path = folder / "infinitebench" / f"longbook_{name}_eng.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files.append(path)
    record_set(folder, "infinitebench", "made by hand", files)
    _essays(folder)
    return open_mirror(folder)


def _essays(folder: Path) -> None:
    draw, essays, punkt = (
        random.Random(7),
        folder / "essays",
        folder / "nltk_data" / "tokenizers" / "punkt_tab" / "english",
    )
    essays.mkdir()
    for number in range(3):
        sentences = (" ".join(draw.choices(WORDS, k=draw.randrange(4, 12))).capitalize() + "." for _ in range(60))
        (essays / f"{number}.txt").write_text(" ".join(sentences), encoding="utf-8")
    record_set(folder, "essays", "made by hand", sorted(essays.iterdir()))
    punkt.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (punkt / name).write_text("", encoding="utf-8")
    record_set(folder, "punkt_tab", "made by hand", sorted(punkt.iterdir()))


def _write(folder: Path, name: str, place: str, text: str) -> None:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    record_set(folder, name, "made by hand", [path])


def _article(number: int) -> dict[str, Any]:
    def paragraph(part: int) -> dict[str, Any]:
        name = f"town {number}-{part}"
        questions = [
            {"question": f"Who founded {name}?", "is_impossible": False, "id": name,
             "answers": [{"text": f"Founder {number}"}, {"text": f"Founder {number} of old"}]},
            {"question": f"Who sold {name}?", "is_impossible": True, "id": f"{name}-", "answers": []},
        ]  # fmt: skip
        return {"context": f"The {name} was founded by Founder {number} of old. It is quiet.", "qas": questions}

    return {"title": f"Article {number}", "paragraphs": [paragraph(part) for part in range(2)]}


def _hotpot(number: int) -> dict[str, Any]:
    context = [[f"Page {(number + other) % 20}", ["One. ", f"Two {(number + other) % 20}."]] for other in range(3)]
    return {"question": f"What is two on page {number}?", "answer": f"Two {number}", "context": context}


def _novel(number: int, answer: list[str], options: list[str]) -> dict[str, Any]:
    words = random.Random(f"{number} {answer}").choices(WORDS, k=400)
    return {"id": number, "context": " ".join(words), "input": f"Which {number}?", "answer": answer, "options": options}
