"""Documents from every kind of file; each wrong input is one line that says where."""

import bz2
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.documents import Counts, Document, find_sources, read_documents


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


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
    (tmp_path / "deep" / "b.md.gz").write_bytes(gzip.compress(b"# Title\n", mtime=0) + gzip.compress(b"text", mtime=0))
    (tmp_path / "c.tex.zst").write_bytes(zstd(b"la") + zstd(b"tex" * 100_000))
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
        ("a.txt.gz", gzip.compress(b"text", mtime=0) + b"more", "a.txt.gz: cannot be read (BadGzipFile"),
        ("a.txt.zst", zstd(b"text" * 1000)[:-3], "a.txt.zst: cannot be read (OSError: Truncated"),
        ("a.txt.zst", zstd(b"text") + zstd(b"more")[:5], "a.txt.zst: cannot be read (OSError: Truncated"),
        ("a.jsonl.zst", zstd(b'{"text": "x"}\n' * 99)[:20], "a.jsonl.zst: cannot be read (OSError: Truncated"),
        ("a.txt.zst", b"no zstd at all", "a.txt.zst: cannot be read (OSError"),
        ("a.txt.zst", zstd(b"text") + b"more", "a.txt.zst: cannot be read (OSError"),
        ("a.txt.bz2", bz2.compress(b"text" * 1000)[:-3], "a.txt.bz2: cannot be read (OSError: Truncated"),
        ("a.txt.bz2", b"no bz2", "a.txt.bz2: cannot be read (OSError"),
        ("a.txt", "text".encode("utf-16"), "a.txt: byte 3 of the file is 0, so it is UTF-16 or no text"),
        ("a.txt", "\u4e2d\u6587".encode("utf-16"), "a.txt: not UTF-8 (byte 0 of the file is 0xff)"),
        ("a.txt", b"text\n\0", "a.txt: byte 5 of the file is 0"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16-le"), "a.jsonl:1: byte 1 of the file is 0, so it is UTF-16"),
        ("a.jsonl", b'{"text": "x"}\n' + b"\0" * 9, "a.jsonl:2: byte 14 of the file is 0"),
        ("a.jsonl", b'{"text": NaN}\n', "a.jsonl:1: 'text' is of type float"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "a.jsonl:1: no JSON"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1: no JSON"),
        ("a.jsonl", b'{"\\ud800": "x"}\n', "a.jsonl:1: no field 'text'; there is '\\ud800'"),
        ("a.jsonl", b'{"text": "x", "id": "\\ud800"}\n', "a.jsonl:1: id '\\ud800' cannot be used"),
        ("a.parquet", b"PAR1 no PAR1", "a.parquet: cannot be read (ArrowInvalid"),
        ("a.pdf", b"%PDF", "a.pdf: unknown kind '.pdf'; what is read: text"),
        ("a.tar.gz", b"", "a.tar.gz: unknown kind '.tar.gz'"),
        ("a", b"text", "a: unknown kind 'a'"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(f"{tmp_path}/{said}")


def test_what_else_a_row_may_hold(tmp_path: Path) -> None:
    """Fields that are not read are not judged; a NUL that JSON spells out is a character like others."""
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "one", "score": NaN, "id": 7, "other": "\\ud800"}\r\n{"text": "t\\u0000wo\\r\\n"}'
    )
    assert [(item.id, item.text) for item in read(tmp_path)] == [("a.jsonl#1", "one"), ("a.jsonl#2", "t\0wo\n")]


def test_a_table_whose_text_is_no_utf8(tmp_path: Path) -> None:
    broken = pyarrow.array([b"fine", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    table = write_table(tmp_path / "a.parquet", {"text": broken})
    assert refusal(table).startswith(f"{table}: row 1: cannot be read (UnicodeDecodeError")


def test_empty_files_are_empty_documents(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md.gz", "c.txt.zst", "d.txt.bz2", "e.jsonl", "f.jsonl.zst"):
        (tmp_path / name).touch()
    (tmp_path / "g.txt").write_bytes(b"\xef\xbb\xbf")
    (tmp_path / "h.txt").write_text("text")
    counts = Counts()
    assert [item.id for item in read_documents(find_sources([str(tmp_path)]), counts=counts)] == ["h.txt"]
    assert counts.empty == 5  # lines of JSON are none


def names(*paths: Path | str) -> tuple[list[str], int]:
    """The names of what is found, and how much is not read."""
    counts = Counts()
    return [source.name for source in find_sources([str(path) for path in paths], counts)], counts.ignored_files


def make(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.txt"])
def test_linked_folders_are_followed_once(tmp_path: Path, pattern: str) -> None:
    make(tmp_path, "docs/a/one.txt", "docs/z/two.txt", "docs/z/deep/three.txt", "far/four.txt", "far/.git/five.txt")
    docs = tmp_path / "docs"
    (docs / "a" / "far").symlink_to("../../far")
    (docs / "b").symlink_to("z/deep")  # a name that comes before the folder's own
    (docs / "z" / "again").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(docs)
    (docs / "up").symlink_to("..")
    (docs / "self").symlink_to(".")
    (docs / "loop").symlink_to("loop")
    found, ignored = names(f"{docs}{pattern}")
    assert found == ["a/far/four.txt", "a/one.txt", "z/deep/three.txt", "z/two.txt"]
    assert ignored == (0 if "txt" in pattern else 6)
    (tmp_path / "link").symlink_to(docs)
    assert names(f"{tmp_path}/link{pattern}")[0] == found


def test_globs_go_through_links_and_leave_hidden_files(tmp_path: Path) -> None:
    make(tmp_path, "docs/a/one.txt", "docs/a/.two.txt", "docs/.b/three.txt", "docs/.b/c/four.txt", "far/five.md")
    (tmp_path / "docs" / "far").symlink_to("../far")
    assert names(f"{tmp_path}/docs/*/*") == (["a/one.txt", "far/five.md"], 0)
    assert names(f"{tmp_path}/docs/**/[!f]*.*") == (["a/one.txt"], 0)
    assert names(f"{tmp_path}/docs/.b/**/*.txt") == (["c/four.txt", "three.txt"], 0)
    assert names(f"{tmp_path}/docs/**/a/**/*.txt") == (["a/one.txt"], 0)


def test_what_is_no_file_is_counted_in_a_folder_and_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "~b.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "broken.txt").symlink_to("nowhere.txt")
    (tmp_path / "device.txt").symlink_to("/dev/null")
    (tmp_path / "same.txt").symlink_to("a.txt")
    (tmp_path / "0.txt").symlink_to("a.txt")
    for path in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/**"):
        assert names(path) == (["a.txt", "~b.txt"], 5)
    for name in ("pipe", "device"):
        assert refusal(tmp_path / f"{name}.txt").startswith(f"{tmp_path}/{name}.txt: a pipe or device")
    assert refusal(tmp_path / "broken.txt").startswith(f"{tmp_path}/broken.txt: a link to nowhere.txt, which is not")


def test_a_name_that_begins_like_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path, "~draft.txt"))
    assert names("~draft.txt") == (["~draft.txt"], 0)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for name in (b"a\xff.txt", b"b\xff/c.jsonl", b"d\xff.txt.zst"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zstd(b"x") if name.endswith(b"zst") else b'{"text": "x"}')
    assert [item.id for item in read(tmp_path)] == ["a?.txt", "b?/c.jsonl#1", "d?.txt.zst"]
    (tmp_path / "a\udcfe.txt").touch()
    assert "would both be called 'a?.txt'" in refusal(tmp_path)


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
