"""The model card: ``README.md`` of an exported folder, with Hugging Face's front matter. Only what is known is said."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load  # pyright: ignore[reportUnknownVariableType]

from megatron_longpo import __version__
from megatron_longpo.errors import UserError
from megatron_longpo.hf.rope import rope_parameters
from megatron_longpo.hf.training_record import Settings, Stage
from megatron_longpo.strict_json import is_object
from megatron_longpo.templates import render

CARD = "README.md"

_KEPT = ("license", "license_name", "license_link", "language")
"""What the source's card says that still holds."""
_METRICS = ("loss", "nll", "preference_loss", "margin", "accuracy")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """What there is to say of an exported model."""

    name: str
    """Name of the folder."""
    config: Mapping[str, Any]
    """``config.json`` as exported."""
    num_steps: int
    """0 for a model that was converted and not trained."""
    stages: Sequence[Stage]
    """It is empty if no recipe is recorded."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Where measured -> name -> value."""
    source: Mapping[str, Any]
    """Front matter of the imported folder's own card."""
    base_model: str | None
    """ID on the Hub."""
    has_chat_template: bool
    evaluation: str = ""
    """Markdown that stands below the heading "Evaluation"; empty: there is no such section."""


def front_matter(hf: Path) -> dict[str, Any]:
    """The YAML at the head of ``HF/README.md``; empty if there is none.

    Raises:
        UserError: it is not valid.
    """
    path = hf / CARD
    if not path.is_file():
        return {}
    try:
        return metadata_load(path) or {}  # pyright: ignore[reportUnknownVariableType]
    except Exception as error:  # whatever YAML makes of a broken file
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its front matter is not valid YAML ({reason}); correct or remove it") from error


def hub_id(name: str) -> str | None:
    """``name`` if it can be the ID of a model on the Hub, None if it is a path or a bare name."""
    return name if _HUB_ID.fullmatch(name) else None


def base_model(given: str | None, config: Mapping[str, Any], source: Mapping[str, Any]) -> str | None:
    """The ID of the model that was imported: as given, as its configuration says, or else its card's own base.

    Raises:
        UserError: the given one is no ID.
    """
    if given is not None and hub_id(given) is None:
        raise UserError(f"--base-model {given}: needs the model's name on the Hub, such as mistralai/Mistral-7B-v0.1")
    candidates = (given, config.get("_name_or_path"), source.get("base_model"))
    return next((name for name in candidates if isinstance(name, str) and hub_id(name)), None)


def model_card(facts: CardFacts) -> str:
    """The whole card, Markdown under YAML: ``card.md.jinja`` with what is known."""
    method: Mapping[str, Any] = _last_settings(facts)["method"] if facts.stages else {"description": None, "tags": []}
    kept = {name: facts.source[name] for name in _KEPT if isinstance(facts.source.get(name), str | list)}
    front_matter: Any = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=facts.base_model,
        tags=["megatron-longpo", *method["tags"]],
        **kept,
    )
    values = {
        "front_matter": front_matter.to_yaml(),
        "name": facts.name,
        "base_model": facts.base_model,
        "num_steps": facts.num_steps,
        "steps": _steps(facts.num_steps),
        "method": method["description"],
        "version": __version__,
        "trained_by": _last_settings(facts)["versions"]["megatron-longpo"] if facts.stages else __version__,
        "model_type": facts.config["model_type"],
        "max_length": facts.config["max_position_embeddings"],
        "rope": _shown(rope_parameters(facts.config).as_dict()),
        "recipe": _stages(facts.stages, of_the_data=False),
        "data": _stages(facts.stages, of_the_data=True),
        "metric_columns": list(facts.metrics),
        "metrics": list(_metric_rows(list(facts.metrics.values()))),
        "has_chat_template": facts.has_chat_template,
        "evaluation": facts.evaluation.strip(),
    }
    return render("megatron_longpo.hf", "card.md.jinja", values) + "\n"


def _last_settings(facts: CardFacts) -> Settings:
    return facts.stages[-1].stretches[-1].settings


def _stages(stages: Sequence[Stage], of_the_data: bool) -> list[dict[str, Any]]:
    """All settings that the first steps were taken with; then, for what came later, what is different."""
    shown: list[dict[str, Any]] = []
    previous: Settings = {}
    for stage in stages:
        stretches: list[dict[str, Any]] = []
        for stretch in stage.stretches:
            settings = {
                name: one
                for name, one in stretch.settings.items()
                if (name == "data") == of_the_data and name != "method"  # which the first sentence says
            }
            if rows := list(_rows(_changed(previous, settings))):
                stretches.append({"from_step": stretch.after_step and stretch.after_step + 1, "rows": rows})
            previous = settings
        shown.append({"steps": _steps(stage.num_steps), "stretches": stretches})
    return shown


def _steps(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


def _changed(before: Settings, after: Settings) -> Settings:
    """What of ``after`` is not as it was, and what is gone."""
    changed: Settings = {}
    for section in [*after, *(before.keys() - after.keys())]:
        old, new = before.get(section, {}), after.get(section, {})
        values = {name: value for name, value in new.items() if old.get(name) != value}
        values |= {name: "no longer set" for name in old if name not in new}
        if values:
            changed[section] = values
    return changed


def _rows(settings: Settings) -> Iterable[Sequence[str]]:
    for section, values in settings.items():
        for index, (name, value) in enumerate(values.items()):
            yield ("" if index else section, name.replace("_", " "), _shown(value))


def _metric_rows(columns: Sequence[Mapping[str, Any]]) -> Iterable[Sequence[str]]:
    for name in _METRICS:
        values = [column.get(name) for column in columns]
        cells = [f"{value:.6g}" if _is_number(value) else "" for value in values]
        if any(cells):
            yield (name.replace("_", " "), *cells)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if is_object(value):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.12g}" if isinstance(value, float) else str(value)
