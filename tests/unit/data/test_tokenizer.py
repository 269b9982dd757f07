"""data/tokenizer.py: what can be loaded, and that the fingerprint follows what changes token ids, no more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AddedToken, PreTrainedTokenizerFast

from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint, vocabulary_size
from megatron_longpo.errors import UserError
from tests.tokenizers import VOCABULARY_SIZE


@pytest.mark.parametrize("family", ["chatml", "mistral", "llama3"])
def test_saved_and_loaded_again_it_has_the_same_fingerprint(
    family: str, tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tokenizer_folders[family])
    tokenizer.save_pretrained(str(tmp_path))
    assert tokenizer_fingerprint(load_tokenizer(tmp_path)) == tokenizer_fingerprint(tokenizer)
    assert vocabulary_size(tokenizer) == VOCABULARY_SIZE


def test_padding_and_truncation_do_not_count(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["chatml"])
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer.backend_tokenizer.padding is not None
    assert tokenizer_fingerprint(tokenizer) == before


def change_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = str(tokenizer.chat_template) + " "


def drop_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None


def add_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens([AddedToken("longer")])


def change_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.bos_token = "</s>"


@pytest.mark.parametrize("change", [change_template, drop_template, add_token, change_bos])
def test_whatever_changes_a_rendering_changes_the_fingerprint(
    change: Callable[[PreTrainedTokenizerFast], None], tokenizer_folders: dict[str, Path]
) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["mistral"])
    before = tokenizer_fingerprint(tokenizer)
    change(tokenizer)
    assert tokenizer_fingerprint(tokenizer) != before


def test_a_special_token_that_the_template_does_not_name_does_not_count(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["mistral"])
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.pad_token = "</s>"
    assert tokenizer_fingerprint(tokenizer) == before


def test_the_vocabulary_size_counts_gaps(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folders["chatml"], tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"].append(
        {**content["added_tokens"][-1], "id": VOCABULARY_SIZE + 5, "content": "<|far|>", "normalized": False}
    )
    content["model"]["vocab"]["<|far|>"] = VOCABULARY_SIZE + 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert vocabulary_size(load_tokenizer(tmp_path)) == VOCABULARY_SIZE + 6


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_its_vocabulary_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match="empty vocabulary"):
        load_tokenizer(tmp_path)


def test_code_in_the_folder_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "foreign"}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": ["trap.Trap", null]}}'
    )
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Trap: pass\n")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_slow_tokenizer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "canine"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(UserError, match="CanineTokenizer is not a fast tokenizer"):
        load_tokenizer(tmp_path)
