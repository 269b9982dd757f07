"""--chat-template of build, inspect and import-hf: one template from the dataset to the exported model."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron_longpo.commands.main import main
from megatron_longpo.data.dataset_files import SUFFIXES, dataset_file
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.manifest import Manifest
from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError
from megatron_longpo.hf.sidecar import check_tokenizer, read_identity
from tests.pairs import make_records, write_jsonl
from tests.tokenizers import TEMPLATES, sentencepiece_model, sentencepiece_of
from tests.unit.commands.building import build, one_error_line
from tests.unit.hf.models import save_model

CHATML = TEMPLATES / "chatml.jinja"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", make_records(3))


def manifest_of(prefix: Path) -> Manifest:
    return PairReader(prefix).manifest


def test_build_renders_with_the_given_template(
    tokenizer_folders: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    folder = tokenizer_folders["chatml"]
    assert build(source, folder, tmp_path / "own") == 0
    assert build(source, folder, tmp_path / "given", chat_template=CHATML) == 0
    shutil.copytree(folder, tmp_path / "tokenizer")
    shutil.copyfile(CHATML, tmp_path / "tokenizer" / "chat_template.jinja")
    assert build(source, tmp_path / "tokenizer", tmp_path / "inside") == 0
    own, given, inside = (manifest_of(tmp_path / name) for name in ("own", "given", "inside"))
    assert given.tokenizer_fingerprint == inside.tokenizer_fingerprint != own.tokenizer_fingerprint
    assert given.fingerprint == inside.fingerprint != own.fingerprint  # the model's own adds a system prompt


@pytest.mark.ranks
def test_workers_render_with_it_too(tokenizer_folders: dict[str, Path], source: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        folder = tokenizer_folders["chatml"]
        assert build(source, folder, tmp_path / str(workers), chat_template=CHATML, workers=workers) == 0
    for suffix in SUFFIXES:
        one, two = (dataset_file(tmp_path / name, suffix).read_bytes() for name in ("1", "2"))
        assert one == two


UNSTABLE = b"{% for m in messages %}{{ m.content + ('!' if loop.last else '') + '<|im_end|>' }}{% endfor %}"
BAD_TEMPLATES = {
    "missing": (None, "--chat-template {file}: No such file or directory; give a file"),
    "empty": (b" \n", "--chat-template {file}: the file is empty"),
    "not UTF-8": (b"{{ '\xff' }}", "--chat-template {file}: not UTF-8 (byte 4)"),
    "not Jinja": (b"{{ bos_token }}\n{% if %}\n", "{file}: line 2 of the chat template is not valid Jinja (Expected"),
    "not prefix-stable": (UNSTABLE, "{file}: the chat template is not prefix-stable: "),
    "no end of turn": (b"{% for m in messages %}{{ m.content }}{% endfor %}", "{source}:1: pair 'pair-0': "),
}


@pytest.mark.parametrize(("content", "message"), BAD_TEMPLATES.values(), ids=BAD_TEMPLATES.keys())
def test_a_bad_template_is_one_line_that_names_the_file(
    content: bytes | None,
    message: str,
    tokenizer_folders: dict[str, Path],
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "template.jinja"
    if content is not None:
        file.write_bytes(content)
    assert build(source, tokenizer_folders["chatml"], tmp_path / "out" / "set", chat_template=file) == 2
    assert one_error_line(capsys).startswith(message.format(file=file, source=source))
    assert not list(tmp_path.glob("out/*"))


def test_inspect_needs_the_template_that_the_dataset_was_built_with(
    tokenizer_folders: dict[str, Path], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tokenizer_folders["chatml"]
    assert build(source, tokenizer, tmp_path / "set", chat_template=CHATML) == 0
    capsys.readouterr()
    argv = ["inspect", "--data", str(tmp_path / "set")]
    assert main([*argv, "--tokenizer", str(tokenizer)]) == 2
    assert "built with (--tokenizer, --chat-template)" in capsys.readouterr().err
    assert main([*argv, "--tokenizer", str(tokenizer), "--chat-template", str(CHATML), "--full"]) == 0
    assert "<|im_start|>user" in capsys.readouterr().out
    assert main([*argv, "--chat-template", str(CHATML)]) == 2
    assert "says nothing without --tokenizer" in capsys.readouterr().err


def import_hf(hf: Path, output: Path, *options: object) -> int:
    return main(["import-hf", "--hf", str(hf), "--output", str(output), "--no-verify", *map(str, options)])


def test_an_imported_template_goes_all_the_way(
    tokenizer_folders: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    hf = save_model(tmp_path / "hf", vocab_size=700)
    shutil.copytree(tokenizer_folders["chatml"], hf, dirs_exist_ok=True)
    settings = json.loads((hf / "tokenizer_config.json").read_text())
    (hf / "chat_template.jinja").rename(tmp_path / "old.jinja")  # as transformers 4 kept it
    settings["chat_template"] = (tmp_path / "old.jinja").read_text()
    (hf / "tokenizer_config.json").write_text(json.dumps(settings))
    assert import_hf(hf, tmp_path / "start", "--chat-template", CHATML) == 0
    kept = tmp_path / "start" / "hf"
    assert (kept / "chat_template.jinja").read_bytes() == CHATML.read_bytes()
    assert "chat_template" not in json.loads((kept / "tokenizer_config.json").read_text())
    assert build(source, kept, tmp_path / "set") == 0
    assert build(source, hf, tmp_path / "other") == 0
    identity = read_identity(tmp_path / "start")
    check_tokenizer("the dataset", manifest_of(tmp_path / "set"), identity, tmp_path / "start")
    with pytest.raises(UserError, match=r"another tokenizer or chat template .* \(import-hf --chat-template\)"):
        check_tokenizer("the dataset", manifest_of(tmp_path / "other"), identity, tmp_path / "start")
    assert (
        main(["export-hf", "--checkpoint", str(tmp_path / "start"), "--output", str(tmp_path / "out"), "--no-verify"])
        == 0
    )
    assert tokenizer_fingerprint(load_tokenizer(tmp_path / "out")) == identity.tokenizer_fingerprint


@pytest.mark.parametrize("content", [b"{% if %}", UNSTABLE, b""])
def test_import_refuses_a_bad_template(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf = save_model(tmp_path / "hf")
    (tmp_path / "bad.jinja").write_bytes(content)
    capsys.readouterr()
    assert import_hf(hf, tmp_path / "start", "--chat-template", tmp_path / "bad.jinja") == 2
    error = capsys.readouterr().err
    assert error.startswith("megatron-longpo import-hf: error: ")
    assert str(tmp_path / "bad.jinja") in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jinja", "hf"]


@pytest.mark.parametrize(
    "settings", [None, {"tokenizer_class": "LlamaTokenizer", "legacy": True}, {"pad_token": "<pad>"}]
)
def test_an_imported_sentencepiece_model_is_exported_with_the_same_ids(
    settings: dict[str, object] | None, tmp_path: Path
) -> None:
    """transformers by itself would read the bare model otherwise, and so the trained model would meet other tokens."""
    hf = save_model(tmp_path / "hf", vocab_size=1000)
    (hf / "tokenizer.json").unlink()
    (hf / "chat_template.jinja").unlink()
    (hf / "tokenizer_config.json").unlink()
    (hf / "tokenizer.model").write_bytes(sentencepiece_model())
    if settings is not None:
        (hf / "tokenizer_config.json").write_text(json.dumps(settings))
    assert import_hf(hf, tmp_path / "start", "--chat-template", TEMPLATES / "mistral-v1.jinja") == 0
    assert (
        main(["export-hf", "--checkpoint", str(tmp_path / "start"), "--output", str(tmp_path / "out"), "--no-verify"])
        == 0
    )
    exported = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    processor = sentencepiece_of(hf)
    talk = [{"role": "user", "content": "What  is   it?"}, {"role": "assistant", "content": "  A licence. 🙂"}]
    expected = [1, *processor.encode("[INST] What  is   it? [/INST]"), *processor.encode("  A licence. 🙂"), 2]
    assert exported.apply_chat_template(talk, tokenize=True, return_dict=False) == expected
    fingerprint = read_identity(tmp_path / "start").tokenizer_fingerprint
    template = (TEMPLATES / "mistral-v1.jinja").read_text(encoding="utf-8")
    assert tokenizer_fingerprint(load_tokenizer(hf, template)) == fingerprint
    assert tokenizer_fingerprint(load_tokenizer(tmp_path / "out")) == fingerprint
