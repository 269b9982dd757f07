"""Rotary settings in a Hugging Face ``config.json``: read, checked, and written back.

Both forms are read: ``rope_parameters`` of transformers 5, and the older ``rope_theta`` with ``rope_scaling``, with
transformers' own defaults and order of precedence (transformers 5, ``modeling_rope_utils.py``); a test compares.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Never

from megatron_longpo.errors import UserError
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.strict_json import is_object

ROPE_EXAMPLE = """'{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}'"""
"""As a shell takes it."""

_DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class _Type:
    """The fields of a rope_type beside rope_type and rope_theta."""

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_LLAMA3 = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
_YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
_TYPES = {
    "default": _Type(),
    "linear": _Type(("factor",)),
    "llama3": _Type(_LLAMA3),
    "yarn": _Type(("factor", "original_max_position_embeddings"), _YARN),
}


def rope_parameters(hf_config: Mapping[str, Any]) -> RopeParameters:
    """The rotary settings of a config.json.

    Raises:
        UserError: a type or field that is not supported, a missing or wrong value, RoPE on part of a head, or one
            setting for some layers and another for others.
    """
    field = "rope_scaling" if hf_config.get("rope_scaling") else "rope_parameters"
    where = f"config.json: {field}"
    parameters: Any = hf_config.get(field) or {}
    if not is_object(parameters):
        _refuse(where, parameters, "it must be an object")
    if any(isinstance(value, dict) for value in parameters.values()):
        _refuse(where, parameters, "only one setting for all layers is supported")
    for source in (parameters, hf_config):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            _refuse("config.json: partial_rotary_factor", source["partial_rotary_factor"], "only 1.0 is supported")
    given = {name: value for name, value in parameters.items() if name != "partial_rotary_factor"}
    if "rope_theta" not in given:
        given["rope_theta"] = _theta(hf_config)
    if _rope_type(given) in ("llama3", "yarn"):
        given.setdefault("original_max_position_embeddings", hf_config.get("max_position_embeddings"))
        if hf_config.get("original_max_position_embeddings") is not None:  # where some models have it, and it wins
            given["original_max_position_embeddings"] = hf_config["original_max_position_embeddings"]
    return checked(given, where)


def scaling_option(text: str, option: str, rope_theta: float) -> RopeParameters:
    """Rotary settings from an option's JSON, in the form of ``rope_scaling``, and a base.

    Raises:
        UserError: as `rope_parameters`, or no JSON object; or it names a base of its own.
    """
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{option} {text}: not valid JSON ({error}); give for instance {ROPE_EXAMPLE}") from None
    if not is_object(given) or _rope_type(given) is None:
        raise UserError(f"{option} {text}: needs an object with a rope_type; give for instance {ROPE_EXAMPLE}")
    if "rope_theta" in given:
        raise UserError(f"{option}: rope_theta is given with --rotary-base; remove it here")
    return checked({**given, "rope_theta": rope_theta}, option)


def checked(given: Mapping[str, Any], where: str) -> RopeParameters:
    """Rotary settings from their Hugging Face fields; a field that is null counts as absent.

    Args:
        where: what to name in an error, such as ``config.json: rope_scaling``.

    Raises:
        UserError: naming the field.
    """
    rope_type = _rope_type(given) or "default"
    if rope_type not in tuple(_TYPES):  # a list is no key
        _refuse(f"{where}: rope_type", rope_type, f"supported are {', '.join(_TYPES)}")
    given = {name: value for name, value in given.items() if name not in ("type", "rope_type") and value is not None}
    kind = _TYPES[rope_type]
    for name in (needed := ("rope_theta", *kind.needed)):
        if name not in given:
            raise UserError(f"{where}: {name} is missing; rope_type {rope_type!r} needs {', '.join(needed)}")
    for name, value in given.items():
        if name not in ("rope_theta", *kind.needed, *kind.optional):
            known = ", ".join((*kind.needed, *kind.optional)) or "none"
            _refuse(f"{where}: {name}", value, f"rope_type {rope_type!r} does not read it (its fields: {known})")
    values: dict[str, Any] = {name: _value(f"{where}: {name}", name, value) for name, value in given.items()}
    parameters = RopeParameters(rope_type=rope_type, **values)
    _refuse_contradictions(parameters, where)
    return parameters


def with_rope(hf_config: Mapping[str, Any], rope: RopeParameters) -> dict[str, Any]:
    """``hf_config`` with these rotary settings, in the form it has: the older one works with transformers 4 too."""
    config = dict(hf_config)
    for name in ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        config.pop(name, None)
    if config.pop("rope_parameters", None) is not None:
        return {**config, "rope_parameters": rope.as_dict()}
    scaling = {name: value for name, value in rope.as_dict().items() if name != "rope_theta"}
    return {
        **config,
        "rope_theta": rope.rope_theta,
        "rope_scaling": None if rope.rope_type == "default" else scaling,
    }


def _rope_type(given: Mapping[str, Any]) -> Any:
    return given.get("rope_type", given.get("type"))


def _theta(hf_config: Mapping[str, Any]) -> Any:
    if "rope_theta" not in hf_config:
        return _DEFAULT_THETA
    return _value("config.json: rope_theta", "rope_theta", hf_config["rope_theta"])


def _value(where: str, name: str, value: Any) -> float | int | bool:
    if name == "truncate":
        if not isinstance(value, bool):
            _refuse(where, value, "it must be true or false")
        return value
    whole = name == "original_max_position_embeddings"
    least = 1 if whole or name == "factor" else 0
    valid = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not valid or not least <= value < float("inf") or value == 0:
        bound = "of at least 1" if least else "above 0"
        _refuse(where, value, f"it must be a {'whole ' if whole else ''}number {bound}")
    return value if whole else float(value)


def _refuse_contradictions(rope: RopeParameters, where: str) -> None:
    if rope.rope_type == "llama3" and rope.low_freq_factor >= rope.high_freq_factor:  # type: ignore[operator]
        _refuse(f"{where}: low_freq_factor", rope.low_freq_factor, f"it must be below {rope.high_freq_factor} (high)")
    if (rope.beta_fast or 32) <= (rope.beta_slow or 1):
        _refuse(f"{where}: beta_fast", rope.beta_fast, f"it must be above beta_slow = {rope.beta_slow or 1}")
    if (rope.mscale is None) != (rope.mscale_all_dim is None):
        _refuse(f"{where}: mscale", rope.mscale, "mscale and mscale_all_dim work together only; give both or neither")
    if rope.attention_factor is not None and rope.mscale is not None:
        _refuse(f"{where}: mscale", rope.mscale, "attention_factor overrides it; keep one of them")


def _refuse(what: str, value: object, needed: str) -> Never:
    raise UserError(f"{what} is {json.dumps(value, default=str)}; {needed}")
