"""generation_config.json of an export: kept or made, never without the end of turn, and it works in transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.hf.export_hf import export_hf
from megatron_longpo.hf.generation import complete_generation_config, read_generation_config
from megatron_longpo.hf.import_hf import import_hf
from tests.tokenizers import chatml_tokenizer, llama3_tokenizer, mistral_tokenizer
from tests.unit.hf.models import edit_config, save_model

END_OF_TURN = 1
"""Of save_tokenizer: w1."""


def completed(folder: Path, stored: str | None) -> dict[str, object]:
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    if stored is not None:
        path.write_text(stored)
    complete_generation_config(folder, read_generation_config(folder), load_tokenizer(folder))
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose config.json says eos_token_id 2."""
    return save_model(tmp_path_factory.mktemp("generation") / "hf")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ('{"eos_token_id": 2}', [2, END_OF_TURN]),
        ('{"eos_token_id": [5, 6]}', [5, 6, END_OF_TURN]),
        ('{"eos_token_id": null}', [2, END_OF_TURN]),
        ('{"top_p": 0.9}', [2, END_OF_TURN]),
        (None, [2, END_OF_TURN]),
    ],
)
def test_the_end_of_turn_is_added(hf: Path, stored: str | None, expected: list[int]) -> None:
    found = completed(hf, stored)
    assert found["eos_token_id"] == expected
    kept = json.loads(stored or "{}")
    assert {name: found[name] for name in kept if name != "eos_token_id"} == {
        name: value for name, value in kept.items() if name != "eos_token_id"
    }
    assert GenerationConfig.from_pretrained(hf).eos_token_id == expected


@pytest.mark.parametrize("stored", ['{"eos_token_id": 1, "top_p":0.8}', '{"eos_token_id":[7, 1]}'])
def test_a_complete_file_keeps_every_byte(hf: Path, stored: str) -> None:
    completed(hf, stored)
    assert (hf / "generation_config.json").read_text() == stored


@pytest.mark.parametrize("make", [chatml_tokenizer, llama3_tokenizer, mistral_tokenizer])
def test_is_the_templates_own(tmp_path: Path, make: object) -> None:
    make(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 0}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert completed(tmp_path, "{}")["eos_token_id"] == [0, tokenizer.eos_token_id]


def test_without_a_chat_template_nothing_is_added(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(hf)
    (hf / "chat_template.jinja").unlink()
    assert tokenizer.chat_template and AutoTokenizer.from_pretrained(hf).chat_template is None
    assert "eos_token_id" not in completed(hf, None)


def test_broken_file(hf: Path) -> None:
    with pytest.raises(UserError, match=r"generation_config\.json:1: not valid JSON"):
        completed(hf, "{")


def test_transformers_generates_with_what_it_would_not_save(tmp_path: Path) -> None:
    """A temperature without sampling is carried over; the answer ends with the end of turn."""
    hf = save_model(tmp_path / "hf")
    stored = {"do_sample": False, "temperature": 0.5, "eos_token_id": 2, "pad_token_id": 0}
    (hf / "generation_config.json").write_text(json.dumps(stored))
    (hf / "modeling_own.py").write_text("raise SystemExit")
    import_hf(hf, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert kept == {**stored, "eos_token_id": [2, END_OF_TURN]}
    assert [path.parent for path in tmp_path.glob("*/**/*.py")] == [hf], "programs do not travel"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    output = model.generate(torch.tensor([[7, 8]]), max_new_tokens=5, min_new_tokens=5)
    assert output.shape == (1, 7)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.eye(len(model.lm_head.weight))[END_OF_TURN])
    assert model.generate(torch.tensor([[7, 8]]), max_new_tokens=5).tolist() == [[7, 8, END_OF_TURN]]


def test_made_from_the_config(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", "qwen2")
    edit_config(hf, eos_token_id=[3, 4], bos_token_id=5)
    found = completed(hf, None)
    assert found["eos_token_id"] == [3, 4, END_OF_TURN] and found["bos_token_id"] == 5
    assert "_from_model_config" not in found
