"""Hugging Face -> Megatron -> Hugging Face keeps every bit, and the folder works in transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError
from megatron_longpo.hf import export_hf as export_module
from megatron_longpo.hf.export_hf import export_hf
from megatron_longpo.hf.fingerprint import weights_sha256
from megatron_longpo.hf.import_hf import import_hf
from megatron_longpo.hf.sidecar import read_identity
from tests.unit.hf.models import SHAPES, edit_config, save_model


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def meaning(folder: Path) -> dict[str, object]:
    """The configuration as transformers reads it, without the folder's own name."""
    config = AutoConfig.from_pretrained(folder).to_dict()
    return {key: value for key, value in config.items() if key != "_name_or_path"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SHAPES)
def test_every_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    hf = save_model(tmp_path / "hf", name, dtype)
    identity = import_hf(hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    original = tensors(hf)
    assert_same_tensors(tensors(tmp_path / "out"), original)
    assert meaning(tmp_path / "out") == meaning(hf)
    assert identity == read_identity(tmp_path / "checkpoint")
    assert identity.num_parameters == sum(tensor.numel() for tensor in original.values())
    assert identity.tokenizer_fingerprint == tokenizer_fingerprint(load_tokenizer(hf))
    assert (tmp_path / "checkpoint" / "latest_checkpointed_iteration.txt").read_text() == "release"


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_loads_it_and_answers_the_same(tmp_path: Path, name: str) -> None:
    """SmolLM2 has the shape of llama-tied-groups: tied, fewer key/value heads."""
    hf = save_model(tmp_path / "hf", name)
    import_hf(hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    prompt = torch.arange(2, 40)[None]
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (hf, tmp_path / "out")]
    with torch.no_grad():
        before, after = (model(prompt).logits for model in models)
        assert torch.equal(before, after)
        # As long as asked: the export has learnt where an answer ends, the source has not.
        before, after = (
            model.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False) for model in models
        )
    assert before.shape == (1, 46)
    assert torch.equal(before, after)
    messages = [{"role": "user", "content": "w7 w8"}]
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (hf, tmp_path / "out"))
    assert after.apply_chat_template(messages, tokenize=False) == "w7 w8 w1 "
    assert tokenizer_fingerprint(before) == tokenizer_fingerprint(after)
    assert (tmp_path / "out" / "LICENSE").read_text() == "as you like\n"


def test_fingerprint_knows_values_not_files(tmp_path: Path) -> None:
    """The same tensors in five files have the same fingerprint; one changed bit has another."""
    hf = save_model(tmp_path / "hf")
    one = import_hf(hf, tmp_path / "one")
    AutoModelForCausalLM.from_pretrained(hf).save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for path in hf.glob("token*"):
        (tmp_path / "shards" / path.name).write_bytes(path.read_bytes())
    assert import_hf(tmp_path / "shards", tmp_path / "many").weights_sha256 == one.weights_sha256
    assert weights_sha256(tmp_path / "one") == one.weights_sha256
    changed = tensors(hf)
    changed["model.norm.weight"][3] = torch.nextafter(changed["model.norm.weight"][3], torch.tensor(9.0))
    save_file(changed, hf / "model.safetensors", metadata={"format": "pt"})
    assert import_hf(hf, tmp_path / "other").weights_sha256 != one.weights_sha256


