"""What travels beside the weights: identity, configuration with the trained RoPE, tokenizer."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.hf.export_hf import export_hf
from megatron_longpo.hf.import_hf import import_hf
from megatron_longpo.hf.rope import rope_parameters
from megatron_longpo.hf.sidecar import copy_hf_files, copy_sidecar, read_hf_config, read_identity
from megatron_longpo.model.rope_parameters import RopeParameters
from tests.unit.hf.models import edit_config, save_model

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = RopeParameters(rope_type="yarn", rope_theta=1e7, factor=4.0, original_max_position_embeddings=32, beta_fast=20.0)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported Llama with rope_theta 5e5 and 128 positions; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("sidecar")
    import_hf(save_model(folder / "hf"), folder / "checkpoint")
    return folder / "checkpoint"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_copy_carries_the_trained_rope_to_the_export(imported: Path, tmp_path: Path) -> None:
    before = contents(imported)
    copy_sidecar(imported, tmp_path / "trained", YARN, max_position_embeddings=4096)
    assert contents(imported) == before
    assert read_identity(tmp_path / "trained") == read_identity(imported)
    config = read_hf_config(tmp_path / "trained")
    assert rope_parameters(config) == YARN
    assert megatron_options(config)["max_position_embeddings"] == 4096
    (tmp_path / "trained" / "iter_0000001").symlink_to(imported / "release")
    (tmp_path / "trained" / "latest_checkpointed_iteration.txt").write_text("1")
    export_hf(tmp_path / "trained", tmp_path / "out")
    exported = AutoConfig.from_pretrained(tmp_path / "out")
    assert exported.rope_parameters == YARN.as_dict()
    assert exported.max_position_embeddings == 4096


@pytest.mark.parametrize(("limit", "expected"), [(64, 4096), (8192, 8192), (None, None)])
def test_the_tokenizers_limit_follows(imported: Path, tmp_path: Path, limit: int | None, expected: int | None) -> None:
    """Servers take the lower of the model's limit and the tokenizer's; a limit that is no hindrance stays."""
    copy_sidecar(imported, tmp_path / "a", None, None)
    path = tmp_path / "a" / "hf" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": limit}))
    copy_sidecar(tmp_path / "a", tmp_path / "b", None, 4096)
    copied = tmp_path / "b" / "hf"
    assert json.loads((copied / "tokenizer_config.json").read_text())["model_max_length"] == expected
    assert tokenizer_fingerprint(load_tokenizer(copied)) == read_identity(imported).tokenizer_fingerprint


def test_copy_without_override_keeps_everything(imported: Path, tmp_path: Path) -> None:
    copy_sidecar(imported, tmp_path, None, None)
    assert read_hf_config(tmp_path) == read_hf_config(imported)
    source, copied = contents(imported / "hf"), contents(tmp_path / "hf")
    assert {**copied, "config.json": b""} == {**source, "config.json": b""}
    again = contents(tmp_path)
    copy_sidecar(imported, tmp_path, None, None)
    assert contents(tmp_path) == again


def test_copy_onto_itself_sets_the_rope(imported: Path, tmp_path: Path) -> None:
    copy_sidecar(imported, tmp_path, None, None)
    copy_sidecar(tmp_path, tmp_path, YARN, None)
    assert rope_parameters(read_hf_config(tmp_path)) == YARN


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e4},
        {"rope_theta": 1e4, "rope_scaling": None},
        {"rope_scaling": {"type": "default"}, "rope_theta": 1e4},
        {"rope_scaling": {"type": "default", "rope_theta": 2e4}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_parameters": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "original_max_position_embeddings": 32},
        {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_parameters": {"rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}},
        {},
    ],
)
@pytest.mark.parametrize("trained", [RopeParameters(rope_theta=3e6), YARN])
def test_override_is_what_transformers_reads(
    imported: Path, tmp_path: Path, rope: dict[str, object], trained: RopeParameters
) -> None:
    """In every form that a configuration file can have; transformers is the oracle."""
    copy_sidecar(imported, tmp_path / "a", None, None)
    path = tmp_path / "a" / "hf" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps({**config, **rope}))
    copy_sidecar(tmp_path / "a", tmp_path / "b", trained, None)
    assert AutoConfig.from_pretrained(tmp_path / "b" / "hf").rope_parameters == trained.as_dict()
    assert rope_parameters(read_hf_config(tmp_path / "b")) == trained


def test_a_folder_of_another_model_is_refused(imported: Path, tmp_path: Path) -> None:
    import_hf(save_model(tmp_path / "hf", "qwen2"), tmp_path / "other")
    before = contents(tmp_path / "other")
    with pytest.raises(UserError, match="belongs to a model imported from other weights"):
        copy_sidecar(imported, tmp_path / "other", None, None)
    assert contents(tmp_path / "other") == before


def test_only_small_files_travel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in (
        *("config.json", "tokenizer.model", "README.md", "additional_chat_templates/tool.jinja"),
        *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.gguf"),
        *("modeling_own.py", "tokens.pkl", "training_args.bin", "adapter_config.json", "trainer_state.json"),
        *(".gitattributes", ".cache/x.json", "original/params.json"),
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    copy_hf_files(source, tmp_path / "target")
    assert sorted(contents(tmp_path / "target")) == [
        "README.md",
        "additional_chat_templates/tool.jinja",
        "config.json",
        "tokenizer.model",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format_version is 1, needs 2"),
        ({"format_version": None}, "format_version is None"),
        ({"weights_sha256": 7}, "weights_sha256 is 7"),
        ({"num_parameters": True}, "num_parameters is True"),
        ({"dtype": None}, "dtype is None"),
        ({"rope": None}, "rope is None"),
        ({"rope": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope: factor is missing"),
    ],
)
def test_broken_identity(imported: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    stored = json.loads((imported / "longpo.json").read_text())
    (tmp_path / "longpo.json").write_text(json.dumps({**stored, **changes}))
    with pytest.raises(UserError, match=message):
        read_identity(tmp_path)


def test_not_an_imported_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"longpo\.json does not exist; make the folder with megatron-longpo import-hf"):
        read_identity(tmp_path)
    with pytest.raises(UserError, match=r"config\.json does not exist; make the folder with"):
        read_hf_config(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    edit_config(tmp_path / "hf", model_type=None)
    with pytest.raises(UserError, match="model_type is null"):
        megatron_options(read_hf_config(tmp_path))
