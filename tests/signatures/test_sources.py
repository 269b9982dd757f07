"""What is read from sources without importing them, against what Python says of the same names once imported."""

import importlib
import inspect
from typing import Any

import pytest

from tests.signatures.recorded import Source, signature_of_record
from tests.signatures.sources import Absent, record
from tests.signatures.test_calls import read


@pytest.mark.parametrize(
    "dotted, method",
    [
        ("megatron.core.models.gpt.GPTModel", "__init__"),  # imported from another module
        ("megatron.core.models.gpt.GPTModel", "sharded_state_dict"),
        ("megatron.core.transformer.attention.SelfAttention", "forward"),  # of its base
        ("megatron.core.transformer.TransformerConfig", ""),  # a dataclass with a base
        ("megatron.training.pretrain", ""),
        ("lm_eval.models.huggingface.HFLM", "__init__"),
        ("lm_eval.evaluator.simple_evaluate", ""),
    ],
)
def test_a_signature_is_pythons(dotted: str, method: str) -> None:
    module, _, name = dotted.rpartition(".")
    true = getattr(importlib.import_module(module), name)
    theirs = inspect.signature(getattr(true, method) if method else true).parameters
    found = signature_of_record(record(read, dotted, (method,) if method else ()), method).parameters
    assert set(found) == set(theirs)
    for one, parameter in found.items():
        assert _is(parameter.default, theirs[one].default), one
        assert parameter.kind == theirs[one].kind or not method
    assert list(found) == list(theirs) or not method


def _is(found: Any, true: Any) -> bool:
    return isinstance(found, Source) or found is true or found == true


def test_what_is_not_there_is_absent() -> None:
    for dotted, methods in (
        ("megatron.core.no", ()),
        ("megatron.no.Name", ()),
        ("megatron.core.ModelParallelConfig", ("no",)),
    ):
        with pytest.raises(Absent):
            record(read, dotted, methods)
