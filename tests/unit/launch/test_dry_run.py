"""``launch --dry-run``: every recipe of the package on a small model, and what is refused before anything runs."""

import itertools
import re
import subprocess
from pathlib import Path

import pytest

from megatron_longpo.commands.main import main
from megatron_longpo.launch.recipe import RECIPES, load
from megatron_longpo.locks import Lock

HERE = ("--set", "model.hf=hf", "--set", "evaluate.mirror=mirror")
MODELS = [path.name for path in sorted(RECIPES.glob("*-*k.toml"))]
MACHINES = [(), ("8xh200.toml",), ("8x80gb.toml", "slurm.toml"), ("2x8x80gb.toml",)]


def dry_run(*words: str) -> int:
    return main(["launch", *words, *HERE, "--dry-run"])


def scripts(folder: Path) -> dict[str, str]:
    """The scripts of a run's last attempt, each read by bash."""
    found = {path.name: path for path in (folder / "attempts" / "latest").iterdir() if path.name != "recipe.toml"}
    for path in found.values():
        subprocess.run(["bash", "-n", str(path)], check=True)
    return {name: path.read_text(encoding="utf-8") for name, path in found.items()}


def test_there_is_a_recipe_for_every_row_of_the_released_work() -> None:
    names = ["mistral-7b-128k.toml", "mistral-7b-256k.toml", "mistral-7b-512k.toml", "qwen2.5-7b-128k.toml"]
    assert names == MODELS


@pytest.mark.parametrize(("model", "machine"), list(itertools.product(MODELS, MACHINES)), ids=str)
def test_every_recipe_can_be_launched(work: Path, model: str, machine: tuple[str, ...]) -> None:
    assert dry_run(model, *machine, "paper.toml") == 0
    (run,) = (work / "runs").iterdir()
    found = scripts(run)
    assert set(found) == {"commands.sh"} or {"submit.sh", "train.sbatch", "generate.sbatch"} < set(found)
    train = found.get("commands.sh") or found["train.sbatch"]
    length = load([model]).said("build")["max-length"]
    assert f"--max-position-embeddings {length}" in train and "--longpo-beta 0.1 " in train
    assert "rmsprop" not in train and "--optimizer adam" in train


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("released.toml", ["--longpo-beta 0.01 ", "--longpo-optimizer rmsprop", "--context short", "--lr 5e-7"]),
        ("sft.toml", ["--longpo-objective sft"]),
        ("dpo.toml", ["--longpo-objective dpo", "--context long", "pairs.reference-long.npz"]),
    ],
)
def test_the_objectives_have_recipes(work: Path, layer: str, options: list[str]) -> None:
    assert dry_run("mistral-7b-128k.toml", layer) == 0
    text = scripts(next((work / "runs").iterdir()))["commands.sh"]
    assert [option for option in options if option not in text] == []
    assert ("megatron_longpo.reference.score" in text) == (layer != "sft.toml")


def test_rounds_keep_the_first_model_as_the_reference(work: Path) -> None:
    assert main(["launch", "mistral-7b-512k.toml", *HERE, "--dry-run"]) == 0
    text = scripts(work / "runs" / "mistral-7b-512k")["commands.sh"].replace("\\\n", "")
    (score,) = re.findall(r"reference\.score .*", text)
    (train,) = re.findall(r"megatron_longpo\.train .*", text)
    assert "--checkpoint runs/mistral-7b-128k/imported " in " ".join(score.split())
    assert "--longpo-reference-checkpoint runs/mistral-7b-128k/imported " in " ".join(train.split())
    assert load(["mistral-7b-512k.toml"]).said("model") == {"hf": "runs/mistral-7b-256k/exported"}


