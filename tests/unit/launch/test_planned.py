"""Every recipe of the package fits on the GPUs that it names, as planned with the shapes of the released models."""

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.released_models import MISTRAL_7B, QWEN_7B
from megatron_longpo.errors import UserError
from megatron_longpo.launch.machine import Machine
from megatron_longpo.launch.planned import planned_training
from megatron_longpo.launch.recipe import RECIPES, load

MODELS = [path.name for path in sorted(RECIPES.glob("*-*k.toml"))]
MACHINES = ["8x80gb.toml", "8xh200.toml", "2x8x80gb.toml"]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    found = {"mistral": tmp_path / "mistral", "qwen2.5": tmp_path / "qwen"}
    for (name, folder), config in zip(found.items(), (MISTRAL_7B, QWEN_7B), strict=True):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        assert name
    return found


def told(folders: dict[str, Path], *recipes: str, sets: tuple[str, ...] = ()) -> str:
    hf = next(folder for name, folder in folders.items() if recipes[0].startswith(name))
    recipe = load(recipes, [f"model.hf={hf}", *sets])
    return planned_training(recipe, Machine.of(recipe), has_dataset=False)


@pytest.mark.parametrize(("model", "machine"), list(itertools.product(MODELS, MACHINES)))
def test_every_recipe_fits(folders: dict[str, Path], model: str, machine: str) -> None:
    ranks, kind = (16 if machine[0] == "2" else 8), ("h200-141" if "h200" in machine else "h100-80")
    text = told(folders, model, machine)
    assert text.startswith(f"training, planned for {ranks} {kind}: OK: ")
    assert "GPU-hours an epoch" in text and "megatron-longpo plan" not in text


def test_what_does_not_fit_is_said_with_the_command_that_tells_what_would(folders: dict[str, Path]) -> None:
    text = told(folders, "mistral-7b-512k.toml", sets=("train.longpo-recompute=false",))
    assert "OUT OF MEMORY" in text
    assert "\nsee what would: megatron-longpo plan " in text and "--trunk 522240" in text


def test_without_a_kind_nothing_is_planned(folders: dict[str, Path]) -> None:
    assert told(folders, "mistral-7b-128k.toml", sets=("machine.gpu=false",)) == ""
    with pytest.raises(UserError, match=r"\[train\] cannot be planned: --kind h9: choose one of a100-80"):
        told(folders, "mistral-7b-128k.toml", sets=("machine.gpu=h9",))
    with pytest.raises(UserError, match=r"cannot be planned: .*--cp-comm-type: invalid choice.*--set machine.gpu"):
        told(folders, "mistral-7b-128k.toml", sets=("train.cp-comm-type=a2a+p2p",))