@pytest.mark.parametrize(("label", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_dtype_can_be_chosen_at_either_door(tmp_path: Path, label: str, dtype: torch.dtype) -> None:
    hf = save_model(tmp_path / "hf", dtype=torch.float16)
    expected = {name: tensor.to(dtype) for name, tensor in tensors(hf).items()}
    assert import_hf(hf, tmp_path / "converted", label).dtype == label
    export_hf(tmp_path / "converted", tmp_path / "at-import")
    import_hf(hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "at-export", dtype=label)
    for folder in (tmp_path / "at-import", tmp_path / "at-export"):
        assert_same_tensors(tensors(folder), expected)
        assert AutoConfig.from_pretrained(folder).dtype == dtype


def test_older_config_keeps_its_field_for_the_dtype(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    config = json.loads((hf / "config.json").read_text())
    del config["dtype"]
    (hf / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    import_hf(hf, tmp_path / "checkpoint", "bf16")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert exported["torch_dtype"] == "bfloat16"
    assert "dtype" not in exported


def test_mixed_dtypes_stay_mixed(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", dtype=torch.bfloat16)
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in tensors(hf).items()}
    save_file(mixed, hf / "model.safetensors", metadata={"format": "pt"})
    assert import_hf(hf, tmp_path / "checkpoint").dtype == "mixed"
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    assert_same_tensors(tensors(tmp_path / "out"), mixed)
    assert meaning(tmp_path / "out") == meaning(hf)


def test_tolerated_extras(tmp_path: Path) -> None:
    """Old checkpoints store rotary buffers, and some tied ones the output layer once more."""
    hf = save_model(tmp_path / "hf", "llama-tied-groups")
    original = tensors(hf)
    extras = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    extras["lm_head.weight"] = original["model.embed_tokens.weight"].clone()
    save_file({**original, **extras}, hf / "model.safetensors", metadata={"format": "pt"})
    import_hf(hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    assert_same_tensors(tensors(tmp_path / "out"), original)


def test_large_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = save_model(tmp_path / "hf", "qwen2")
    import_hf(hf, tmp_path / "checkpoint")
    monkeypatch.setattr(export_module, "_MAX_SHARD_BYTES", 20_000)
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert_same_tensors(tensors(tmp_path / "out"), tensors(hf))
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_export_refuses_another_models_checkpoint(tmp_path: Path) -> None:
    """hf/config.json decides; what the checkpoint holds must be that, whole, and no more."""
    import_hf(save_model(tmp_path / "hf", "qwen2"), tmp_path / "checkpoint")
    config = tmp_path / "checkpoint" / "hf"
    for changes, message in (
        ({"num_hidden_layers": 5}, r"linear_qkv.layer_norm_weight has shape \[4, 32\], needs \[5, 32\]"),
        ({"num_hidden_layers": 4, "vocab_size": 102}, r"embedding.word_embeddings.weight has shape \[101, 32\]"),
        ({"vocab_size": 101, "tie_word_embeddings": True}, "output_layer.weight is not part of the model"),
        ({"tie_word_embeddings": False, "model_type": "llama"}, "linear_qkv.bias is not part of the model"),
    ):
        edit_config(config, **changes)
        with pytest.raises(UserError, match=message):
            export_hf(tmp_path / "checkpoint", tmp_path / "out")
    edit_config(config, model_type="qwen2")
    import_hf(save_model(tmp_path / "tied", "qwen2-tied"), tmp_path / "other")
    edit_config(tmp_path / "other" / "hf", tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"output_layer\.weight is missing"):
        export_hf(tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_which_iteration(tmp_path: Path) -> None:
    import_hf(save_model(tmp_path / "hf"), tmp_path / "c")
    tracker = tmp_path / "c" / "latest_checkpointed_iteration.txt"
    with pytest.raises(UserError, match="iter_0000007 does not exist; there is no iteration yet"):
        export_hf(tmp_path / "c", tmp_path / "out", iteration=7)
    (tmp_path / "c" / "release").rename(tmp_path / "c" / "iter_0000012")
    with pytest.raises(UserError, match="release does not exist; there are iterations 12"):
        export_hf(tmp_path / "c", tmp_path / "out")
    export_hf(tmp_path / "c", tmp_path / "out", iteration=12)
    tracker.write_text("12\n")
    export_hf(tmp_path / "c", tmp_path / "latest")
    assert_same_tensors(tensors(tmp_path / "latest"), tensors(tmp_path / "out"))
    tracker.write_text("metadata lost")
    with pytest.raises(UserError, match="holds 'metadata lost', needs a number"):
        export_hf(tmp_path / "c", tmp_path / "again")
    tracker.unlink()
    with pytest.raises(UserError, match=r"latest_checkpointed_iteration\.txt does not exist"):
        export_hf(tmp_path / "c", tmp_path / "again")
