"""Defaults that follow from what is installed."""

import importlib.machinery
from typing import Any

import pytest

from megatron_longpo.arguments import defaults


@pytest.mark.parametrize(
    "transformer_impl, has_apex, expected",
    [
        ("local", False, (False, False)),
        ("local", True, (True, False)),
        ("transformer_engine", False, (True, True)),
    ],
)
def test_fusions(
    transformer_impl: str, has_apex: bool, expected: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron's own linear layers need Apex for it, Transformer Engine's bring it along."""
    found: dict[str, Any] = {"fused_weight_gradient_mlp_cuda": importlib.machinery.ModuleSpec("x", None)}
    monkeypatch.setattr(defaults, "find_spec", found.get if has_apex else lambda _: None)
    assert tuple(defaults.fusions(transformer_impl).values()) == expected
