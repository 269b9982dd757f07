"""A mirror's manifest: what it says of a set, and the one line on each thing that can be wrong with it."""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.mirror import PLACES, new_set, open_mirror, record_set, recorded_mirror
from megatron_longpo.locks import Lock


def made(folder: Path) -> Path:
    """A mirror of two essays and SQuAD."""
    with new_set(folder, "essays", "essays@1", "two essays") as root:
        (root / "a.txt").write_text("alpha")
        (root / "b.txt").write_text("beta")
    with new_set(folder, "squad", "squad@1") as root:
        (root / "dev-v2.0.json").write_text("{}")
    return folder


def test_a_set_is_found_with_its_facts(tmp_path: Path) -> None:
    mirror = open_mirror(made(tmp_path / "mirror"))
    assert mirror.path_of("essays") == tmp_path / "mirror" / "essays"
    assert mirror.path_of("squad") == tmp_path / "mirror" / "squad" / "dev-v2.0.json"
    essays = mirror.sets["essays"]
    assert (essays.source, essays.note) == ("essays@1", "two essays")
    assert {path: (file.sha256, file.bytes) for path, file in essays.files.items()} == {
        "essays/a.txt": (hashlib.sha256(b"alpha").hexdigest(), 5),
        "essays/b.txt": (hashlib.sha256(b"beta").hexdigest(), 4),
    }


def test_a_sets_digest_is_that_of_its_files(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other")
    assert open_mirror(one).sha256_of("essays") == open_mirror(other).sha256_of("essays")
    (other / "essays" / "b.txt").write_text("zeta")
    record_set(other, "essays", "essays@1", [other / "essays" / "b.txt", other / "essays" / "a.txt"])
    assert open_mirror(one).sha256_of("essays") != open_mirror(other).sha256_of("essays")
    assert open_mirror(one).sha256_of("squad") == open_mirror(other).sha256_of("squad")


def test_recording_a_set_replaces_it_alone(tmp_path: Path) -> None:
    folder = made(tmp_path)
    record_set(folder, "essays", "essays@2", [folder / "essays" / "a.txt"])
    sets = open_mirror(folder).sets
    assert [(name, facts.source, len(facts.files)) for name, facts in sets.items()] == [
        ("essays", "essays@2", 1),
        ("squad", "squad@1", 1),
    ]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("longer than it was")])
def test_a_changed_set_is_named_with_the_command_that_brings_it(tmp_path: Path, change: Callable[[Path], None]) -> None:
    mirror = open_mirror(made(tmp_path))
    change(tmp_path / "essays" / "b.txt")
    with pytest.raises(UserError, match=rf"essays/b\.txt: .* evaluate prepare --mirror {tmp_path} --sets essays$"):
        mirror.path_of("essays")
    assert mirror.path_of("squad").is_file()


def test_other_content_of_the_same_size_is_found_by_digest_alone(tmp_path: Path) -> None:
    mirror = open_mirror(made(tmp_path))
    (tmp_path / "essays" / "b.txt").write_text("zeta")
    assert mirror.changed_files("essays") == []
    assert mirror.changed_files("essays", by_digest=True) == ["essays/b.txt"]


def test_an_absent_set_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    mirror = open_mirror(made(tmp_path))
    for ask in (mirror.path_of, mirror.sha256_of, mirror.changed_files):
        with pytest.raises(UserError, match=rf"has no mmlu; bring it: .* --mirror {tmp_path} --sets mmlu$"):
            ask("mmlu")


def test_an_unknown_set_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no set 'gsm8k'; .* {', '.join(PLACES)}"):
        open_mirror(made(tmp_path)).path_of("gsm8k")


def test_a_folder_that_is_no_mirror_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder; make one: megatron-longpo evaluate prepare"):
        open_mirror(tmp_path / "gone")
    with pytest.raises(UserError, match=r"holds no manifest\.json, so it is no mirror"):
        open_mirror(tmp_path)
    assert recorded_mirror(tmp_path).sets == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "of format None, this program reads 1"),
        ('{"format_version": 2, "sets": {}}', "of format 2, this program reads 1"),
        ('{"format_version": 1}', "not a mirror's manifest"),
        ('{"format_version": 1, "sets": []}', "not a mirror's manifest"),
        ('{"format_version": 1, "sets": {"mmlu": {"source": "a", "note": ""}}}', "not a mirror's manifest"),
        (
            '{"format_version": 1, "sets": {"mmlu": {"source": "a", "note": "", '
            '"files": {"../x": {"sha256": "", "bytes": 1}}}}}',
            r"\.\./x lies outside",
        ),
    ],
)
def test_a_broken_manifest_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=rf"manifest\.json: .*{message}") as raised:
        open_mirror(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_set_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_set(tmp_path, "hotpotqa", "hotpotqa@1") as root:
        (root / "half.json").write_text(f"{1 / 0}")
    assert list(tmp_path.iterdir()) == []
    assert recorded_mirror(tmp_path).sets == {}


def test_a_folder_that_is_in_no_manifest_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "essays").mkdir()
    (tmp_path / "essays" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"), new_set(tmp_path, "essays", "essays@1"):
        pass
    assert (tmp_path / "essays" / "mine.txt").read_text() == "mine"


def test_a_new_set_replaces_the_old_ones_files(tmp_path: Path) -> None:
    with new_set(made(tmp_path), "essays", "essays@2") as root:
        (root / "c.txt").write_text("gamma")
    assert [path.name for path in (tmp_path / "essays").iterdir()] == ["c.txt"]
    assert list(open_mirror(tmp_path).sets["essays"].files) == ["essays/c.txt"]


def test_two_processes_do_not_write_the_manifest_at_once(tmp_path: Path) -> None:
    before = (made(tmp_path) / "manifest.json").read_bytes()
    with (
        closing(Lock(tmp_path / ".manifest.json.partial")),
        pytest.raises(UserError, match=r"manifest\.json: in use by"),
    ):
        record_set(tmp_path, "essays", "essays@2", [])
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert json.loads(before)["format_version"] == 1
