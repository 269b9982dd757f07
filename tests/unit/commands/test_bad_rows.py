"""commands/bad_rows.py: ``import-data --bad-rows skip`` leaves out what cannot be used, and says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.commands import import_data as import_data_module
from megatron_longpo.data.dataset_files import SUFFIXES, dataset_file
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.tokenizer import load_tokenizer
from tests.longpo_release import raw_row
from tests.pairs import write_jsonl
from tests.unit.commands.building import build
from tests.unit.commands.test_import_data import RECORDS, Rows, damaged, error_line, import_data, write_parquet


def three_bad(style: str) -> Callable[[Path, Any], Path]:
    """Rows 0, 4 and 6 are bad."""

    def change(rows: Rows) -> None:
        if style == "raw":
            rows[0]["questions"] = None
            rows[4]["chosens"][0] = " "
            rows[6]["short_prompts"].pop()
        else:
            rows[0]["chosen_input_ids"][9] = 700
            rows[4]["rejected_labels"] = None
            rows[6]["ref_chosen_labels"].pop()

    return damaged(style, change)


@pytest.mark.parametrize("style", ["raw", "chatml"])
def test_bad_rows_can_be_left_out(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    """What is left is what build makes of it; what is not is counted in the manifest, and named."""
    folder = tokenizer_folders["chatml"]
    source = three_bad(style)(tmp_path, load_tokenizer(folder))
    assert import_data(source, folder, tmp_path / "refused") == 2
    assert f"{source}: row 0: " in error_line(capsys)
    assert import_data(source, folder, tmp_path / "set", "--bad-rows", "skip") == 0
    out, err = capsys.readouterr()
    assert "4 pairs, " in out and " 3 bad rows left out, 0 pairs skipped," in out
    first, *named = err.splitlines()
    assert first == "megatron-longpo import-data: left out 3 bad rows:"
    assert [line.split(": ")[:2] for line in named] == [[f"  {source}", f"row {number}"] for number in (0, 4, 6)]
    kept = [RECORDS[index] for index in (1, 2, 3, 5)]
    assert build(write_jsonl(tmp_path / "pairs.jsonl", kept), folder, tmp_path / "built") == 0
    imported = PairReader(tmp_path / "set")
    assert imported.manifest.fingerprint == PairReader(tmp_path / "built").manifest.fingerprint
    assert (imported.manifest.num_bad, imported.manifest.num_skipped) == (3, 0)
    assert [imported.record(index).id for index in range(4)] == ["row-1", "row-2", "row-3", "row-5"]


@pytest.mark.parametrize("style", ["raw", "chatml"])
def test_bad_rows_are_not_all_that_can_be_wrong(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    """Too long is not bad; a file that breaks off is no row; and with no row left there is no dataset."""
    folder = tokenizer_folders["chatml"]
    skip = ("--bad-rows", "skip")
    source = three_bad(style)(tmp_path, load_tokenizer(folder))
    assert import_data(source, folder, tmp_path / "set", *skip, max_length=50) == 2
    assert f"{source}: row 1: " in (line := error_line(capsys)) and "more than the limit of 50" in line
    assert import_data(source, folder, tmp_path / "set", *skip, "--overlong", "skip", max_length=50) == 2
    assert "no pair is left (4 skipped for their length, limit 50, 3 bad rows left out)" in capsys.readouterr().err
    source.write_bytes(source.read_bytes()[:-3000])
    assert import_data(source, folder, tmp_path / "set", *skip) == 2
    assert "cannot be read (" in capsys.readouterr().err.splitlines()[-1]
    assert not any(dataset_file(tmp_path / "set", suffix).exists() for suffix in SUFFIXES)


def test_only_the_first_bad_rows_are_named(
    tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [raw_row(RECORDS[0]) | ({"chosens": []} if index else {}) for index in range(24)]
    source = write_parquet(tmp_path / "pairs.parquet", rows)
    assert import_data(source, tokenizer_folders["chatml"], tmp_path / "set", "--bad-rows", "skip") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("left out 23 bad rows:") and len(lines) == 1 + 20 + 1
    assert lines[-1] == "  and 3 more: the numbers that no kept pair (row-N) has"


def test_bad_rows_on_several_workers(
    tokenizer_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows, in the same order."""
    folder = tokenizer_folders["chatml"]
    source = three_bad("raw")(tmp_path, load_tokenizer(folder))
    for num_workers in (1, 3):
        monkeypatch.setattr(import_data_module, "default_workers", lambda _, number=num_workers: number)
        assert import_data(source, folder, tmp_path / str(num_workers), "--bad-rows", "skip") == 0
    one, three = (PairReader(tmp_path / name).manifest for name in ("1", "3"))
    assert one.fingerprint == three.fingerprint and one.num_bad == three.num_bad == 3
