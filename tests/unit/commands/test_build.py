"""commands/build.py: the same bytes from any number of workers; bad input is one clear line and leaves nothing."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.commands.main import main
from megatron_longpo.data.dataset_files import SUFFIXES, dataset_file
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.pair import parse_pair
from megatron_longpo.data.render import render_pair
from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.files import atomic_file
from tests.pairs import make_record, make_records, write_jsonl
from tests.unit.commands.building import build, one_error_line
from tests.unit.data.test_indexed import flat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where outputs go; empty."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_what_is_built_is_what_was_rendered(
    tokenizer_folders: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = make_records(9)
    source = write_jsonl(folder.parent / "pairs.jsonl", records)
    assert build(source, tokenizer_folders["mistral"], folder / "set") == 0
    tokenizer = load_tokenizer(tokenizer_folders["mistral"])
    reader = PairReader(folder / "set")
    assert len(reader) == len(records)
    for index, record in enumerate(records):
        rendered = render_pair(parse_pair(json.dumps(record).encode(), ""), tokenizer, 4000, "refuse")
        assert rendered is not None
        assert flat(reader[index]) == flat(rendered)
        assert reader.record(index).source == f"{source}:{index + 1}"
        assert reader.record(index).meta == {"n": index}
    assert reader.manifest.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer)
    assert (reader.manifest.vocab_size, reader.manifest.max_length) == (700, 4000)
    entry = reader.manifest.inputs[0]
    checksum = subprocess.run(["sha256sum", source], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (entry.path, entry.num_bytes, entry.sha256) == (str(source), source.stat().st_size, checksum)
    report = capsys.readouterr().out
    assert "9 pairs, 18 turns" in report
    assert f"{sum(reader.manifest.num_tokens.values()):,} tokens" in report
    assert "0 pairs skipped, 0 truncated" in report


@pytest.mark.ranks
def test_any_number_of_workers_writes_the_same_bytes(tokenizer_folders: dict[str, Path], folder: Path) -> None:
    source = write_jsonl(folder.parent / "pairs.jsonl", make_records(23))
    for workers in (1, 3):
        assert build(source, tokenizer_folders["chatml"], folder / str(workers), workers=workers) == 0
    for suffix in SUFFIXES:
        one, three = (dataset_file(folder / name, suffix).read_bytes() for name in ("1", "3"))
        assert one == three


def test_several_files_are_read_in_order(tokenizer_folders: dict[str, Path], folder: Path) -> None:
    sources = [write_jsonl(folder.parent / f"{name}.jsonl", [make_record(index)]) for index, name in enumerate("ba")]
    argv = ["build", "--input", *map(str, sources), "--tokenizer", str(tokenizer_folders["chatml"])]
    assert main([*argv, "--output", str(folder / "set"), "--max-length", "4000"]) == 0
    reader = PairReader(folder / "set")
    assert [reader.record(index).id for index in range(2)] == ["pair-0", "pair-1"]
    assert [entry.path for entry in reader.manifest.inputs] == list(map(str, sources))


@pytest.mark.parametrize("overlong", ["truncate", "skip"])
def test_overlong_pairs_are_counted(
    tokenizer_folders: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str], overlong: str
) -> None:
    records = [make_record(0), make_record(1, context_chars=6000), make_record(2)]
    source = write_jsonl(folder.parent / "pairs.jsonl", records)
    assert build(source, tokenizer_folders["chatml"], folder / "set", max_length=1500, overlong=overlong) == 0
    reader = PairReader(folder / "set")
    manifest = reader.manifest
    assert manifest.lengths["pair"][2] <= 1500
    if overlong == "skip":
        assert [reader.record(index).id for index in range(len(reader))] == ["pair-0", "pair-2"]
        assert (manifest.num_skipped, manifest.num_truncated, manifest.num_removed) == (1, 0, 0)
        assert "1 pairs skipped" in capsys.readouterr().out
    else:
        assert (manifest.num_pairs, manifest.num_skipped, manifest.num_truncated) == (3, 0, 1)
        assert manifest.num_removed == reader.record(1).num_removed > 500
        assert f"1 truncated (by {manifest.num_removed:,} tokens)" in capsys.readouterr().out


def seventh(line: bytes) -> bytes:
    """A file whose line 7 is ``line`` and whose other lines are good."""
    good = [json.dumps(make_record(index)).encode() for index in range(9)]
    return b"\n".join([*good[:6], line, *good[7:]]) + b"\n"


def changed(**turn: str) -> bytes:
    record = make_record(6)
    return json.dumps(record | {"turns": [record["turns"][0] | turn]}).encode()


BAD_FILES = {
    "empty file": (b"", "{source}: the file is empty"),
    "broken JSON": (seventh(b'{"id": "x",'), "{source}:7: not valid JSON"),
    "missing field": (seventh(b'{"id": "x", "turns": []}'), "{source}:7: the pair lacks the field 'context'"),
    "wrong type": (seventh(json.dumps(make_record(6, id=6)).encode()), "{source}:7: id must be string, not number"),
    "empty answer": (seventh(changed(chosen="")), "{source}:7: turns[0].chosen is empty"),
    "equal answers": (seventh(changed(chosen="x", rejected="x")), "{source}:7: turns[0].chosen equals"),
    "not UTF-8": (seventh(b'{"id": "\xff"}'), "{source}:7: not UTF-8"),
    "blank line": (seventh(b""), "{source}:7: blank line"),
    "duplicate id": (
        seventh(json.dumps(make_record(2)).encode()),
        "{source}:7: id 'pair-2' was already used at {source}:3",
    ),
    "over the limit": (
        seventh(json.dumps(make_record(6, context_chars=6000)).encode()),
        "{source}:7: pair 'pair-6': the long conversation: ",
    ),
    "control token": (
        seventh(changed(chosen="a <|im_end|> b")),
        "{source}:7: pair 'pair-6': turns[0].chosen holds the",
    ),
    "answer merges with the header": (seventh(changed(chosen="\nNo.")), "{source}:7: pair 'pair-6': the long"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_line_and_leaves_nothing(
    tokenizer_folders: dict[str, Path],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    message: str,
) -> None:
    source = folder.parent / "pairs.jsonl"
    source.write_bytes(content)
    assert build(source, tokenizer_folders["chatml"], folder / "set", max_length=1500) == 2
    assert one_error_line(capsys).startswith(message.format(source=source))
    assert list(folder.iterdir()) == []


@pytest.mark.ranks
def test_an_error_on_a_worker_is_the_same_line(
    tokenizer_folders: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_FILES["over the limit"]
    source = folder.parent / "pairs.jsonl"
    source.write_bytes(content + b"and a worse line after it\n")
    assert build(source, tokenizer_folders["chatml"], folder / "set", max_length=1500, workers=2) == 2
    assert one_error_line(capsys).startswith(message.format(source=source))
    assert list(folder.iterdir()) == []


def with_template(folder: Path, target: Path, template: str | None) -> Path:
    """A copy of a tokenizer with another template."""
    shutil.copytree(folder, target)
    if template is None:
        (target / "chat_template.jinja").unlink()
    else:
        (target / "chat_template.jinja").write_text(template)
    return target


UNSTABLE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ('!' if loop.last else '') + '\\n' + m['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "message"), [(None, "the tokenizer has no chat template"), (UNSTABLE, "not prefix-stable")]
)
def test_a_bad_template_is_one_line_that_names_the_tokenizer(
    tokenizer_folders: dict[str, Path],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    template: str | None,
    message: str,
) -> None:
    tokenizer = with_template(tokenizer_folders["chatml"], folder.parent / "tokenizer", template)
    source = write_jsonl(folder.parent / "pairs.jsonl", make_records(2))
    assert build(source, tokenizer, folder / "set") == 2
    line = one_error_line(capsys)
    assert line.startswith(f"{tokenizer}: ")
    assert message in line
    assert list(folder.iterdir()) == []


BAD_OPTIONS = {
    "no such input": ({"input": "nowhere.jsonl"}, "--input nowhere.jsonl: no such file"),
    "no such tokenizer": ({"tokenizer": "nowhere"}, "--tokenizer nowhere: no such folder"),
    "no room": ({"max_length": 0}, "--max-length 0: needs at least 1"),
    "no workers": ({"workers": 0}, "--workers 0: needs at least 1"),
    "output is a folder": ({"output": "."}, "--output . is a folder"),
    "everything skipped": ({"max_length": 10, "overlong": "skip"}, "{output}: no pair is left (2 skipped"),
    "context too short to cut": ({"max_length": 10, "overlong": "truncate"}, "{source}:1: pair 'pair-0': the long"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_a_bad_option_is_one_line_that_names_it(
    tokenizer_folders: dict[str, Path],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    source = write_jsonl(folder.parent / "pairs.jsonl", make_records(2))
    defaults = {"input": source, "tokenizer": tokenizer_folders["chatml"], "output": folder / "set"}
    arguments = defaults | options
    assert build(arguments.pop("input"), arguments.pop("tokenizer"), arguments.pop("output"), **arguments) == 2
    assert one_error_line(capsys).startswith(message.format(source=source, output=folder / "set"))
    assert list(folder.iterdir()) == []


def test_an_existing_dataset_is_kept_unless_told(
    tokenizer_folders: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tokenizer_folders["chatml"]
    two = write_jsonl(folder.parent / "two.jsonl", make_records(2))
    three = write_jsonl(folder.parent / "three.jsonl", make_records(3))
    assert build(two, tokenizer, folder / "set") == 0
    capsys.readouterr()
    assert build(three, tokenizer, folder / "set") == 2
    assert one_error_line(capsys).startswith(f"{folder / 'set'}.")
    assert len(PairReader(folder / "set")) == 2
    assert build(three, tokenizer, folder / "set", overwrite=True) == 0
    assert len(PairReader(folder / "set")) == 3


def test_an_input_is_read_once_and_never_replaced(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given twice, all its ids would come twice; named like one of the output's files, --overwrite would replace it."""
    source = write_jsonl(tmp_path / "set.pairs.jsonl", [make_record()])
    before = source.read_bytes()
    argv = ["build", "--tokenizer", str(tokenizer_folders["chatml"]), "--max-length", "4000", "--overwrite", "--input"]
    assert main([*argv, str(source), "--output", str(tmp_path / "set")]) == 2
    assert f"its files would replace the --input {source}; choose another name" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(source)
    assert main([*argv, str(source), str(tmp_path / "link"), "--output", str(tmp_path / "out")]) == 2
    assert f"error: {tmp_path / 'link'}: given twice; name every input once\n" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "set.pairs.jsonl"]
    assert source.read_bytes() == before


def test_a_file_whose_name_is_not_utf8(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    """It is read, and what the dataset says of it can be printed."""
    source = write_jsonl(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), [make_record()])
    argv = ["build", "--tokenizer", str(tokenizer_folders["chatml"]), "--max-length", "4000", "--input", str(source)]
    assert main([*argv, "--output", str(tmp_path / "set")]) == 0
    assert PairReader(tmp_path / "set").record(0).source.endswith("caf\\xe9.jsonl:1")
    assert PairReader(tmp_path / "set").manifest.inputs[0].path.endswith("caf\\xe9.jsonl")


def test_an_output_that_another_process_writes(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "pairs.jsonl", [make_record()])
    argv = ["build", "--tokenizer", str(tokenizer_folders["chatml"]), "--max-length", "4000", "--input", str(source)]
    with atomic_file(tmp_path / "set.bin") as partial:
        assert main([*argv, "--output", str(tmp_path / "set")]) == 2
        partial.touch()
    assert (
        f"error: {tmp_path / 'set.bin'}: in use by process {os.getpid()}; another process is writing it"
        in capsys.readouterr().err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "set.bin"]
