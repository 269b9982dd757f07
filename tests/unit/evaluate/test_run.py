"""Runs: cells whole or absent, nothing asked twice, who knows all at 100 and who nothing at 0, bad input in a line."""

import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path

import pytest

from megatron_longpo.commands.main import run_verb
from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.evaluate.cells import read_cell_files
from megatron_longpo.evaluate.long.infinitebench import NOVEL_TASKS, novel_prompts
from megatron_longpo.evaluate.long.prompts import Prompt, read_prompts, write_prompts
from megatron_longpo.evaluate.long.ruler_files import RulerSettings, prompts_path
from megatron_longpo.evaluate.mirror import open_mirror
from megatron_longpo.evaluate.suites import RULER
from tests.ranks import free_port
from tests.unit.evaluate.answer_server import answering
from tests.unit.evaluate.making_mirrors import make_mirror
from tests.unit.generate.chat_models import save_chat_model

LENGTH = 1024
CONTEXT = 4096


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """With RULER prompts for the model: hand-made ones, in the place of lm-eval's."""
    folder = make_mirror(tmp_path_factory.mktemp("mirror")).folder
    write_ruler_prompts(folder, model)
    return folder


def write_ruler_prompts(mirror: Path, model: Path) -> None:
    fingerprint = tokenizer_fingerprint(load_tokenizer(model))
    for task in RULER.tasks:
        path = prompts_path(mirror, fingerprint, task, LENGTH)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_prompts(path, [ruler_prompt(task, number) for number in range(6)])
    settings = RulerSettings(samples=6, seed=1, lm_eval="by hand", fingerprint=fingerprint)
    (path.parents[1] / "settings.json").write_text(json.dumps(asdict(settings)))


def ruler_prompt(task: str, number: int) -> Prompt:
    return Prompt(
        id=str(number),
        text=f"In {task} the number of box {number} is 77{number}. What is the number of box {number}?",
        answer_start="The number is",
        references=(f"77{number}",),
        max_new_tokens=8,
        length=90,
    )


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "megatron_longpo.commands.main", "evaluate", "run", *map(str, words)]


def run(*words: object, status: int = 0) -> str:
    """Run the verb in this process; what it printed on stderr."""
    said = io.StringIO()
    with redirect_stderr(said):
        try:
            found = run_verb("evaluate", ["run", *map(str, words)])
        except SystemExit as error:  # argparse
            found = error.code
    assert found == status, said.getvalue()
    return said.getvalue()


OPTIONS = ("--suite", "ruler", "--lengths", LENGTH)


def knowing(mirror: Path, model: Path) -> dict[str, str]:
    """Every prompt's right answer."""
    fingerprint = tokenizer_fingerprint(load_tokenizer(model))
    files = [prompts_path(mirror, fingerprint, task, LENGTH) for task in RULER.tasks]
    novels = [prompt for task in NOVEL_TASKS for prompt in novel_prompts(open_mirror(mirror), task)]
    found = [prompt for path in files for prompt in read_prompts(path)]
    # A novel is cut in the middle, so it is known by its end.
    return {prompt.text: prompt.references[0] for prompt in found} | {
        prompt.text[-200:]: prompt.references[0] for prompt in novels
    }


