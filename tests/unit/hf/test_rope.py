"""Rotary settings: what transformers makes of the same config.json, or refused by name; and back into the file."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_longpo.errors import UserError
from megatron_longpo.hf.rope import rope_parameters, scaling_option

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def of(**changes: Any) -> dict[str, Any]:
    return LLAMA | changes


@pytest.mark.parametrize(
    "config",
    [
        of(),
        of(rope_theta=5e5, rope_scaling=None),
        of(rope_parameters={"rope_theta": 2e6, "partial_rotary_factor": 1.0}, rope_theta=3e6),
        of(rope_scaling={"type": "linear", "factor": 2}, rope_theta=5e5),
        of(rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}),
        of(rope_scaling={"rope_type": "llama3", **LLAMA3}, rope_theta=5e5),
        of(rope_parameters={"rope_type": "llama3", **LLAMA3, "low_freq_factor": 2, "rope_theta": 5e5}),
        of(rope_scaling=YARN, rope_theta=1e6),
        of(rope_scaling={"type": "yarn", "factor": 4.0}),
        of(rope_scaling=YARN, original_max_position_embeddings=64),
        of(rope_scaling=YARN, rope_parameters={"rope_theta": 1e6}),
        of(rope_parameters={**YARN, "rope_type": "yarn", "rope_theta": 1e6, "attention_factor": 1.5}),
        of(rope_scaling={**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}),
        of(rope_scaling={**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False}),
        of(rope_scaling={**YARN, "attention_factor": None, "beta_fast": None}),
    ],
)
def test_equals_what_transformers_reads(config: dict[str, Any]) -> None:
    """Parameters, frequencies and attention factor, to the bit."""
    theirs = AutoConfig.for_model(**json.loads(json.dumps(config)))
    rotary = LlamaRotaryEmbedding(theirs)
    ours = rope_parameters(config)
    unread = ("type", "partial_rotary_factor")
    assert ours.as_dict() == {k: v for k, v in theirs.rope_parameters.items() if v is not None and k not in unread}
    inv_freq, attention_factor = ours.frequencies(64, 128)
    assert torch.equal(inv_freq, rotary.inv_freq)
    assert attention_factor == rotary.attention_scaling


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_scaling: rope_type is "dynamic"; supported are'),
        ({"rope_scaling": {"rope_type": "longrope"}}, 'rope_type is "longrope"; supported are default, linear, llama3'),
        ({"rope_scaling": {"type": "su"}}, 'rope_type is "su"'),
        ({"rope_scaling": {"type": ["yarn"]}}, 'rope_type is ["yarn"]'),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing; rope_type 'linear' needs"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters: factor is missing"),
        ({"rope_scaling": {**YARN, "factor": None}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, "factor is 0.5; it must be a number of at least 1"),
        ({"rope_scaling": {**YARN, "factor": "4"}}, 'factor is "4"; it must be a number'),
        ({"rope_scaling": {**YARN, "factor": float("inf")}}, "factor is Infinity"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 32.5}}, "it must be a whole number of at least"),
        ({"rope_scaling": {**YARN, "attention_factor": 0}}, "attention_factor is 0; it must be a number above 0"),
        ({"rope_scaling": {**YARN, "truncate": 1}}, "truncate is 1; it must be true or false"),
        ({"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 2}}, "beta_fast is 1.0; it must be above beta_slow"),
        ({"rope_scaling": {**YARN, "mscale": 1.0}}, "mscale and mscale_all_dim work together only"),
        (
            {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0}},
            "attention_factor overrides it",
        ),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4}}, "low_freq_factor is 4.0; it must"),
        ({"rope_scaling": {**YARN, "finetuned": True}}, "finetuned is true; rope_type 'yarn' does not read it"),
        ({"rope_scaling": {"type": "default", "factor": 2.0}}, "factor is 2.0; rope_type 'default' does not read it"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "one setting for all layers"),
        ({"rope_parameters": "default"}, "must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        ({"rope_theta": 0}, "rope_theta is 0; it must be a number above 0"),
        ({"rope_theta": "1e4"}, 'rope_theta is "1e4"'),
    ],
)
def test_refused_by_name(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        rope_parameters(of(**rope))
    assert message in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


def test_option_is_the_form_of_a_config_json() -> None:
    expected = rope_parameters(of(rope_theta=1e7, rope_scaling=YARN))
    assert scaling_option(json.dumps(YARN), "--option", 1e7) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yarn", "--option yarn: not valid JSON"),
        ("[4]", "--option [4]: needs an object with a rope_type; give for instance"),
        ('{"factor": 4.0}', "needs an object with a rope_type"),
        ('{"rope_type": "yarn", "factor": 4.0}', "--option: original_max_position_embeddings is missing"),
        ('{"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}', "rope_theta is given with --rotary-base"),
        ('{"rope_type": "dynamic", "factor": 4.0}', '--option: rope_type is "dynamic"; supported are'),
    ],
)
def test_option_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        scaling_option(text, "--option", 1e4)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
