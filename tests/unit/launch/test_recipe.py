"""Recipes: what lies over what, and what is said of a bad one."""

from pathlib import Path

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.launch.machine import Machine
from megatron_longpo.launch.programs import check_keys, words_of
from megatron_longpo.launch.recipe import RECIPES, Recipe, dump, load
from megatron_longpo.launch.steps import steps


def write(folder: Path, **texts: str) -> Path:
    """Files ``NAME.toml``; returns the last."""
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder / f"{list(texts)[-1]}.toml"


def test_the_later_word_counts(tmp_path: Path) -> None:
    write(tmp_path, one='[train]\nlr = 1.0\nseed = 1\nbf16 = true\n[build]\ninput = ["a", "b"]\n')
    path = write(tmp_path, two='extends = "one.toml"\n[train]\nlr = 2.0\nbf16 = false\n[build]\ninput = ["c"]\n')
    over = write(tmp_path, three="[train]\nseed = 3\n")
    recipe = load([str(path), str(over)], ["train.min-lr=4e-7"])
    assert recipe.said("train") == {"lr": 2.0, "seed": 3, "min-lr": 4e-7}
    assert recipe.said("build") == {"input": ["c"]}
    assert recipe.said("run") == {"folder": "runs/two-three"}


def test_of_several_that_are_extended_the_later_counts(tmp_path: Path) -> None:
    write(tmp_path, a="[train]\nlr = 1\nseed = 1\n", b="[train]\nlr = 2\n")
    assert load([str(write(tmp_path, c='extends = ["a.toml", "b.toml"]\n'))]).said("train") == {"lr": 2, "seed": 1}


def test_a_stage_can_be_taken_out_and_come_back(tmp_path: Path) -> None:
    write(tmp_path, a="[generate]\nseed = 1\n[train]\n")
    path = write(tmp_path, b='extends = "a.toml"\ngenerate = false\n')
    assert list(load([str(path)]).sections) == ["train", "run"]
    assert load([str(path), str(tmp_path / "a.toml")]).said("generate") == {"seed": 1}
    assert "train" not in load([str(path)], ["train=false"]).sections


def test_a_recipe_is_looked_for_beside_the_one_that_extends_it_and_then_in_the_package(tmp_path: Path) -> None:
    path = write(tmp_path, mine='extends = "mistral-7b-128k.toml"\n')
    assert load([str(path)]).said("build")["max-length"] == 131072
    write(tmp_path, **{"mistral-7b-128k": "[build]\nmax-length = 5\n"})
    assert load([str(path)]).said("build")["max-length"] == 5
    assert load(["mistral-7b-128k.toml"]).said("build")["max-length"] == 131072


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.lr=1e-6", 1e-6),
        ("train.lr=models/x", "models/x"),
        ('train.lr=["a", "b"]', ["a", "b"]),
        ("train.lr=true", True),
        ("train.lr=a=b", "a=b"),
        ('train.lr={"rope_type": "yarn"}', '{"rope_type": "yarn"}'),
        ("train.lr=", ""),
        ("train.lr=1\nseed = 3", "1\nseed = 3"),
        ("train.lr=2026-01-01", "2026-01-01"),
    ],
)
def test_a_setting_is_toml_or_a_word(text: str, value: object) -> None:
    assert load([], [text]).sections["train"]["lr"] == value


def test_what_is_written_is_read_the_same(tmp_path: Path) -> None:
    words = 'it\'s "q" \\ \t \x7f ü 𝄞 \n'
    said = {"lr": 5e-7, "seed": 42, "bf16": True, "fp16": False, "split": words, "adam-eps": [1, 2.5, "x"]}
    recipe = Recipe({"train": dict(said), "build": {}})
    (tmp_path / "again.toml").write_text(dump(recipe), encoding="utf-8")
    again = load([str(tmp_path / "again.toml")])
    assert again.sections == {"train": said, "build": {}, "run": {"folder": "runs/again"}}


def test_a_section_as_words() -> None:
    section = {"lr": 5e-7, "bf16": True, "seed": 42, "documents": ["a", "b"], "text": "-x"}
    assert words_of(section) == ["--lr", "5e-7", "--bf16", "--seed", "42", "--documents", "a", "b", "--text=-x"]