@pytest.fixture(scope="module")
def endpoint(mirror: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An all-knowing server, and the log of what it answered."""
    workspace = tmp_path_factory.mktemp("server")
    with answering(free_port(), model, knowing(mirror, model), workspace, delay_s=0.05) as url:
        yield url, workspace / "log"


def served(endpoint: str, *words: object, name: str = "base") -> Sequence[object]:
    return ("--engine", "openai", "--endpoint", endpoint, "--only", name, *words)


def num_answers(log: Path) -> int:
    """Without those of the probe."""
    return sum(line != "nothing" for line in log.read_text().splitlines()) if log.exists() else 0


def test_an_all_knowing_server_scores_100_and_is_not_asked_again(
    mirror: Path, model: Path, endpoint: tuple[str, Path], tmp_path: Path
) -> None:
    url, log = endpoint
    before = num_answers(log)
    words = ("--models", f"base={model}", "--mirror", mirror, "--output", tmp_path, "--lengths", LENGTH)
    said = run(*words, *served(url, "--suite", "ruler,infinitebench"))
    assert "16 cells, 16 to make" in said and said.rstrip().endswith(f"evaluate report {tmp_path}")
    cells = {cell.task: cell for cell in read_cell_files(tmp_path).values()}
    assert len(cells) == 16
    for task in (*RULER.tasks, "infinitebench_en_qa", "infinitebench_en_mc"):
        assert cells[task].score == 100, task
        assert cells[task].engine == "openai"
    assert cells["infinitebench_en_sum"].score == pytest.approx(100)
    assert num_answers(log) - before == 13 * 6 + 9
    assert "16 cells, 0 to make" in run(*words, *served(url, "--suite", "ruler,infinitebench"))
    assert num_answers(log) - before == 13 * 6 + 9
    results = json.loads(next((tmp_path / "lm_eval" / "base").glob("results_niah_single_1_*.json")).read_text())
    assert results["results"]["niah_single_1"]["1024,none"] == 1.0
    rows = next((tmp_path / "lm_eval" / "base").glob("samples_ruler_vt_*.jsonl")).read_text().splitlines()
    assert [json.loads(row)["filtered_resps"] for row in rows] == [[f"77{number}"] for number in range(6)]


def test_a_model_that_knows_nothing_scores_0_and_its_prompts_are_cut_in_the_middle(
    mirror: Path, model: Path, tmp_path: Path
) -> None:
    words = (
        "--models",
        f"base={model}",
        "--mirror",
        mirror,
        "--output",
        tmp_path,
        "--tasks",
        "ruler_vt,infinitebench_en_qa",
    )
    run(*words, "--suite", "all", "--lengths", LENGTH, "--context-limit", LENGTH + 100)
    cells = {cell.task: cell for cell in read_cell_files(tmp_path).values()}
    assert cells["ruler_vt"].score == cells["infinitebench_en_qa"].score == 0
    novel = cells["infinitebench_en_qa"]
    assert novel.num_truncated == novel.num == 3
    assert novel.real_length and LENGTH + 80 < novel.real_length <= LENGTH + 100
    assert cells["ruler_vt"].settings["dtype"] == "float32"


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(
    mirror: Path, model: Path, endpoint: tuple[str, Path], tmp_path: Path
) -> None:
    url, log = endpoint
    words = ("--models", f"base={model}", "--mirror", mirror, *served(url, *OPTIONS, "--max-concurrent", 2))
    run(*words, "--output", tmp_path / "whole")
    before = num_answers(log)
    for _ in range(2):
        process = subprocess.Popen(command(*words, "--output", tmp_path / "killed"), stderr=subprocess.DEVNULL)
        start, deadline = num_answers(log), time.monotonic() + 60
        while num_answers(log) < start + 15 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    said = run(*words, "--output", tmp_path / "killed")
    assert num_answers(log) - before <= 13 * 6 + 2 * 2  # of two requests in flight at each kill
    assert "0 to make" not in said
    assert not list((tmp_path / "killed" / "cells").glob("*.journal"))
    samples = [[cell.samples for cell in read_cell_files(tmp_path / name).values()] for name in ("whole", "killed")]
    assert samples[0] == samples[1]
    reports = [tmp_path / name / "report.md" for name in ("whole", "killed")]
    for path in reports:
        with redirect_stdout(io.StringIO()):
            assert run_verb("evaluate", ["report", str(path.parent)]) == 0
    assert reports[0].read_text().replace("/whole", "/killed") == reports[1].read_text()


@pytest.mark.slow
def test_two_processes_on_one_folder_make_no_cell_twice(
    mirror: Path, model: Path, endpoint: tuple[str, Path], tmp_path: Path
) -> None:
    url, log = endpoint
    before = num_answers(log)
    words = ("--models", f"base={model}", "--mirror", mirror, "--output", tmp_path)
    words = (*words, *served(url, *OPTIONS, "--max-concurrent", 1))
    other = subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True)
    while num_answers(log) == before:
        assert other.poll() is None
        time.sleep(0.01)
    said = run(*words)
    assert "ruler_niah_single_1 at 1,024: another process makes it" in said
    other_said = other.communicate(timeout=300)[1]
    assert other.returncode == 0, other_said
    assert num_answers(log) - before == 13 * 6
    assert len(read_cell_files(tmp_path)) == 13


def test_a_cell_is_found_again_under_another_name_of_its_model(
    mirror: Path, model: Path, endpoint: tuple[str, Path], tmp_path: Path
) -> None:
    url, _ = endpoint
    other = save_chat_model(tmp_path / "other", hidden_size=64)
    words = ("--mirror", mirror, "--output", tmp_path, "--tasks", "ruler_vt")
    run("--models", f"base={model}", *words, *served(url, *OPTIONS))
    said = run("--models", f"first={other}", f"mistral={model}", *words, *served(url, *OPTIONS, name="mistral"))
    assert "1 cells, 0 to make" in said
    assert [(cell.model, cell.order) for cell in read_cell_files(tmp_path).values()] == [("mistral", 1)]


def test_a_dry_run_says_what_it_takes_and_makes_nothing(mirror: Path, model: Path, tmp_path: Path) -> None:
    words = ("--models", f"base={model}", "--mirror", mirror, "--output", tmp_path / "out", *OPTIONS, "--dry-run")
    with redirect_stdout(io.StringIO()) as said:
        run(*words)
    assert f"{13 * 6}" in said.getvalue() and f"{13 * 6 * LENGTH:,}" in said.getvalue()
    assert "long prompts take about" in said.getvalue()
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_clear_line(mirror: Path, model: Path, tmp_path: Path) -> None:
    def fails(*words: object, models: Sequence[object] = (f"base={model}",), place: Path = mirror) -> str:
        said = run("--models", *models, "--mirror", place, "--output", tmp_path / "out", *words, status=2)
        return said.splitlines()[-1].removeprefix("megatron-longpo evaluate: error: ")

    plain = tmp_path / "plain"
    shutil.copytree(model, plain)
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((plain / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(mirror, broken)
    (broken / "squad" / "dev-v2.0.json").write_text("{}")
    assert fails(place=tmp_path / "none").startswith(
        f"{tmp_path}/none: there is no such folder; make one: megatron-longpo"
    )
    assert "holds no manifest.json, so it is no mirror" in fails(place=empty)
    assert "no suite long; there are ruler, infinitebench, short and all" in fails("--suite", "long")
    assert "no task vt; there are ruler_niah" in fails("--tasks", "vt")
    assert fails(models=["base"]) == "--models base: give NAME=DIR, like base=models/mistral"
    assert "no config.json; give the Hugging Face folder" in fails(models=[f"base={empty}"])
    assert "gives the name a twice" in fails(models=[f"a={model}", f"a={model}"])
    assert "a and b are the same model" in fails(models=[f"a={model}", f"b={model}"])
    assert "the tokenizer has no chat template" in fails(models=[f"base={plain}"])
    assert fails("--only", "sft") == "--only sft: not one of --models"
    assert "is more than its 4,096 positions" in fails("--suite", "ruler", "--lengths", 8192)
    assert "RULER has no prompts of 2,048 tokens" in fails("--suite", "ruler", "--lengths", 2048)
    assert "squad is not what it was; bring it again" in fails(*OPTIONS, "--tasks", "ruler_qa_squad", place=broken)
    assert "this mirror has no mmlu; bring it" in fails("--suite", "short", "--tasks", "mmlu")
    assert fails("--engine", "openai").startswith("--engine openai needs --endpoint URL")
    assert "is for --engine openai, not for --engine hf" in fails("--endpoint", "http://localhost:1/v1")
    gone = ("--engine", "openai", "--endpoint", f"http://127.0.0.1:{free_port()}/v1", "--retry-for", 0.1)
    assert "no connection" in fails(*gone, *OPTIONS)
    assert fails("--limit", 0) == "--limit 0: needs at least 1"
    assert "--device cuda:7: cannot be used" in fails("--device", "cuda:7", *OPTIONS)
    assert "cannot be imported" in fails("--engine", "vllm", *OPTIONS)


def test_a_server_of_another_model_or_without_completions_is_refused(
    mirror: Path, model: Path, endpoint: tuple[str, Path], tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    url, _ = endpoint
    other = save_chat_model(tmp_path / "other", hidden_size=64)
    shutil.copytree(tokenizer_folders["llama3"], other, dirs_exist_ok=True)
    words = ("--mirror", mirror, "--output", tmp_path / "out", "--suite", "infinitebench")
    said = run("--models", f"base={other}", *words, *served(url), status=2)
    assert "give the folder of the model that is served" in said
    longer = save_chat_model(tmp_path / "longer", max_position_embeddings=2 * CONTEXT)
    said = run("--models", f"base={longer}", *words, *served(url), status=2)
    assert "needs a context of 8,192 tokens, and the model has 4,096" in said
    said = run("--models", f"base={model}", *words, *served(url, "--served-model", "gpt"), status=2)
    assert "error" in said


def test_a_damaged_cell_or_journal_is_named(
    mirror: Path, model: Path, endpoint: tuple[str, Path], tmp_path: Path
) -> None:
    url, _ = endpoint
    words = ("--models", f"base={model}", "--mirror", mirror, "--output", tmp_path, "--tasks", "ruler_vt")
    words = (*words, *served(url, *OPTIONS))
    run(*words)
    (path,) = (tmp_path / "cells").glob("*.json")
    path.write_text(path.read_text()[:-40])
    assert f"{path}: cannot be read" in run(*words, status=2)
    path.unlink()
    path.with_suffix(".journal").write_text("damaged\nline\n")
    assert f"{path.with_suffix('.journal')}:1: damaged" in run(*words, status=2)
    path.with_suffix(".journal").unlink()
    run(*words)
    assert path.is_file()


def test_a_full_disk_is_one_line_and_loses_nothing_that_was_there(
    mirror: Path, model: Path, endpoint: tuple[str, Path], tmp_path: Path
) -> None:
    url, log = endpoint
    words = ("--models", f"base={model}", "--mirror", mirror, "--output", tmp_path / "out", "--tasks", "ruler_vt")
    words = (*words, *served(url, *OPTIONS, "--max-concurrent", 1))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

    before = num_answers(log)
    full = subprocess.run(command(*words), preexec_fn=limit, capture_output=True, text=True, timeout=120, check=False)
    assert full.returncode == 2 and "Traceback" not in full.stderr
    last = full.stderr.splitlines()[-1]
    assert re.search(r"error: .*cells/\w+\.journal: only \d+ of \d+ bytes could be written; is the disk full\?", last)
    assert not list((tmp_path / "out").rglob("*.json"))
    kept = num_answers(log) - before - 1
    assert 0 < kept < 6
    run(*words)
    assert num_answers(log) - before == 6 + 1, "what was written before is kept; the answer that was not is asked again"
    (cell,) = read_cell_files(tmp_path / "out").values()
    assert cell.score == 100
