"""Which weights of a folder are imported: those that transformers loads from it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_longpo.errors import UserError
from megatron_longpo.hf.export_hf import export_hf
from megatron_longpo.hf.import_hf import import_hf
from tests.unit.hf.models import edit_config, save_model

WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


def rename(rule: Callable[[str], str]) -> Change:
    def change(hf: Path) -> None:
        tensors = {rule(name): tensor for name, tensor in load_file(hf / WEIGHTS).items()}
        save_file(tensors, hf / WEIGHTS, metadata={"format": "pt"})

    return change


def stale_shards(hf: Path) -> None:
    """Sharded weights of an older step, which a single file was saved beside."""
    newer = load_file(hf / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in newer.items()}, hf / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(newer, "model-00001-of-00001.safetensors")}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))


def stale_pickle(hf: Path) -> None:
    tensors = {name: tensor + 1 for name, tensor in load_file(hf / WEIGHTS).items()}
    torch.save(tensors, hf / "pytorch_model.bin")


def weights_by_name(hf: Path) -> None:
    """The configuration names the file."""
    (hf / WEIGHTS).rename(hf / "step-7.safetensors")
    edit_config(hf, transformers_weights="step-7.safetensors")


def adapter_left(hf: Path) -> None:
    """A merged model in its adapter's folder."""
    (hf / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    (hf / "adapter_model.safetensors").write_bytes((hf / WEIGHTS).read_bytes())


CHANGES: dict[str, tuple[str, Change]] = {
    "tied-head-only": (
        "llama-tied-groups",
        rename(lambda name: "lm_head.weight" if name == "model.embed_tokens.weight" else name),
    ),
    "without-the-prefix": ("qwen2-tied", rename(lambda name: name.removeprefix("model."))),
    "without-the-prefix-but-for-the-head": ("llama", rename(lambda name: name.removeprefix("model."))),
    "stale-shards": ("llama", stale_shards),
    "stale-pickle": ("qwen2", stale_pickle),
    "weights-by-name": ("llama", weights_by_name),
    "adapter-left": ("qwen3", adapter_left),
}


def loaded(hf: Path) -> dict[str, Tensor]:
    return AutoModelForCausalLM.from_pretrained(hf).state_dict()


@pytest.mark.parametrize(("shape", "change"), CHANGES.values(), ids=CHANGES)
def test_the_weights_are_those_that_transformers_loads(shape: str, change: Change, tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", shape)
    change(hf)
    import_hf(hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    theirs, ours = loaded(hf), loaded(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert not list((tmp_path / "out").glob("adapter*"))


def test_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    adapter_left(hf)
    (hf / WEIGHTS).unlink()
    with pytest.raises(UserError, match="is an adapter and no whole model; merge it into its base model"):
        import_hf(hf, tmp_path / "checkpoint")


def test_a_tensor_under_both_names_is_refused(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    tensors = load_file(hf / WEIGHTS)
    save_file(tensors | {"norm.weight": tensors["model.norm.weight"] + 1}, hf / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"tensor norm\.weight is not part of the model"):
        import_hf(hf, tmp_path / "checkpoint")
