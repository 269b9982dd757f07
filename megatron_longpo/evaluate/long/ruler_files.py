"""Where RULER's prompts lie in a mirror, and how all that are missing are made.

``MIRROR/ruler/<tokenizer>/<length>/<task>.jsonl``, the tokenizer by the first 16 digits of its fingerprint. Beside them
``settings.json`` says with how many samples and which seed they were made: all lengths and tasks of a tokenizer alike.
"""

import importlib.metadata
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_longpo import strict_json
from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError, import_optional
from megatron_longpo.evaluate.long.prompts import Prompt, read_prompts, write_prompts
from megatron_longpo.evaluate.long.ruler import MIN_LENGTH, RULER_TASKS, make_prompts
from megatron_longpo.evaluate.mirror import Mirror, open_mirror
from megatron_longpo.files import atomic_file, reading
from megatron_longpo.workers import start_worker

SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerSettings:
    """What all prompts of a tokenizer are made with."""

    samples: int
    seed: int
    lm_eval: str
    """Its version: another one may draw otherwise."""
    fingerprint: str
    """The tokenizer's, its chat template included."""


@dataclass(frozen=True, slots=True)
class RulerFile:
    """The prompts of one task at one length."""

    task: str
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What a process needs to make files."""

    mirror: Path
    tokenizer: Path
    chat_template: str | None
    settings: RulerSettings

    @property
    def folder(self) -> Path:
        """Of this tokenizer's prompts."""
        return self.mirror / "ruler" / self.settings.fingerprint[:16]

    def path(self, file: RulerFile) -> Path:
        """Where a file lies."""
        return prompts_path(self.mirror, self.settings.fingerprint, file.task, file.length)


@dataclass(frozen=True, slots=True)
class Made:
    """What a file holds."""

    num: int
    """Prompts."""
    mean_length: float
    """Tokens."""


def makeable(mirror: Mirror, tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which tasks the mirror has all sets of, and what is missing for the others."""
    possible: list[str] = []
    faults: list[str] = []
    for task in tasks:
        try:
            for name in RULER_TASKS[task].sets:
                mirror.path_of(name)
            possible.append(task)
        except UserError as error:
            faults.append(f"{task}: {error}")
    return possible, faults


def prompts_path(mirror: Path, fingerprint: str, task: str, length: int) -> Path:
    """Where a task's prompts at a length lie."""
    return mirror / "ruler" / fingerprint[:16] / str(length) / f"{task}.jsonl"


def ruler_prompts(mirror: Path, fingerprint: str, task: str, length: int) -> list[Prompt]:
    """The prompts of one task at one length.

    Raises:
        UserError: the file is missing or damaged.
    """
    return list(read_prompts(prompts_path(mirror, fingerprint, task, length)))


def known_settings(mirror: Path, fingerprint: str, task: str, length: int, tokenizer: Path) -> RulerSettings:
    """What the prompts of one task at one length were made with.

    Args:
        tokenizer: the model's folder, for the message.

    Raises:
        UserError: they have not been made for this tokenizer.
    """
    path = prompts_path(mirror, fingerprint, task, length)
    if not path.is_file():
        missing = path if path.parent.is_dir() else path.parent  # one message for all tasks of a length
        raise UserError(
            f"{missing}: not there, so RULER has no prompts of {length:,} tokens for the tokenizer and chat template "
            f"of {tokenizer}; make them: megatron-longpo evaluate make-ruler --tokenizer {tokenizer} "
            f"--lengths {length} --mirror {mirror}"
        )
    return _read_settings(path.parents[1] / SETTINGS)


def _read_settings(path: Path) -> RulerSettings:
    with reading(path, OSError, ValueError, RecursionError, TypeError):
        return RulerSettings(**strict_json.loads(path.read_text(encoding="utf-8")))


def plan_making(
    mirror: Path, tokenizer: Path, chat_template: str | None, *, samples: int, seed: int, lengths: Sequence[int]
) -> Making:
    """Hold the settings against those of the files that are there.

    Raises:
        UserError: no mirror, no usable tokenizer; prompts of this tokenizer were made with other settings; a length is
            too short.
    """
    open_mirror(mirror)
    if short := [length for length in lengths if length < MIN_LENGTH]:
        raise UserError(f"--lengths {short[0]}: RULER's tasks need at least {MIN_LENGTH} tokens")
    settings = RulerSettings(
        samples=samples,
        seed=seed,
        lm_eval=importlib.metadata.version("lm-eval"),
        fingerprint=tokenizer_fingerprint(load_tokenizer(tokenizer, chat_template)),
    )
    making = Making(mirror=mirror, tokenizer=tokenizer, chat_template=chat_template, settings=settings)
    path = making.folder / SETTINGS
    if path.is_file():
        known = asdict(_read_settings(path))
        if known != asdict(settings):
            made = ", ".join(f"{name} {known[name]}" for name, one in asdict(settings).items() if known[name] != one)
            raise UserError(
                f"{path}: the prompts of this tokenizer were made with {made}; all models are to see the same, so give "
                f"the same again, or remove {path.parent} to make all anew"
            )
    else:
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")
    return making


def make_files(making: Making, files: Sequence[RulerFile], num_processes: int) -> Iterator[tuple[RulerFile, Made]]:
    """Make files side by side, and yield each when it is whole.

    Raises:
        UserError: a file cannot be made; those that are whole stay.
    """
    if not files:
        return
    context = multiprocessing.get_context("spawn")  # lm-eval's modules draw words as they are imported: no fork
    with ProcessPoolExecutor(num_processes, context, initializer=_prepare, initargs=(making.mirror,)) as pool:
        running: dict[Future[Made], RulerFile] = {pool.submit(_make, making, file): file for file in files}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():  # a long file takes minutes
                process.terminate()
            raise


def _prepare(mirror: Path) -> None:
    """In a new process: quiet, and no network."""
    start_worker()
    os.environ.update(TQDM_DISABLE="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    # Or lm-eval brings punkt_tab from the network as its module is imported, whether a task needs it or not.
    os.environ["LOCAL_RANK"] = "1"
    nltk: Any = import_optional("nltk", "sentences of the essays are found by NLTK", extra="evaluate")
    nltk.data.path.insert(0, str(mirror / "nltk_data"))


def _make(making: Making, file: RulerFile) -> Made:
    tokenizer = load_tokenizer(making.tokenizer, making.chat_template)
    with redirect_stdout(StringIO()):  # the generators print how they search
        prompts = make_prompts(
            file.task,
            tokenizer,
            open_mirror(making.mirror),
            length=file.length,
            samples=making.settings.samples,
            seed=making.settings.seed,
        )
    with atomic_file(making.path(file)) as partial:
        write_prompts(partial, prompts)
    return Made(len(prompts), fmean(prompt.length for prompt in prompts))
