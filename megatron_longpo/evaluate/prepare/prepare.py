"""Bring the benchmarks' data into a mirror, from the Hugging Face Hub and from NLTK's own server, at pinned revisions.

What is downloaded lies in ``MIRROR/.download/SET`` until the set is whole, so a run that was broken off goes on where
it was. A set enters the mirror, and then its manifest, only with all its files.
"""

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError, import_optional
from megatron_longpo.evaluate.mirror import PLACES, Mirror, new_set, recorded_mirror
from megatron_longpo.evaluate.prepare.download import from_hub, from_nltk
from megatron_longpo.evaluate.prepare.squad import write_squad
from megatron_longpo.files import reading
from megatron_longpo.locks import Lock

DOWNLOADS = ".download"
NLTK_DATA = "nltk_data/punkt_tab"
_MOST_NAMED = 3


Say = Callable[[str], None]
"""Is told a line of how it goes on."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a set is brought from."""

    repo: str
    """A dataset repository of the Hub; `NLTK_DATA`."""
    revision: str
    """Its commit; of `NLTK_DATA` the sha256 of the archive."""
    patterns: tuple[str, ...]
    """The files that are needed, as shell patterns."""


Download = Callable[[Source, str, Path, Say], None]
"""(source, revision, folder, say): brings the source's files into the folder, as `download_source` does."""

SOURCES: dict[str, Source] = {
    # "*/test-*" and so on: the 57 subjects, and `all`, which holds the same once more.
    "mmlu": Source(
        "cais/mmlu",
        "c30699e8356da336a370243923dbaf21066bb9fe",
        ("README.md", "*/dev-*.parquet", "*/validation-*.parquet", "*/test-*.parquet"),
    ),
    "arc_challenge": Source(
        "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", ("README.md", "ARC-Challenge/*.parquet")
    ),
    # test too, which has no labels: the README names its file, and `datasets` wants all that it names.
    "hellaswag": Source("Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76", ("README.md", "data/*.parquet")),
    "winogrande": Source(
        "allenai/winogrande", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", ("README.md", "winogrande_xl/*.parquet")
    ),
    "infinitebench": Source(
        "xinrongzhang2022/InfiniteBench",
        "90f0394333616266d9fe85824ceaf505093cbaa5",
        ("longbook_sum_eng.jsonl", "longbook_qa_eng.jsonl", "longbook_choice_eng.jsonl"),
    ),
    "essays": Source("baber/paul_graham_essays", "792d672b77d1a67720f7e9820d646358fc18792e", ("*.parquet",)),
    "squad": Source(
        "rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412", ("squad_v2/validation-*.parquet",)
    ),
    "hotpotqa": Source(
        "namlh2004/hotpotqa", "7e54db4656209750ff487f6fdf8e39a66dba136b", ("hotpot_dev_distractor_v1.json",)
    ),
    "punkt_tab": Source(NLTK_DATA, "e57f64187974277726a3417ca6f181ec5403676c717672eef6a748a7b20e0106", ()),
}
"""Set -> where it is brought from; the sets and their order are `PLACES`'."""


def download_source(source: Source, revision: str, folder: Path, say: Say) -> None:
    """Bring the files of a source into a folder, which may hold some of them already.

    Args:
        revision: the commit, or the sha256 of NLTK's archive.
        say: is told what is brought.

    Raises:
        UserError: they cannot be had.
    """
    if source.repo == NLTK_DATA:
        from_nltk("punkt_tab", revision, folder, say)
    else:
        from_hub(source.repo, revision, source.patterns, folder, say)


def prepare(
    folder: Path,
    names: Sequence[str] = tuple(PLACES),
    revisions: Mapping[str, str] | None = None,
    *,
    say: Say = print,
    download: Download = download_source,
) -> None:
    """Bring the sets that the mirror has not, or not as they were; one that fails does not keep the others.

    Args:
        folder: the mirror.
        names: the sets.
        revisions: of a set, in place of the one that is pinned or that the mirror has it at.
        say: is told a line at a time how it goes on.
        download: what brings the files.

    Raises:
        UserError: a set could not be brought, or the manifest is broken.
    """
    recorded_mirror(folder)
    failed: list[str] = []
    for name in names:
        try:
            _bring_if_needed(folder, name, (revisions or {}).get(name), partial(_say_of, name, say), download)
        except (UserError, OSError) as error:
            failed.append(name)
            say(f"{name}: failed: {error}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(names)} sets could not be brought: {', '.join(failed)}; the lines above say why. "
            "Run the same command again to go on where it was"
        )


def _bring_if_needed(folder: Path, name: str, revision: str | None, say: Say, download: Download) -> None:
    source, mirror = SOURCES[name], recorded_mirror(folder)
    revision = revision or _recorded_revision(mirror, name) or source.revision
    wanted = f"{source.repo}@{revision}"
    if name in mirror.sets:
        made_by, changed = mirror.sets[name].source, mirror.changed_files(name, by_digest=True)
        if not changed and made_by == wanted:
            say("there already, unchanged")
            return
        if not changed and not made_by.startswith(f"{source.repo}@"):
            say(f"left alone, made by {made_by}; remove {folder / PLACES[name]} to have {wanted} brought")
            return
        if changed:
            more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
            say(f"{', '.join(changed[:_MOST_NAMED])}{more}: gone or changed; the set is brought again")
    with _download_folder(folder, name) as downloads:
        downloaded = downloads / revision
        downloaded.mkdir(exist_ok=True)
        download(source, revision, downloaded, say)
        with new_set(folder, name, wanted) as root:
            _lay(name, downloaded, root)
        shutil.rmtree(downloads)
    say(f"brought, to {folder / PLACES[name]}")


@contextmanager
def _download_folder(mirror: Path, name: str) -> Generator[Path]:
    """Yield a folder that is this process's alone, and remove what is empty of it in the end.

    Raises:
        UserError: another process is bringing the set.
    """
    folder = mirror / DOWNLOADS / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with closing(Lock(folder, directory=True, guards=mirror / PLACES[name])):
        try:
            yield folder
        finally:
            for empty in (*folder.glob("*"), folder, folder.parent):
                with suppress(OSError):  # it is not empty, or not there
                    empty.rmdir()


def _say_of(name: str, say: Say, line: str) -> None:
    say(f"{name}: {line}")


def _recorded_revision(mirror: Mirror, name: str) -> str | None:
    """The revision at which the mirror has a set, if it is from the same repository: it stays at that one."""
    repo, _, revision = mirror.sets[name].source.rpartition("@") if name in mirror.sets else ("", "", "")
    return revision if repo == SOURCES[name].repo else None


def _lay(name: str, downloaded: Path, root: Path) -> None:
    """Give what was downloaded the layout of the set.

    Raises:
        UserError: it is not what it should be.
    """
    if name == "squad":
        write_squad(_read_parquet(downloaded), root / Path(PLACES[name]).name)
    elif name == "essays":
        for number, row in enumerate(_read_parquet(downloaded)):
            (root / f"{number:03d}.txt").write_text(row["text"], encoding="utf-8")
    else:
        for entry in downloaded.iterdir():
            if not entry.name.startswith("."):  # where huggingface_hub keeps account of the download
                entry.rename(root / entry.name)


def _read_parquet(folder: Path) -> list[dict[str, Any]]:
    parquet = import_optional("pyarrow.parquet", "this set is read with pyarrow", extra="evaluate")
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*.parquet")):
        with reading(path, OSError, ValueError):
            rows += parquet.read_table(path).to_pylist()
    return rows
