"""Whatever is wrong with a Hugging Face folder is told by tensor and file, and nothing is left behind."""

import pickle
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

UP = "model.layers.2.mlp.up_proj.weight"
Change = Callable[[dict[str, Tensor]], object]


def change_tensors(folder: Path, change: Change) -> None:
    """Apply ``change`` to the dictionary of the folder's tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def message_of(hf: Path, dtype: str = "as-is") -> str:
    """Import, expect a refusal in one line and no trace of the output."""
    output = hf.parent / "checkpoint"
    with pytest.raises(UserError) as caught:
        import_hf(hf, output, dtype)
    assert sorted(hf.parent.iterdir()) == [hf], "something was left behind"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def poison(value: float) -> Change:
    return lambda tensors: tensors[UP][3].fill_(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(UP), f"tensor {UP} is missing; config.json asks for it"),
        (
            lambda tensors: (tensors.pop(UP), tensors.pop("lm_head.weight")),
            "tensor lm_head.weight and 1 more is missing",
        ),
        (lambda tensors: tensors.update(x=torch.ones(2)), "model.safetensors: tensor x is not part of the model"),
        (
            lambda tensors: tensors.update({f"model.layers.4.{i}": torch.ones(2) for i in range(3)}),
            "tensor model.layers.4.0 (and 2 more) is not part of the model",
        ),
        (
            lambda tensors: tensors.update({UP: tensors[UP][1:].clone()}),
            f"model.safetensors: tensor {UP} has shape [47, 32], config.json asks for [48, 32]",
        ),
        (poison(float("nan")), f"model.safetensors: tensor {UP} holds NaN or infinity"),
        (poison(float("-inf")), f"tensor {UP} holds NaN or infinity"),
        (lambda tensors: tensors.update({UP: tensors[UP].double()}), f"tensor {UP} has dtype F64; needs one of"),
        (lambda tensors: tensors.update({UP: tensors[UP].to(torch.int8)}), f"tensor {UP} has dtype I8"),
        (
            lambda tensors: tensors.update({UP: tensors[UP].bfloat16()}),
            f"tensor {UP} is bf16, model.layers.0.mlp.gate_proj.weight is fp32, and Megatron stores them as one",
        ),
    ],
)
def test_bad_tensors(tmp_path: Path, change: Change, message: str) -> None:
    hf = save_model(tmp_path / "hf")
    change_tensors(hf, change)
    assert message in message_of(hf)


def test_mixed_parts_are_fine_with_a_dtype(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    change_tensors(hf, lambda tensors: tensors.update({UP: tensors[UP].bfloat16()}))
    assert import_hf(hf, tmp_path / "checkpoint", "fp32").dtype == "fp32"


def test_too_large_for_fp16(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    change_tensors(hf, poison(1e5))
    assert f"tensor {UP} does not fit into float16; use --dtype bf16 or fp32" in message_of(hf, "fp16")


def test_tied_but_different_output_layer(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", "llama-tied-groups")
    change_tensors(hf, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    assert "lm_head.weight differs from the embedding" in message_of(hf)


def test_unsupported_config(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    edit_config(hf, model_type="gpt2")
    assert 'config.json: model_type is "gpt2"' in message_of(hf)
    edit_config(hf, model_type="llama", rope_scaling={"rope_type": "longrope", "factor": 4.0})
    assert 'rope_type is "longrope"; supported are default, linear, llama3, yarn' in message_of(hf)


def test_code_of_a_model_is_refused(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    edit_config(hf, auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    message = message_of(hf)
    assert message.startswith('config.json: auto_map is {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}; ')
    assert "code of a model is never run" in message


def test_broken_front_matter(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    for head in ("license: [mit", "just text", "license: mit\n- x"):
        (hf / "README.md").write_text(f"---\n{head}\n---\n")
        assert f"{hf / 'README.md'}: its front matter is not valid YAML" in message_of(hf)


def test_no_safetensors(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    (hf / "model.safetensors").unlink()
    assert "holds neither model.safetensors nor model.safetensors.index.json" in message_of(hf)
    (hf / "pytorch_model.bin").touch()
    assert "pickled weights (*.bin) only" in message_of(hf)


def test_broken_safetensors(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    content = (hf / "model.safetensors").read_bytes()
    (hf / "model.safetensors").write_bytes(content[:-100])
    assert f"{hf / 'model.safetensors'}: not a safetensors file" in message_of(hf)


def test_broken_index(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    (hf / "model.safetensors").rename(hf / "part.safetensors")  # which would be taken in the place of an index
    index = hf / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "gone.safetensors"}}')
    assert f"{hf / 'gone.safetensors'} does not exist, but model.safetensors.index.json names it" in message_of(hf)
    for content in ('{"weight_map": {}}', '{"weight_map": ["part.safetensors"]}', "{}"):
        index.write_text(content)
        assert "no weight_map" in message_of(hf)
    (hf / "copy.safetensors").write_bytes((hf / "part.safetensors").read_bytes())
    index.write_text('{"weight_map": {"x": "copy.safetensors", "y": "part.safetensors"}}')
    assert f"is also in {hf / 'copy.safetensors'}; remove the stale file" in message_of(hf)


def test_no_tokenizer(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    for path in hf.glob("token*"):
        path.unlink()
    assert "tokenizer" in message_of(hf)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        with pytest.raises(UserError, match=f"^--hf .*{name}: no such folder; give a Hugging Face folder"):
            import_hf(tmp_path / name, tmp_path / "checkpoint")


def test_vocabulary_of_another_model(tmp_path: Path) -> None:
    """The tokenizer has 97 tokens."""
    hf = save_model(tmp_path / "hf", vocab_size=96)
    assert "the tokenizer has token ids up to 96, config.json says vocab_size 96; it is of another" in message_of(hf)


def test_shard_missing_of_many(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", hidden_size=64)
    AutoModelForCausalLM.from_pretrained(hf).save_pretrained(hf, max_shard_size="50KB")
    (hf / "model.safetensors").unlink()
    gone = sorted(hf.glob("model-*.safetensors"))[1]
    gone.unlink()
    assert f"{gone} does not exist, but model.safetensors.index.json names it" in message_of(hf)


def test_a_checkpoint_is_no_source(tmp_path: Path) -> None:
    import_hf(save_model(tmp_path / "model"), tmp_path / "checkpoint")
    with pytest.raises(UserError, match=r"checkpoint/config\.json does not exist"):
        import_hf(tmp_path / "checkpoint", tmp_path / "out")
    with pytest.raises(UserError, match=r"model/hf/config\.json does not exist; make the folder with .*import-hf"):
        export_hf(tmp_path / "model", tmp_path / "out")


def test_target_in_a_file(tmp_path: Path) -> None:
    """A read-only folder gives an OSError of the same kind; to root nothing is read-only."""
    hf = save_model(tmp_path / "hf")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file is a file; choose another output"):
        import_hf(hf, tmp_path / "file" / "out")
    with pytest.raises(FileExistsError, match=r"file is a file; choose another output"):
        import_hf(hf, tmp_path / "file")


def test_target_in_the_source(tmp_path: Path) -> None:
    """Or equal to it, also by another name."""
    hf, checkpoint = save_model(tmp_path / "hf"), tmp_path / "checkpoint"
    (tmp_path / "link").symlink_to(hf)
    before = sorted(hf.rglob("*"))
    for output in (hf / "out", tmp_path / "link" / "a" / "b", tmp_path / "none" / ".." / "hf" / "out"):
        with pytest.raises(FileExistsError, match="hf, which is only read; choose another output"):
            import_hf(hf, output)
    for output in (hf, tmp_path / "link"):
        with pytest.raises(FileExistsError, match="hf already exists and is not empty"):
            import_hf(hf, output)
    assert sorted(hf.rglob("*")) == before
    import_hf(hf, checkpoint)
    with pytest.raises(FileExistsError, match="checkpoint, which is only read; choose another output"):
        export_hf(checkpoint, checkpoint / "hf" / "out")


def test_paths_of_any_kind(tmp_path: Path) -> None:
    """Blanks, letters beyond ASCII, a link to an empty folder, a link to where a folder shall be."""
    hf = save_model(tmp_path / "ein Modell \u00fc \u4e2d")
    (tmp_path / "hub").mkdir()
    for path in hf.iterdir():  # as the Hub's cache keeps a model
        (tmp_path / "hub" / path.name).symlink_to(path)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        (tmp_path / f"to {name}").symlink_to(tmp_path / name)
    import_hf(tmp_path / "hub", tmp_path / "to empty")
    import_hf(hf, tmp_path / "to absent")
    export_hf(tmp_path / "to absent", tmp_path / "\u00e9t\u00e9 1")
    assert (tmp_path / "empty" / "longpo.json").is_file() and (tmp_path / "absent" / "longpo.json").is_file()
    assert (
        load_file(tmp_path / "\u00e9t\u00e9 1" / "model.safetensors").keys()
        == load_file(hf / "model.safetensors").keys()
    )


@pytest.mark.parametrize("name", [".metadata", "metadata.json"])
def test_half_written_checkpoint(tmp_path: Path, name: str) -> None:
    import_hf(save_model(tmp_path / "hf"), tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "release" / name
    for content in (b"", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"release(/metadata.json|: cannot read {name})"):
            export_hf(tmp_path / "checkpoint", tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=f"release lacks {name}: no complete checkpoint"):
        export_hf(tmp_path / "checkpoint", tmp_path / "out")
    assert not (tmp_path / "out").exists()
