"""What can be said of the vLLM engine where vLLM is not installed."""

import importlib.util
from pathlib import Path

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.generate.engines.local_load import PolicyRope
from megatron_longpo.generate.engines.vllm_engine import open_vllm_engine


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^vLLM cannot be imported \(No module named 'vllm'\); its pins .*--endpoint URL$"
    ):
        open_vllm_engine(tmp_path)


def test_a_second_rope_is_refused(tmp_path: Path) -> None:
    rope = PolicyRope(rope_parameters={"rope_type": "default", "rope_theta": 1e7}, max_position_embeddings=131072)
    with pytest.raises(UserError, match=r"one RoPE a model.*serve two and use --endpoint and --long-endpoint"):
        open_vllm_engine(tmp_path, policy_rope=rope)
