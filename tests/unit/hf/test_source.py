"""What was not downloaded, brings code, or is not readable by transformers is told by file; nothing is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from megatron_longpo.errors import UserError
from megatron_longpo.hf.export_hf import export_hf
from megatron_longpo.hf.import_hf import import_hf
from tests.unit.hf.models import edit_config, save_model
from tests.unit.hf.test_import_errors import message_of

POINTER = "version v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
CODE = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}


def edit_json(path: Path, **changes: Any) -> None:
    stored = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(stored | changes))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json", "preprocessor_config.json"])
def test_code_of_a_tokenizer_or_processor_is_refused(tmp_path: Path, name: str) -> None:
    """As that of a model is (test_import_errors.py), also where the tokenizer could be loaded without."""
    hf = save_model(tmp_path / "hf")
    edit_json(hf / name, auto_map=CODE)
    message = message_of(hf)
    assert message.startswith(f"{hf / name}: auto_map is {CODE}; code of a model folder is never run: ")
    edit_json(hf / name, auto_map={})
    import_hf(hf, tmp_path / "checkpoint")


def test_processors_travel_and_programs_do_not(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    edit_json(hf / "preprocessor_config.json", size=7)
    (hf / "tokenization_own.py").write_text("raise SystemExit")
    import_hf(hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == {"size": 7}
    assert not list(tmp_path.glob("*/**/*.py")) or list(tmp_path.glob("*/**/*.py")) == [hf / "tokenization_own.py"]
    AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"])
def test_a_pointer_is_not_the_file(tmp_path: Path, name: str) -> None:
    hf = save_model(tmp_path / "hf")
    (hf / name).write_text(POINTER)
    assert f"{hf / name}: a Git LFS pointer and not the file itself; run git lfs pull" in message_of(hf)


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    """What is left of a Hub cache whose blobs were deleted; without this the folder's chat template would be gone."""
    hf = save_model(tmp_path / "hf")
    (hf / "chat_template.jinja").unlink()
    (hf / "chat_template.jinja").symlink_to("../blobs/f00d")
    assert f"{hf / 'chat_template.jinja'}: a link to ../blobs/f00d, which does not exist" in message_of(hf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token_id": "many"}, "eos_token_id"),
        ({"initializer_range": 1.5}, "initializer_range"),
        ({"dtype": "float12"}, "float12"),
        ({"num_hidden_layers": 4, "layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_what_transformers_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """It would say so of the exported folder only, after the training."""
    hf = save_model(tmp_path / "hf")
    edit_config(hf, **changes)
    found = message_of(hf)
    assert found.startswith(f"{hf / 'config.json'}: transformers does not read it (")
    assert message in found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", "", ":1: not valid JSON"),
        ("generation_config.json", "[]", ": holds a JSON list, needs an object"),
        ("generation_config.json", '{"eos_token_id": "w1"}', ": eos_token_id is 'w1'; it must be a token id or a list"),
        ("generation_config.json", '{"eos_token_id": [1, true]}', ": eos_token_id is [1, True]; it must be"),
        ("tokenizer_config.json", '{"a": ', ":1: not valid JSON"),
        ("tokenizer.json", "{", ""),
    ],
)
def test_broken_settings(tmp_path: Path, name: str, content: str, message: str) -> None:
    """By the name of the folder that was given, never of the copy."""
    hf = save_model(tmp_path / "hf")
    (hf / name).write_text(content)
    found = message_of(hf)
    assert found.startswith(f"{hf / name}{message}" if message else f"{hf}: no tokenizer can be loaded (")


def test_broken_settings_of_a_checkpoint(tmp_path: Path) -> None:
    import_hf(save_model(tmp_path / "hf"), tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "hf" / "generation_config.json"
    path.write_text("[]")
    with pytest.raises(UserError, match=f"^{path}: holds a JSON list"):
        export_hf(tmp_path / "checkpoint", tmp_path / "out")
    assert not (tmp_path / "out").exists()