BAD = {
    "[train\nlr = 1": r"bad\.toml:1: not TOML: Expected '\]'",
    "[train]\nlr = 1\nlr = 2\n": r"bad\.toml:3: not TOML",
    "[trian]\nlr = 1": r"bad\.toml:1: there is no section \[trian\]; did you mean train\?",
    "[model]\nhf = 'm'\n[train]\nlr = 1\n\nleraning-rate = 2": r"bad\.toml:6: \[train\] leraning-rate: no such option",
    "[train]\nlonpo-beta = 2": r"bad\.toml:2: \[train\] lonpo-beta: no such option; did you mean longpo-beta",
    "[build]\nmax_length = 2": r"bad\.toml:2: \[build\] max_length: no such option; did you mean max-length\?",
    "[train]\nload = 'x'": r"bad\.toml:2: \[train\] load is not for a recipe: it follows from \[run\] folder",
    "[build]\ntokenizer = 'x'": r"\[build\] tokenizer is not for a recipe: it is \[model\] hf",
    "[generate]\nshard = '1/2'": r"\[generate\] shard is not for a recipe: \[machine\] generate-jobs",
    "[train]\nhelp = true": r"\[train\] help is not for a recipe: it is for the command line",
    "[train]\nskip-train = true": r"\[train\] skip-train is not for a recipe",
    "[evaluate]\nlenghts = '4K'": r"\[evaluate\] lenghts: no such option; did you mean lengths",
    "[model]\nhff = 'x'": r"bad\.toml:2: \[model\] hff: no such key; did you mean hf\?",
    "[model]\nhf = 3": r"\[model\] hf is 3; needs a folder",
    "[model]\nhf = ''": r"\[model\] hf is ''; needs a folder",
    "[run]\nfolder = true": r"\[run\] folder is True; needs a folder",
    "[machine]\nlauncher = 'srun'": r"bad\.toml:2: \[machine\] launcher is 'srun'; needs torchrun or slurm",
    "[machine]\ngpus = 8": r"\[machine\] gpus: no such key",
    "[machine]\nnodes = 0": r"\[machine\] nodes is 0; needs a number of at least 1",
    "[machine]\ngpus-per-node = 'all'": r"\[machine\] gpus-per-node is 'all'; needs a number",
    "[machine]\nnodes = 2": r'\[machine\] nodes is 2: launcher = "torchrun" is for one machine',
    "[machine]\npartition = 'p'": r'\[machine\] partition is for launcher = "slurm"',
    "[environment]\n'A B' = 'x'": r"\[environment\] A B = 'x': needs a variable's name and a word",
    "[train]\nlr = 2026-01-01": r"bad\.toml:2: \[train\] lr is datetime\.date.*; needs a word, a number",
    "[train]\nlr = {a = 1}": r"\[train\] lr is \{'a': 1\}; needs a word",
    "[train]\nlr = []": r"\[train\] lr is \[\]; needs a word",
    "[train.more]\nlr = 1": r"\[train\] more is \{'lr': 1\}; needs a word",
    "train = 3": r"bad\.toml:1: train is 3, needs a section \[train\] with options, or false",
    "[[train]]\nlr = 3": r"train is \[\{'lr': 3\}\], needs a section",
    "extends = 3": r"extends is 3; needs the name of a recipe",
    "extends = [3]": r"extends is \[3\]; needs the name of a recipe",
    "extends = 'mistral-128k.toml'": r"mistral-128k\.toml: no such recipe; did you mean mistral-7b-128k\.toml",
    "extends = 'bad.toml'": r"bad\.toml: extends itself, by way of bad\.toml",
    "[build]\n[import-data]": r"\[build\] and \[import-data\] make the same dataset",
    "[generate]\n[build]\ninput = ['a']": r"bad\.toml:3: \[build\] input and \[generate\] both give pairs",
    "[model]\nhf = 'm'": r"the recipe has no stage; give it a section \[generate\]",
    "[evaluate]\nmodels = 'a=b'": r"\[evaluate\] models is 'a=b'; needs a list",
}


@pytest.mark.parametrize("text", BAD, ids=[text.replace("\n", " ") for text in BAD])
def test_a_bad_recipe_is_one_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, bad=text)
    with pytest.raises(UserError, match=BAD[text]) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def read(path: Path) -> None:
    """All that is known without looking at what the recipe names."""
    recipe = load([str(path)])
    if "[model]" not in path.read_text(encoding="utf-8"):
        recipe.put("model", {"hf": "m"}, {})
    machine = Machine.of(recipe)
    check_keys(recipe)
    steps(recipe, machine)


def test_without_a_model_there_is_no_run() -> None:
    recipe = load([], ["build.max-length=1"])
    with pytest.raises(UserError, match=r"\[model\] hf is missing"):
        steps(recipe, Machine.of(recipe))


def test_models_of_ones_own_can_be_evaluated_alone() -> None:
    recipe = load([], ['evaluate.models=["a=x", "b=y"]', "evaluate.mirror=m", "evaluate.suite=short"])
    check_keys(recipe)
    (run, report) = steps(recipe, Machine.of(recipe))
    output = str(Path("runs") / "evaluation")
    words = ["--models", "a=x", "b=y", "--mirror", "m", "--suite", "short"]
    assert run.commands == [["megatron-longpo", "evaluate", "run", "--output", output, *words]]
    assert report.commands == [["megatron-longpo", "evaluate", "report", output]]


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, a="extends = 'b.toml'", b="extends = ['c.toml']")
    with pytest.raises(UserError, match=r"extends itself, by way of c\.toml and a\.toml and b\.toml"):
        load([str(write(tmp_path, c="extends = 'a.toml'"))])


def test_one_recipe_may_be_reached_twice(tmp_path: Path) -> None:
    write(tmp_path, a="[train]\nlr = 1", b="extends = 'a.toml'", c="extends = 'a.toml'")
    assert load([str(write(tmp_path, d="extends = ['b.toml', 'c.toml']"))]).said("train") == {"lr": 1}


@pytest.mark.parametrize("text", ["lr", "train.=1", "=1", "train.lr"])
def test_a_setting_has_a_place_and_a_value(text: str) -> None:
    with pytest.raises(UserError, match=r"give SECTION\.KEY=VALUE"):
        load([], [text])


def test_a_setting_of_no_section_is_refused() -> None:
    with pytest.raises(UserError, match=r"--set: there is no section \[tarin\]; did you mean train"):
        load([], ["tarin.lr=1"])


def test_every_recipe_of_the_package_begins_with_what_it_is() -> None:
    paths = sorted(RECIPES.glob("*.toml"))
    assert len(paths) >= 10
    assert [path.name for path in paths if not path.read_text(encoding="utf-8").startswith("# ")] == []
