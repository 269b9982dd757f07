import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.journal import Journal, Position, Shard
from megatron_longpo.journal import journal_lines

HEADER = {"settings": {"seed": 1, "length": 100}, "engine": {"model": "one"}}
ONE = Shard(1, 1)
ANSWER = Completion(
    text="Ein sch\u00f6ner Satz.\nUnd noch einer.", finish="stop", num_prompt_tokens=12, num_new_tokens=7
)


def filled(folder: Path) -> Path:
    with Journal(folder, ONE, HEADER) as journal:
        journal.add_answer("a", ANSWER)
        journal.add_answer("b", ANSWER)
        journal.add_document(Position(3, 0), {"pair": {"id": "x"}, "asked": 4, "dropped": {}, "turns": 4})
    return folder / ONE.file_name


def kinds(path: Path) -> list[str]:
    return [line["kind"] for _, _, line in journal_lines(path)]


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with Journal(tmp_path, ONE, HEADER) as journal:
        assert journal.answers == {"a": ANSWER, "b": ANSWER}
        assert set(journal.done) == {Position(3, 0)}
        journal.end({"documents": 1})
    assert kinds(path) == ["header", "session", "answer", "answer", "document", "session", "end"]


def test_a_line_cut_anywhere_loses_that_line_alone(tmp_path: Path) -> None:
    path = filled(tmp_path)
    whole = path.read_bytes()
    starts = [start for start, _, _ in journal_lines(path)]
    lines = kinds(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        num_whole = sum(end <= length for end in [*starts[1:], len(whole)])
        with Journal(tmp_path, ONE, HEADER):
            pass
        begun = lines[:num_whole] if num_whole else ["header"]
        assert kinds(path) == [*begun, "session"]


def test_damage_before_the_end_is_refused_by_line(tmp_path: Path) -> None:
    path = filled(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"Satz", b"Sotz")
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"shard-1-of-1\.journal:3: damaged .*lines follow"):
        Journal(tmp_path, ONE, HEADER)
    path.write_bytes(b"".join(lines[:3]))  # as the last line it may be a torn write
    with Journal(tmp_path, ONE, HEADER) as journal:
        assert journal.answers == {}


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    filled(tmp_path)
    other = {"settings": {"seed": 2, "length": 100}, "engine": {"model": "one"}}
    with pytest.raises(UserError, match=r"begun with other settings \(settings\.seed was 1, is 2\)"):
        Journal(tmp_path, ONE, other)
    with pytest.raises(UserError, match=r"engine\.model was \"one\", is \"two\""):
        Journal(tmp_path, ONE, {**HEADER, "engine": {"model": "two"}})
    with Journal(tmp_path, ONE, HEADER):
        pass


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr("megatron_longpo.journal.FORMAT_VERSION", 2)
    with pytest.raises(UserError, match="journal of format 1, this program writes 2"):
        Journal(tmp_path, ONE, HEADER)


def test_two_processes_cannot_write_one_journal(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, ONE, HEADER),
        pytest.raises(UserError, match=r"in use by process \d+; another process is writing it"),
    ):
        Journal(tmp_path, ONE, HEADER)
    with Journal(tmp_path, ONE, HEADER), Journal(tmp_path, Shard(1, 2), HEADER):
        pass


def test_shards() -> None:
    assert [index for index in range(6) if Shard(2, 3).holds(index)] == [1, 4]
    for number, of in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(UserError, match="--shard"):
            Shard(number, of)


def test_seconds_of_all_sessions_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("megatron_longpo.generate.journal.time.monotonic", lambda: clock[0])
    for seconds in (5.0, 7.0, 0.0):
        clock[0] = 0.0
        with Journal(tmp_path, ONE, HEADER) as journal:
            clock[0] = seconds
            if seconds:
                journal.add_answer(f"{seconds}", ANSWER)
    assert journal.seconds == 12.0


FULL_DISK = """
import resource, signal, sys
from dataclasses import replace
from pathlib import Path
from tests.unit.generate.test_journal import ANSWER, HEADER, ONE, Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal(Path(sys.argv[1]), ONE, HEADER) as journal:
    journal.add_answer("a", ANSWER)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 50,) * 2)
    try:
        journal.add_answer("b", ANSWER)
    except OSError as error:
        print(error)
"""


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE is not None
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    assert "only 50 of" in done.stdout or os.strerror(errno.EFBIG) in done.stdout
    path = tmp_path / ONE.file_name
    assert path.read_bytes().endswith(b"\n")
    assert [line.get("key") for _, _, line in journal_lines(path) if line["kind"] == "answer"] == ["a"]


def test_the_header_is_plain_json(tmp_path: Path) -> None:
    header = json.loads(filled(tmp_path).read_bytes().split(b"\n")[0][9:])
    assert header == {"kind": "header", "format_version": 1, **HEADER, "shard": {"number": 1, "of": 1}}


def test_half_a_surrogate_pair_is_kept_as_it_came(tmp_path: Path) -> None:
    broken = replace(ANSWER, text="half \ud83d")
    with Journal(tmp_path, ONE, HEADER) as journal:
        journal.add_answer("a", broken)
    with Journal(tmp_path, ONE, HEADER) as journal:
        assert journal.answers == {"a": broken}


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ONE.file_name
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="damaged"):
        Journal(tmp_path, ONE, HEADER)
    assert path.read_text() == "a,b\n1,2\n"


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("megatron_longpo.locks.fcntl.flock", no_locks)
    filled(tmp_path)
    assert "this file system has no locks" in caplog.text