def test_attempts_are_numbered_and_hold_the_whole_recipe(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        assert dry_run("mistral-7b-128k.toml", "--set", f"train.seed={number}") == 0
    attempts = work / "runs" / "mistral-7b-128k" / "attempts"
    assert sorted(path.name for path in attempts.iterdir()) == ["001", "002", "latest"]
    assert (attempts / "latest").readlink() == Path("002")
    assert load([str(attempts / "001" / "recipe.toml")]).said("train")["seed"] == 1
    whole = load([str(attempts / "latest" / "recipe.toml")])
    given = load(["mistral-7b-128k.toml"], ["train.seed=2", "model.hf=hf", "evaluate.mirror=mirror"])
    assert whole.sections == given.sections
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "would run: bash runs/mistral-7b-128k/attempts/002/commands.sh"
    assert "import-hf: to do" in shown
    missing = "runs/mistral-7b-128k/data/pairs.manifest.json"
    assert f"train: to do; the rest is checked as it begins, when {missing} is there" in shown


def test_what_is_done_is_said_and_held_to_its_options(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run("mistral-7b-128k.toml") == 0
    (work / "runs" / "mistral-7b-128k" / "imported").mkdir()
    assert dry_run("mistral-7b-128k.toml", "--set", "train.seed=7") == 0  # training is still to do
    assert "import-hf: done, runs/mistral-7b-128k/imported is there" in capsys.readouterr().out
    assert dry_run("mistral-7b-128k.toml", "--set", "import-hf.dtype=bf16") == 2
    assert "import-hf is done, with other options than these (fewer, now --dtype bf16)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.hf=nowhere"], "[generate] nowhere: no such folder"),
        (['generate.documents=["nothing/*"]'], "[generate] nothing/*: matches no file to read"),
        (["generate.length=1000"], "[generate] --length 1000 leaves"),
        (["generate=false"], "[build] --input runs/mistral-7b-128k/pairs.jsonl: no such file"),
        (["build.max-length=0"], "[build] --max-length 0: needs at least 1"),
        (["build.overlong=cut"], "[build] argument --overlong: invalid choice: 'cut'"),
        (["import-hf.dtype=fp8"], "[import-hf] argument --dtype: invalid choice: 'fp8'"),
        (["score-reference.context-parallel-size=3"], "[score-reference] 8 ranks are not a multiple of"),
        (["train.lr=fast"], "[train] argument --lr: invalid float value: 'fast'"),
        (["train.lr=-1"], "[train] --lr -1 must be at least 0"),
        (["train.min-lr=1"], "[train] --min-lr 1 is above --lr 5e-07"),
        (["train.longpo-beta=0"], "[train] --longpo-beta 0 must be above 0"),
        (["train.longpo-gamma=1"], "[train] --longpo-objective longpo has no --longpo-gamma"),
        (["train.longpo-objective=ppo"], "[train] argument --longpo-objective: invalid choice: 'ppo'"),
        (["train.cp-comm-type=ring"], "[train] --cp-comm-type ring is not known"),
        (["train.tensor-model-parallel-size=8", "train.context-parallel-size=1"], "[train] num_query_groups = 4 of hf"),
        (["machine.gpus-per-node=12"], "[train] 12 ranks are not a multiple of tensor x pipeline x context = 8"),
        (["export-hf.evaluation-model=x"], "[export-hf] --evaluation-model x: of which report?"),
        (["evaluate.mirror=nowhere"], "[evaluate] nowhere: there is no such folder; make one"),
        (["evaluate.engine=openai"], "[evaluate] --engine openai needs --endpoint"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_anything_runs(
    work: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["launch", "mistral-7b-128k.toml", *HERE, *words, "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"megatron-longpo launch: error: {message}")
    assert len(shown.splitlines()) == 1
    assert not (work / "runs").exists()


def test_two_runs_do_not_share_a_folder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempts = work / "runs" / "mistral-7b-128k" / "attempts"
    attempts.mkdir(parents=True)
    lock = Lock(attempts, directory=True)
    assert dry_run("mistral-7b-128k.toml") == 2
    assert "runs/mistral-7b-128k: in use by process" in capsys.readouterr().err
    lock.close()
    assert dry_run("mistral-7b-128k.toml") == 0


def test_the_list_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--list"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()] == sorted(path.name for path in RECIPES.glob("*.toml"))
    assert main(["launch"]) == 2
    assert "give a recipe" in capsys.readouterr().err
