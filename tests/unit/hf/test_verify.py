"""``--verify``: right conversions pass and are reported, a wrong one writes nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_longpo.commands.main import main
from megatron_longpo.hf import names
from tests.ranks import Finished, launch
from tests.unit.hf.models import edit_config, save_model

pytestmark = pytest.mark.ranks


def run(verb: str, *options: str | Path, program: Callable[[], int] = main) -> Finished:
    return launch(program, [verb, *map(str, options)])


def main_with_plain_qkv() -> int:
    """The program, with q, k and v one after the other instead of by query group."""

    def join(parts: Sequence[Tensor], num_query_groups: int) -> Tensor:
        del num_query_groups
        return torch.cat(list(parts))

    names.join_qkv = join
    return main()


def main_with_small_limit() -> int:
    """The program, where 1,000 parameters are too many to verify unasked."""
    from megatron_longpo.commands import verify

    verify.LARGEST_BY_DEFAULT = 1000
    return main()


@pytest.mark.parametrize("name", ["llama-tied-groups", "qwen3"])
def test_there_and_back(tmp_path: Path, name: str) -> None:
    """Rounded to bf16 on the way in, which transformers' side must be too."""
    hf = save_model(tmp_path / "hf", name)
    imported = run("import-hf", "--hf", hf, "--output", tmp_path / "checkpoint", "--dtype", "bf16")
    assert imported.status == 0, imported.output
    assert "verified: logits of 3 prompts" in imported.output
    exported = run("export-hf", "--checkpoint", tmp_path / "checkpoint", "--output", tmp_path / "out")
    assert exported.status == 0, exported.output
    assert "verified: logits of 3 prompts" in exported.output


def test_a_wrong_conversion_writes_nothing(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", "llama-tied-groups")
    options = ("--hf", hf, "--output", tmp_path / "checkpoint")
    refused = run("import-hf", *options, program=main_with_plain_qkv)
    assert refused.status == 2
    assert "this model is converted wrongly; nothing was written" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert run("import-hf", *options, "--no-verify", program=main_with_plain_qkv).status == 0


def test_large_models_only_if_asked(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    left = run("import-hf", "--hf", hf, "--output", tmp_path / "left", program=main_with_small_limit)
    assert "not verified: 41,568 parameters; --verify compares" in left.output
    asked = run("import-hf", "--hf", hf, "--output", tmp_path / "asked", "--verify", program=main_with_small_limit)
    assert "verified: logits of 3 prompts" in asked.output


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("w2 w3 w4 w5 w6\n\nw7 w8 w9 w9", 0, "verified: logits of 2 prompts (9 tokens)"),
        ("w2 w3 w4 w5\nw6 w7 w8\n", 2, "prompts.txt:2: 3 tokens; a prompt needs at least 4"),
        (" \n", 2, "no line with text; give one prompt a line"),
        ("w2 w3 \udcff", 2, "prompts.txt: cannot be read ("),
    ],
)
def test_prompts_from_a_file(tmp_path: Path, text: str, status: int, message: str) -> None:
    hf, prompts = save_model(tmp_path / "hf"), tmp_path / "prompts.txt"
    prompts.write_text(text, encoding="utf-8", errors="surrogateescape")
    found = run("import-hf", "--hf", hf, "--output", tmp_path / "checkpoint", "--verify-prompts", prompts)
    assert found.status == status
    assert message in found.output
    assert (tmp_path / "checkpoint").exists() is (status == 0)


def test_options_are_checked_before_the_work(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    (tmp_path / "prompts.txt").write_text("w2 w3 w4 w5")
    options = ("import-hf", "--hf", hf, "--output", tmp_path / "checkpoint", "--verify-prompts")
    missing = run(*options, tmp_path / "none")
    assert missing.status == 2
    assert "none: no such file; give a text file" in missing.output and "%" not in missing.output
    contrary = run(*options, tmp_path / "prompts.txt", "--no-verify")
    assert contrary.status == 2
    assert "--verify-prompts with --no-verify: nothing would be compared" in contrary.output
    asked = run(*options, tmp_path / "prompts.txt", program=main_with_small_limit)
    assert "verified: logits of 1 prompts (4 tokens)" in asked.output, "prompts ask for it at any size"


def test_what_transformers_cannot_run(tmp_path: Path) -> None:
    """Its own assertion is no traceback of ours."""
    hf = save_model(tmp_path / "hf")
    edit_config(hf, pad_token_id=10**6)
    found = run("import-hf", "--hf", hf, "--output", tmp_path / "checkpoint")
    assert found.status == 2
    assert "error: transformers cannot run this model (AssertionError: Padding_idx must be within" in found.output
    assert not (tmp_path / "checkpoint").exists()
