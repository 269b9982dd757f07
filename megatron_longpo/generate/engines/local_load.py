"""A Hugging Face folder as a model that answers in this process."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longpo.data.render import Context
from megatron_longpo.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from megatron_longpo.generate.engines.local_model import LocalModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRope:
    """The policy's rotary settings, as its config.json would say them."""

    rope_parameters: dict[str, Any]
    """transformers 5: rope_type, rope_theta, factor, ..."""
    max_position_embeddings: int
    """Tokens of a long context."""


def load_local_model(
    folder: Path,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    dtype: str | None,
    device: str,
    policy_rope: PolicyRope | None,
) -> tuple["LocalModel", dict[Context, int]]:
    """The folder's model on a device, and how many tokens each context may have; see `open_local_engine`.

    Raises:
        UserError: no such device; no loadable model; tensors missing; no context length; no place for ``policy_rope``.
    """
    from transformers import AutoConfig

    from megatron_longpo.generate.engines.local_model import LocalModel

    place = find_device(device)
    model = load_weights(folder, default_dtype(dtype, place), place)
    config_class: Any = AutoConfig
    config = config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise UserError(f"{folder}/config.json: no max_position_embeddings, so its context length is unknown; add it")
    if policy_rope is None:
        return LocalModel(model, tokenizer, None), {"short": limit, "long": limit}
    if not hasattr(model.base_model, "rotary_emb"):
        raise UserError(
            f"{folder}: {type(model).__name__} does not hold its RoPE in one place, so it cannot have another one for"
            " long contexts; serve two models and use --endpoint and --long-endpoint"
        )
    long_config: Any = copy.deepcopy(config)
    long_config.max_position_embeddings = policy_rope.max_position_embeddings
    long_config.rope_parameters = dict(policy_rope.rope_parameters)
    limits: dict[Context, int] = {"short": limit, "long": policy_rope.max_position_embeddings}
    return LocalModel(model, tokenizer, long_config), limits


def find_device(device: str) -> str:
    """``auto`` as cuda or cpu, every other name as it is; raises UserError for a device that cannot be used."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if (torch.device(device).index or 0) >= max(torch.cuda.device_count(), 1):
            raise RuntimeError(f"there are {torch.cuda.device_count()}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--device {device}: cannot be used ({reason}); use auto, cpu, cuda or cuda:N") from error
    return device


def default_dtype(given: str | None, device: str) -> str:
    """The given dtype, or float32 on a CPU and the checkpoint's own (``auto``) elsewhere."""
    return given or ("float32" if device == "cpu" else "auto")


def load_weights(folder: Path, dtype: str, device: str) -> Any:
    """transformers' causal language model of a folder, on its device, in evaluation mode.

    Raises:
        UserError: it cannot be loaded, or tensors are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    try:
        model, info = loader.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        model = model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise UserError(f"{folder}: the weights do not fit into the memory of {device}; serve it instead") from error
    except Exception as error:  # whatever a broken or foreign folder makes transformers raise is the folder's fault
        raise UserError(
            f"{folder}: no model can be loaded ({one_line(error)}); give a folder that transformers"
            " reads without code of its own"
        ) from error
    if missing := sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"])):
        raise UserError(
            f"{folder}: {len(missing)} tensors of the model are missing or misshapen, {missing[0]} the first; copy or"
            " save it again"
        )
    return model
