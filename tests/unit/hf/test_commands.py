"""The verbs import-hf and export-hf: exit status, one line, nothing half-written."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_longpo.commands.main import main
from tests.unit.hf.models import edit_config, save_model


def verb(name: str, **options: object) -> int:
    """Not verified: that is test_verify.py's matter, and would put Megatron on this process's tensors."""
    return main(
        [name, "--no-verify", *(str(part) for option, value in options.items() for part in (f"--{option}", value))]
    )


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Writing more to a file fails as on a full disk, with another errno; no mount and no root needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr; progress bars come before it."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "hf", dtype=torch.bfloat16)
    assert verb("import-hf", hf=tmp_path / "hf", output=tmp_path / "checkpoint", dtype="fp32") == 0
    out, err = capsys.readouterr()
    assert out.startswith("imported 41,568 parameters, fp32, weights ")
    assert "import-hf: 100%" in err
    assert verb("export-hf", checkpoint=tmp_path / "checkpoint", output=tmp_path / "out", dtype="bf16") == 0
    out, err = capsys.readouterr()
    assert out.startswith("exported 0.00 GB of weights -> ")
    assert "export-hf: 100%" in err
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_errors_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "hf")
    edit_config(tmp_path / "hf", model_type="mixtral")
    capsys.readouterr()
    assert verb("import-hf", hf=tmp_path / "hf", output=tmp_path / "checkpoint") == 2
    expected = 'megatron-longpo import-hf: error: config.json: model_type is "mixtral"; supported are llama, '
    assert capsys.readouterr().err == f"{expected}mistral, qwen2, qwen3\n"
    assert verb("export-hf", checkpoint=tmp_path / "checkpoint", output=tmp_path / "out") == 2
    assert last_error(capsys).startswith("megatron-longpo export-hf: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "hf")
    assert verb("import-hf", hf=tmp_path / "hf", output=tmp_path / "checkpoint") == 0
    for name, options in (
        ("import-hf", {"hf": tmp_path / "hf"}),
        ("export-hf", {"checkpoint": tmp_path / "checkpoint"}),
    ):
        assert verb(name, **options, output=tmp_path / "hf") == 2
        assert "already exists and is not empty" in last_error(capsys)


def test_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two torch and safetensors writers neither says so by itself in a form that a command shows as one line."""
    save_model(tmp_path / "hf", hidden_size=64)
    assert verb("import-hf", hf=tmp_path / "hf", output=tmp_path / "checkpoint") == 0
    for name, options in (
        ("import-hf", {"hf": tmp_path / "hf"}),
        ("export-hf", {"checkpoint": tmp_path / "checkpoint"}),
    ):
        with files_limited_to(100_000):
            assert verb(name, **options, output=tmp_path / "out") == 2
        assert "File too large" in last_error(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "hf"]


def test_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "hf")
    assert verb("import-hf", hf=tmp_path / "hf", output=tmp_path / "checkpoint") == 0
    (data,) = (tmp_path / "checkpoint" / "release").glob("*.distcp")
    data.write_bytes(data.read_bytes()[:50_000])
    assert verb("export-hf", checkpoint=tmp_path / "checkpoint", output=tmp_path / "out") == 2
    assert "a file is missing or damaged" in last_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["import-hf", "export-hf"])
def test_missing_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name])
    assert caught.value.code == 2
    assert "--output" in capsys.readouterr().err
