"""Documents from every kind of file; each wrong input is one line that says where."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.documents import Counts, Document, find_sources, read_documents


def read(*paths: Path | str, **options: Any) -> list[Document]:
    return list(read_documents(find_sources([str(path) for path in paths]), **options))


def refusal(*paths: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        read(*paths, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return path
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return path


def test_a_folder_of_everything(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    (tmp_path / "deep" / "a.TXT").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    (tmp_path / "deep" / "b.md.gz").write_bytes(gzip.compress(b"# Title\n") + gzip.compress(b"text"))
    frame = zstandard.ZstdCompressor().compress
    (tmp_path / "c.tex.zst").write_bytes(frame(b"la") + frame(b"tex" * 100_000))
    (tmp_path / "d.jsonl").write_text(
        '{"text": "first", "id": "own"}\n\n{"text": null}\n{"text": " \\n"}\n{"text": "x"}'
    )
    write_table(tmp_path / "e.parquet", {"text": ["p", None, "q"], "id": [7, 8, 9], "other": [1, 2, 3]})
    write_table(tmp_path / "f.arrow", {"text": ["r"], "id": ["named"]})
    (tmp_path / "g.py").write_text("x = 1\n")
    (tmp_path / "h.bin").write_bytes(b"\x00")
    (tmp_path / "i.rs").write_text("\n")
    (tmp_path / ".j.txt").write_text("hidden")
    (tmp_path / "deep" / ".hidden" / "k.txt").write_text("hidden")
    counts = Counts()
    found = list(read_documents(find_sources([str(tmp_path)], counts), counts=counts))
    assert [(item.id, item.text[:12], item.domain) for item in found] == [
        ("c.tex.zst", "latextextext", "latex"),
        ("own", "first", "prose"),
        ("d.jsonl#5", "x", "prose"),
        ("deep/a.TXT", "one\ntwo\rthre", "prose"),
        ("deep/b.md.gz", "# Title\ntext", "markdown"),
        ("e.parquet#0", "p", "prose"),
        ("e.parquet#2", "q", "prose"),
        ("named", "r", "prose"),
        ("g.py", "x = 1\n", "code"),
    ]
    assert found[1].where == f"{tmp_path / 'd.jsonl'}:1" and found[5].where == f"{tmp_path / 'e.parquet'}: row 0"
    assert (found[0].source, found[1].source) == ("", "d.jsonl")
    assert (counts.documents, counts.empty, counts.ignored_files) == (9, 4, 1)
    assert counts.characters == sum(len(item.text) for item in found)


def test_globs_files_and_save_to_disk_folders(tmp_path: Path) -> None:
    for name in ("x/a.txt", "x/y/b.txt", "x/c.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    saved = tmp_path / "saved"
    saved.mkdir()
    write_table(saved / "data-00000-of-00001.arrow", {"body": ["z"]})
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    assert [item.id for item in read(f"{tmp_path}/x/**/*")] == ["a.txt", "y/b.txt"]
    assert [item.id for item in read(tmp_path / "x" / "y" / "b.txt", f"{tmp_path}/*/a.*")] == ["b.txt", "x/a.txt"]
    for folder in (saved, tmp_path / "saved"):
        assert [item.id for item in read(folder, text_field="body")] == ["data-00000-of-00001.arrow#0"]
    assert [item.domain for item in read(saved, text_field="body", domain="code")] == ["code"]


def test_names_that_cannot_be_printed_become_ids_that_can(tmp_path: Path) -> None:
    (tmp_path / "a\nb\udce9.txt").write_text("text")
    assert [item.id for item in read(tmp_path)] == ["a?b?.txt"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": 1, "b": "y"}\n', "a.jsonl:2: no field 'text'; there is 'body', 'b'"),
        ("a.jsonl", b'{"text": 5}\n', "a.jsonl:1: 'text' is of type int"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', "a.jsonl:2: no JSON"),
        ("a.json", b'[{"text": "x"}]', "a.json:1: a JSON list; each line"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl:1: 'text' holds half a surrogate pair (character 0)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl:2: not UTF-8 (byte 24 of the file is 0xff)"),
        ("a.jsonl", b'{"text": "x", "id": "a\\n"}\n', "a.jsonl:1: id 'a\\n' cannot be used"),
        ("a.jsonl", b'{"text": "x", "id": ""}\n', "a.jsonl:1: id '' cannot be used"),
        ("a.txt", b"caf\xe9", "a.txt: not UTF-8 (byte 3 of the file is 0xe9); save it as UTF-8"),
        ("a.txt.gz", gzip.compress(b"text" * 1000, mtime=0)[:-9], "a.txt.gz: cannot be read (EOFError"),
        ("a.txt.gz", b"no gzip", "a.txt.gz: cannot be read (BadGzipFile"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:40], "a.jsonl.gz: cannot be read (EOFError"),
        ("a.txt.zst", zstandard.ZstdCompressor().compress(b"text" * 1000)[:-3], "a.txt.zst: cannot be read (EOFError"),
        ("a.txt.zst", b"no zstd at all", "a.txt.zst: cannot be read (OSError"),
        ("a.parquet", b"PAR1 no PAR1", "a.parquet: cannot be read (ArrowInvalid"),
        ("a.pdf", b"%PDF", "a.pdf: unknown kind '.pdf'; what is read: text"),
        ("a.tar.gz", b"", "a.tar.gz: unknown kind '.tar.gz'"),
        ("a", b"text", "a: unknown kind 'a'"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(f"{tmp_path}/{said}")


def test_bad_paths(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in "ab":
        (tmp_path / folder / "same.txt").write_text(folder)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "p.png").touch()
    assert refusal(tmp_path / "none.txt").startswith(f"{tmp_path}/none.txt: no such file or folder")
    assert refusal(tmp_path / "*.md") == refusal(f"{tmp_path}/*.md")
    assert "matches no file to read (0 of other kinds)" in refusal(tmp_path / "*.md")
    assert "holds no file to read (1 of other kinds)" in refusal(tmp_path / "pictures")
    assert "given twice" in refusal(tmp_path / "a", tmp_path / "a" / ".." / "a" / "same.txt")
    assert "would both be called 'same.txt'" in refusal(tmp_path / "a", tmp_path / "b")


def test_a_table_without_the_column(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"body": ["x"], "title": ["y"]})
    assert refusal(path).startswith(f"{path}: no column 'text'; there is 'body', 'title'")
    assert [item.text for item in read(path, text_field="title")] == ["y"]


def test_an_id_used_twice_names_both_places(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "x", "id": "one"}\n')
    table = write_table(tmp_path / "b.parquet", {"text": ["x", "y"], "id": ["two", "one"]})
    assert f"{table}: row 1: id 'one' was already used at {tmp_path / 'a.jsonl'}:2" in refusal(tmp_path)
    (tmp_path / "c.jsonl").write_text('{"text": "x", "id": "a.jsonl#1"}\n')
    assert "already used at" in refusal(tmp_path / "a.jsonl", tmp_path / "c.jsonl")


def test_one_document_in_memory_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 3 + "broken")
    documents = read_documents(find_sources([str(tmp_path / "a.jsonl")]))
    assert [next(documents).id for _ in range(3)] == ["a.jsonl#1", "a.jsonl#2", "a.jsonl#3"]
    with pytest.raises(UserError, match=r"a\.jsonl:4"):
        next(documents)
