"""The model card: Hugging Face reads it, every recorded fact is in it, and nothing else is."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from megatron_longpo import __version__
from megatron_longpo.commands.main import main
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.report.report import write_report
from megatron_longpo.hf.card import CardFacts, base_model, model_card
from megatron_longpo.hf.export_hf import export_hf
from megatron_longpo.hf.import_hf import import_hf
from megatron_longpo.hf.training_record import Settings, Stage, Stretch
from megatron_longpo.objective.objectives import OBJECTIVES
from tests.unit.evaluate.making_cells import cell, written
from tests.unit.hf.models import edit_config, save_model

CONFIG = {"model_type": "mistral", "max_position_embeddings": 131072, "rope_theta": 1e7}
VERSIONS = {"megatron-longpo": "0.0.7", "megatron-core": "0.19.2"}


def used(name: str = "longpo", beta: float = 0.01, num_pairs: int = 412, recompute: str | None = None) -> Settings:
    objective = OBJECTIVES[name]
    return {
        "method": {"description": objective.description, "tags": [*objective.tags, "long-context"]},
        "objective": {"name": name, "beta": beta},
        "schedule": {"learning_rate": 5e-7, "decay": "cosine"},
        "reference": {"rope": {"rope_type": "default", "rope_theta": 1e6}},
        "layout": {"context_parallel": 8, "sequence_parallel": True} | ({"recompute": recompute} if recompute else {}),
        "versions": VERSIONS,
        "data": {"num_pairs": num_pairs, "num_tokens": {"trunk": 123456789, "chosen": 4321}, "fingerprint": "f00d"},
    }


FACTS = CardFacts(
    name="mistral-longpo",
    config=CONFIG,
    num_steps=500,
    stages=[Stage(500, (Stretch(0, used()),))],
    metrics={
        "training, step 500": {"loss": 1.5, "nll": 1.25, "margin": 0.5, "accuracy": 0.75},
        "held out, step 0": {"loss": 2.0, "nll": 1.75},
    },
    source={"license": "apache-2.0", "language": ["en", "fr"], "tags": ["best-model"], "datasets": ["org/theirs"]},
    base_model="mistralai/Mistral-7B-Instruct-v0.2",
    has_chat_template=True,
)
CONVERTED = replace(FACTS, num_steps=0, stages=[], metrics={}, source={}, base_model=None)


def table_rows(card: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]


def test_front_matter(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(model_card(FACTS))
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "mistralai/Mistral-7B-Instruct-v0.2",
        "license": "apache-2.0",
        "language": ["en", "fr"],
        "tags": ["megatron-longpo", "longpo", "preference-optimization", "long-context"],
    }


def test_every_setting_and_metric_is_in_a_table() -> None:
    rows = table_rows(model_card(FACTS))
    for row in (
        ["objective", "name", "longpo"],
        ["", "beta", "0.01"],
        ["schedule", "learning rate", "5e-07"],
        ["reference", "rope", "rope_type default, rope_theta 1000000"],
        ["layout", "context parallel", "8"],
        ["", "sequence parallel", "yes"],
        ["versions", "megatron-longpo", "0.0.7"],
        ["", "megatron-core", "0.19.2"],
        ["data", "num pairs", "412"],
        ["", "num tokens", "trunk 123456789, chosen 4321"],
        ["", "fingerprint", "f00d"],
        ["metric", "training, step 500", "held out, step 0"],
        ["nll", "1.25", "1.75"],
        ["margin", "0.5", ""],
        ["accuracy", "0.75", ""],
    ):
        assert row in rows
    num_metrics, num_heads = 4, 3 * 2
    assert (
        len(rows)
        == sum(len(values) for section, values in used().items() if section != "method") + num_metrics + num_heads
    )


def test_says_what_it_is_and_how_to_use_it() -> None:
    card = model_card(FACTS)
    assert "Weights of mistralai/Mistral-7B-Instruct-v0.2 after 500 steps of LongPO (arXiv 2502.13922)" in card
    assert "up to 131072 tokens, with RoPE rope_type default, rope_theta 10000000" in card
    assert 'from_pretrained("mistral-longpo"' in card and 'LLM("mistral-longpo", max_model_len=131072)' in card
    assert "eprint        = {2502.13922}" in card and "version = {0.0.7}" in card
    for program in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        compile(program, "card", "exec")
    assert "apply_chat_template" not in model_card(replace(FACTS, has_chat_template=False))


def test_what_changed_on_the_way_is_told_by_step() -> None:
    stretches = (Stretch(0, used()), Stretch(120, used(beta=0.5, recompute="full")), Stretch(300, used(num_pairs=7)))
    card = model_card(replace(FACTS, stages=[Stage(500, stretches)]))
    recipe, data = card.split("## Recipe")[1].split("## Data")
    _, second, third = recipe.split("From step ")
    assert second.startswith("121 on:") and third.startswith("301 on:")
    head = [["", "setting", "value"], ["---"] * 3]
    assert table_rows(second) == [*head, ["objective", "beta", "0.5"], ["layout", "recompute", "full"]]
    assert table_rows(third) == [*head, ["objective", "beta", "0.01"], ["layout", "recompute", "no longer set"]]
    assert data.count("From step") == 1
    assert table_rows(data.split("From step 301 on:")[1].split("##")[0]) == [*head, ["data", "num pairs", "7"]]


def test_stages_are_told_apart() -> None:
    stages = [Stage(500, (Stretch(0, used()),)), Stage(60, (Stretch(0, used(beta=0.1)),))]
    card = model_card(replace(FACTS, num_steps=60, stages=stages))
    first, second = card.split("## Data")[0].split("Stage 2 of 2, 60 steps, counted anew:")
    assert "Stage 1 of 2, 500 steps, counted anew:" in first and ["objective", "name", "longpo"] in table_rows(first)
    assert table_rows(second)[2:] == [["objective", "beta", "0.1"]], "only what is different"
    assert "Stage 2 of 2, 60 steps, counted anew:\n\nas before." in card.split("## Data")[1]


def test_converted_only() -> None:
    card = model_card(CONVERTED)
    assert f"converted with megatron-longpo {__version__}: no training took place" in card
    assert "## Recipe" not in card and "## Data" not in card and "## Metrics" not in card
    assert ModelCard(card).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["megatron-longpo"],
    }


def test_trained_but_not_recorded() -> None:
    card = model_card(replace(FACTS, stages=[], metrics={}))
    assert "after 500 steps of training with megatron-longpo." in card and "## Recipe" not in card


def test_the_evaluation_stands_between_metrics_and_use() -> None:
    card = model_card(replace(FACTS, evaluation="| A table |\n| --- |\n"))
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == ["Recipe", "Data", "Metrics", "Evaluation", "How to use it", "Citation"]
    assert "\n## Evaluation\n\n| A table |\n| --- |\n\n## How" in card
    assert card.replace("## Evaluation\n\n| A table |\n| --- |\n\n", "") == model_card(FACTS)


@pytest.mark.parametrize("facts", [FACTS, CONVERTED, replace(FACTS, stages=[])])
def test_what_is_not_known_is_not_said(facts: CardFacts) -> None:
    card = model_card(facts)
    assert not re.search(r"\b(none|null|unknown|nan)\b", card, re.IGNORECASE)
    assert "best-model" not in card and "org/theirs" not in card, "said of the source, not of this model"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_words(name: str) -> None:
    card = model_card(replace(FACTS, stages=[Stage(5, (Stretch(0, used(name)),))]))
    assert f" of {OBJECTIVES[name].description}." in card
    assert {*OBJECTIVES[name].tags, "long-context"} < set(ModelCard(card).data.to_dict()["tags"])
    assert not any(row[0] == "method" for row in table_rows(card))


@pytest.mark.parametrize(
    ("given", "config", "source", "expected"),
    [
        ("org/given", {"_name_or_path": "org/config"}, {"base_model": "org/source"}, "org/given"),
        (None, {"_name_or_path": "org/config"}, {"base_model": "org/source"}, "org/config"),
        (None, {"_name_or_path": "/data/models/x"}, {"base_model": "org/source"}, "org/source"),
        (None, {"_name_or_path": "../models/x"}, {}, None),
        (None, {"_name_or_path": "./x"}, {}, None),
        (None, {"_name_or_path": "~/x"}, {}, None),
        (None, {"_name_or_path": "models/x/y"}, {}, None),
        (None, {"_name_or_path": "x"}, {}, None),
        (None, {"_name_or_path": ""}, {"base_model": ["org/a", "org/b"]}, None),
        (None, {}, {}, None),
    ],
)
def test_base_model(given: str | None, config: dict[str, Any], source: dict[str, Any], expected: str | None) -> None:
    assert base_model(given, config, source) == expected


def test_base_model_must_be_a_name() -> None:
    with pytest.raises(UserError, match=r"--base-model \./models/x: needs the model's name on the Hub"):
        base_model("./models/x", {}, {})


def test_the_sources_card_is_not_passed_off_as_ours(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    edit_config(hf, _name_or_path=str(hf))
    head = {"license": "other", "license_name": "own", "license_link": "LICENSE", "base_model": "org/root"}
    (hf / "README.md").write_text(f"---\n{json.dumps(head)}\n---\n# The best model\nIt wins.\n")
    import_hf(hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {**card.data.to_dict(), **head} == card.data.to_dict()
    assert "wins" not in card.text and "# out\n" in card.text and str(tmp_path) not in str(card)
    assert (tmp_path / "out" / "LICENSE").is_file()


def test_the_verb_takes_a_base_model(tmp_path: Path) -> None:
    import_hf(save_model(tmp_path / "hf"), tmp_path / "checkpoint")
    options = ["--checkpoint", str(tmp_path / "checkpoint"), "--output", str(tmp_path / "out"), "--base-model"]
    assert main(["export-hf", *options, "x"]) == 2
    assert not (tmp_path / "out").exists()
    assert main(["export-hf", *options, "org/x"]) == 0
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == "org/x"


def test_the_verb_takes_a_report_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_hf(save_model(tmp_path / "hf"), tmp_path / "checkpoint")
    report = written(tmp_path / "evaluated", cell([1, 0, 0, 0]), cell([1, 1, 1, 0], model="longpo", order=1))
    export = ["export-hf", "--checkpoint", str(tmp_path / "checkpoint"), "--output", str(tmp_path / "out")]
    capsys.readouterr()
    assert main([*export, "--evaluation", str(report)]) == 2
    write_report(report)
    assert main([*export, "--evaluation", str(report), "--evaluation-model", "dpo"]) == 2
    assert main([*export, "--evaluation-model", "longpo"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and not (tmp_path / "out").exists()
    assert "has no report.json" in errors[0] and "there are: base, longpo" in errors[1]
    assert "Give --evaluation DIR too" in errors[2]
    assert main([*export, "--evaluation", str(report)]) == 0
    rows = table_rows((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))
    dash = "\u2013"
    assert ["base", dash, "25.00 \u00b1 25.00", dash, dash, "25.00 \u00b1 25.00 \u2020"] in rows
    assert ["longpo", dash, "75.00 \u00b1 25.00", dash, dash, "75.00 \u00b1 25.00 \u2020"] in rows
    assert "longpo is this model" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
