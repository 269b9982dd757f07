"""commands/import_data.py: published files give the dataset that `build` makes; a fault is one line."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet as parquet
import pytest

from megatron_longpo.commands.main import main
from megatron_longpo.data.dataset_files import SUFFIXES, dataset_file
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.tokenizer import load_tokenizer
from tests.longpo_release import STYLES, raw_row, tokenised_row
from tests.pairs import make_record, write_jsonl
from tests.unit.commands.building import build
from tests.unit.data.test_indexed import flat

RECORDS = [make_record(index, 1 + index % 4, 1000 + 300 * (index % 3)) for index in range(7)]
Rows = list[dict[str, Any]]


def import_data(inputs: Path | list[Path], tokenizer: Path, output: Path, *options: str, max_length: int = 4000) -> int:
    names = map(str, inputs if isinstance(inputs, list) else [inputs])
    argv = ["import-data", "--input", *names, "--tokenizer", str(tokenizer), "--output", str(output)]
    return main([*argv, "--max-length", str(max_length), *options])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("megatron-longpo import-data: error: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("megatron-longpo import-data: error: ").rstrip()


def write_stream(path: Path, rows: Rows, rows_per_batch: int = 3) -> Path:
    """As the package `datasets` writes its files."""
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    return path


def write_ipc_file(path: Path, rows: Rows) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=5)
    return path


def write_folder(path: Path, rows: Rows) -> Path:
    """As `datasets.Dataset.save_to_disk` does, in two files."""
    path.mkdir()
    half = len(rows) // 2
    names = [f"data-0000{index}-of-00002.arrow" for index in range(2)]
    for name, part in zip(names, (rows[:half], rows[half:]), strict=True):
        write_stream(path / name, part)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (path / "dataset_info.json").write_text("{}")
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "pairs.arrow": write_stream,
    "feather.arrow": write_ipc_file,
    "pairs.parquet": write_parquet,
    "PAIRS.PARQUET": write_parquet,
    "folder": write_folder,
}


@pytest.mark.parametrize(
    ("style", "name"),
    [
        *((style, "folder") for style in STYLES),
        *(("chatml", name) for name in WRITERS if name != "folder"),
        *(("raw", name) for name in WRITERS),
    ],
)
def test_imported_pairs_are_those_that_build_makes(
    tokenizer_folders: dict[str, Path], tmp_path: Path, style: str, name: str
) -> None:
    family, how = STYLES.get(style, ("chatml", None))
    tokenizer = load_tokenizer(tokenizer_folders[family])
    rows = [tokenised_row(record, tokenizer, how) if how else raw_row(record) for record in RECORDS]
    source = WRITERS[name](tmp_path / name, rows)
    assert import_data(source, tokenizer_folders[family], tmp_path / "imported") == 0
    assert build(write_jsonl(tmp_path / "pairs.jsonl", RECORDS), tokenizer_folders[family], tmp_path / "built") == 0
    imported, built = PairReader(tmp_path / "imported"), PairReader(tmp_path / "built")
    # The fingerprint is of all tokens, spans and lengths: whatever is computed from them is the same.
    assert imported.manifest.fingerprint == built.manifest.fingerprint
    assert imported.manifest.tokenizer_fingerprint == built.manifest.tokenizer_fingerprint
    for index in range(len(RECORDS)):
        assert flat(imported[index])[1:] == flat(built[index])[1:]
        assert imported.record(index).id == f"row-{index}"
    first_file = source / "data-00000-of-00002.arrow" if source.is_dir() else source
    assert imported.record(2).source == f"{first_file}: row 2"
    assert imported.manifest.inputs[0].path == str(first_file)
    assert sum(entry.num_bytes for entry in imported.manifest.inputs) == sum(
        path.stat().st_size for path in ([source] if source.is_file() else source.glob("*.arrow"))
    )


def test_overlong_pairs_are_left_out_and_counted(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tokenizer_folders["chatml"]
    rows = [tokenised_row(record, load_tokenizer(folder), STYLES["chatml"][1]) for record in RECORDS]
    source = write_stream(tmp_path / "pairs.arrow", rows)
    lengths = [len(row["chosen_input_ids"]) for row in rows]
    assert import_data(source, folder, tmp_path / "set", "--overlong", "skip", max_length=sorted(lengths)[3]) == 0
    manifest = PairReader(tmp_path / "set").manifest
    assert 0 < manifest.num_skipped < 7 and manifest.num_pairs + manifest.num_skipped == 7
    assert manifest.lengths["pair"][2] <= manifest.max_length


def test_raw_pairs_can_be_truncated(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "pairs.parquet", [raw_row(record) for record in RECORDS])
    folder = tokenizer_folders["mistral"]
    assert import_data(source, folder, tmp_path / "imported", "--overlong", "truncate", max_length=700) == 0
    jsonl = write_jsonl(tmp_path / "pairs.jsonl", RECORDS)
    assert build(jsonl, folder, tmp_path / "built", overlong="truncate", max_length=700) == 0
    imported, built = (PairReader(tmp_path / name).manifest for name in ("imported", "built"))
    assert imported.num_truncated > 0
    assert imported.fingerprint == built.fingerprint


def damaged(style: str, change: Callable[[Rows], Any]) -> Callable[[Path, Any], Path]:
    """A file of seven pairs with a fault in it."""

    def write(path: Path, tokenizer: Any) -> Path:
        how = STYLES["chatml"][1]
        rows = [raw_row(record) if style == "raw" else tokenised_row(record, tokenizer, how) for record in RECORDS]
        change(rows)
        return write_stream(path / "pairs.arrow", rows)

    return write


def cut_in_the_middle(path: Path, tokenizer: Any) -> Path:
    source = damaged("raw", lambda rows: None)(path, tokenizer)
    source.write_bytes(source.read_bytes()[:-3000])
    return source


def not_arrow(path: Path, tokenizer: Any) -> Path:
    (path / "pairs.arrow").write_text("hello")
    return path / "pairs.arrow"


def no_parquet(path: Path, tokenizer: Any) -> Path:
    (path / "pairs.parquet").write_text("hello")
    return path / "pairs.parquet"


def no_row(path: Path, tokenizer: Any) -> Path:
    source = write_parquet(path / "pairs.parquet", [raw_row(RECORDS[0])])
    parquet.write_table(parquet.read_table(source).slice(0, 0), source)
    return source


def several_splits(path: Path, tokenizer: Any) -> Path:
    (path / "dataset_dict.json").write_text("broken")
    for name in ("train", "test"):
        (path / name).mkdir()
        (path / name / "state.json").touch()
    return path


def state_of(content: str) -> Callable[[Path, Any], Path]:
    def write(path: Path, tokenizer: Any) -> Path:
        (path / "state.json").write_text(content)
        return path

    return write


def not_utf8(path: Path, tokenizer: Any) -> Path:
    """Arrow does not look into the texts it carries."""
    table = pyarrow.Table.from_pylist([raw_row(record) for record in RECORDS])
    broken = pyarrow.array([b"\xff\xfe"] * len(RECORDS), pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(table.set_column(table.column_names.index("prompt"), "prompt", broken), path / "pairs.parquet")
    return path / "pairs.parquet"


def column_dropped(name: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        for row in rows:
            del row[name]

    return change


REFUSALS: dict[str, tuple[Callable[[Path, Any], Path], str]] = {
    "column": (damaged("chatml", column_dropped("ref_rejected_labels")), "lacks the columns ref_rejected_labels"),
    "other columns": (damaged("raw", column_dropped("prompt")), "lacks the columns prompt"),
    "type": (
        damaged("chatml", lambda rows: [row.update(chosen_labels=["-100"]) for row in rows]),
        "the column chosen_labels is list<",
    ),
    "null": (damaged("chatml", lambda rows: rows[4].update(rejected_labels=None)), "row 4: rejected_labels is null"),
    "null inside": (
        damaged("chatml", lambda rows: rows[4].update(ref_chosen_labels=[[1, None]])),
        "row 4: ref_chosen_labels is null or holds null",
    ),
    "vocabulary": (
        damaged("chatml", lambda rows: rows[5]["chosen_input_ids"].__setitem__(9, 700)),
        "row 5: chosen[0]: token 9 is 700, but the tokenizer's ids end at 699",
    ),
    "no row": (no_row, "pairs.parquet: holds no row"),
    "ragged turns": (
        damaged("raw", lambda rows: rows[6]["questions"].pop()),
        "row 6: the columns have different numbers of turns (short_prompts 3, questions 2,",
    ),
    "empty answer": (damaged("raw", lambda rows: rows[3]["chosens"].__setitem__(1, " ")), "row 3: turns[1].chosen is"),
    "cut": (cut_in_the_middle, "pairs.arrow: cannot be read ("),
    "not arrow": (not_arrow, "pairs.arrow: cannot be read ("),
    "no parquet": (no_parquet, "pairs.parquet: cannot be read ("),
    "splits": (several_splits, "a folder of several splits (test, train); give one, like "),
    "no splits": (
        lambda path, _: (path / "dataset_dict.json").touch() or path,
        "a folder of several splits (none of them here); give one",
    ),
    "state": (state_of("[" * 100_000), "state.json: cannot be read (RecursionError"),
    "state without files": (state_of('{"_data_files": []}'), "state.json: names no file, so the folder holds no row"),
    "not utf-8": (not_utf8, "row 0: a text is not UTF-8 ("),
    "no folder of datasets": (lambda path, _: path, "no save_to_disk folder (it has no state.json)"),
    "missing": (lambda path, _: path / "pairs.arrow", "no such file or folder; give"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_fault_is_one_line_and_leaves_nothing(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "in").mkdir()
    make, message = REFUSALS[name]
    source = make(tmp_path / "in", load_tokenizer(tokenizer_folders["chatml"]))
    assert import_data(source, tokenizer_folders["chatml"], tmp_path / "out" / "set") == 2
    line = error_line(capsys)
    assert line.startswith(str(source))
    assert message in line
    assert not any(dataset_file(tmp_path / "out" / "set", suffix).exists() for suffix in SUFFIXES)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_tokenised_pairs_are_not_truncated(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = damaged("chatml", lambda rows: None)(tmp_path, load_tokenizer(tokenizer_folders["chatml"]))
    assert import_data(source, tokenizer_folders["chatml"], tmp_path / "set", "--overlong", "truncate") == 2
    assert error_line(capsys).startswith("--overlong truncate: tokenised pairs do not say where their context ends")


def test_files_that_do_not_belong_together(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tokenizer_folders["chatml"]
    raw = write_parquet(tmp_path / "raw.parquet", [raw_row(RECORDS[0])])
    rows = [tokenised_row(RECORDS[1], load_tokenizer(folder), STYLES["chatml"][1])]
    tokenised = write_parquet(tmp_path / "tokenised.parquet", rows)
    assert import_data([raw, tokenised], folder, tmp_path / "set") == 2
    assert error_line(capsys) == f"{tokenised}: tokenised pairs, but {raw} has raw ones; import them apart"
    assert import_data([raw, raw], folder, tmp_path / "set") == 2
    assert error_line(capsys) == f"{raw}: given twice; name every input once"


def test_without_pyarrow_the_line_says_what_to_install(
    tokenizer_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for name in ("pairs.arrow", "pairs.parquet"):
        (tmp_path / name).write_bytes(b"something")
        assert import_data(tmp_path / name, tokenizer_folders["chatml"], tmp_path / "set") == 2
        assert error_line(capsys).endswith("install it: pip install 'megatron-longpo[arrow]'")


def other_question(path: Path, tokenizer: Any) -> Path:
    """In row 3 the short conversations ask something else, and are answered the same."""
    rows = [tokenised_row(record, tokenizer, STYLES["chatml"][1]) for record in RECORDS]
    record = copy.deepcopy(RECORDS[3])
    record["turns"][2]["instruction"] = "Something else?"
    other = tokenised_row(record, tokenizer, STYLES["chatml"][1])
    rows[3] |= {name: other[name] for name in other if name.startswith("ref_")}
    return write_stream(path / "pairs.arrow", rows)


def test_the_short_conversation_asks_the_same(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = other_question(tmp_path, load_tokenizer(tokenizer_folders["chatml"]))
    assert import_data(source, tokenizer_folders["chatml"], tmp_path / "set") == 2
    line = error_line(capsys)
    assert line.startswith(f"{source}: row 3: turn 2 asks ") and "Something else?" in line


def test_inputs_are_not_replaced(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_parquet(tmp_path / "set.bin", [raw_row(RECORDS[0])])
    before = source.read_bytes()
    assert import_data(source, tokenizer_folders["chatml"], tmp_path / "set", "--overwrite") == 2
    assert error_line(capsys).startswith(f"--output {tmp_path / 'set'}: its files would replace the --input {source}")
    assert source.read_bytes() == before
