"""A hundred kills at random moments of `evaluate run` and `make-ruler` leave what comes out as it was."""

import io
import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from megatron_longpo.commands.main import run_verb
from tests.ranks import free_port
from tests.tokenizers import mistral_tokenizer
from tests.unit.evaluate.answer_server import answering
from tests.unit.evaluate.making_mirrors import make_mirror
from tests.unit.evaluate.test_run import LENGTH, knowing, write_ruler_prompts
from tests.unit.generate.chat_models import save_chat_model

pytestmark = pytest.mark.slow

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.preload", "openai", "megatron_longpo.evaluate.run.run"])


def evaluate(words: list[str]) -> None:
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        assert run_verb("evaluate", words) == 0


def kill(words: list[str], draw: random.Random, longest_s: float) -> bool:
    """Start the command and kill it, with what it started, at a random moment; whether it ended before."""
    process = _server.Process(target=evaluate, args=(words,))
    process.start()
    process.join(draw.uniform(0, longest_s))
    ended = process.exitcode == 0
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return ended


def report(output: Path) -> str:
    evaluate(["report", str(output)])
    return (output / "report.md").read_text().replace(str(output), "OUTPUT")


def test_a_run_that_is_killed_ninety_times(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "model", max_position_embeddings=4096)
    mirror = make_mirror(tmp_path / "mirror").folder
    write_ruler_prompts(mirror, model)
    draw, num_finished = random.Random(3), 0
    with answering(free_port(), model, knowing(mirror, model), tmp_path, delay_s=0.02) as url:
        words = ["run", "--models", f"base={model}", "--mirror", str(mirror), "--suite", "ruler,infinitebench"]
        words += ["--lengths", str(LENGTH), "--engine", "openai", "--endpoint", url, "--max-concurrent", "3"]
        evaluate([*words, "--output", str(tmp_path / "whole")])
        whole = report(tmp_path / "whole")
        for number in range(90):
            output = tmp_path / f"killed{num_finished}"
            if kill([*words, "--output", str(output)], draw, 2.5) or number == 89:
                evaluate([*words, "--output", str(output)])
                assert report(output) == whole
                num_finished += 1
    assert num_finished


def test_prompts_whose_making_is_killed_ten_times(tmp_path: Path) -> None:
    mirror = make_mirror(tmp_path / "mirror").folder
    words = ["make-ruler", "--tokenizer", str(mistral_tokenizer(tmp_path / "tokenizer")), "--mirror", str(mirror)]
    words += ["--lengths", "8192,12288", "--samples", "3", "--processes", "2"]
    evaluate(words)
    whole = {path.relative_to(mirror): path.read_bytes() for path in (mirror / "ruler").rglob("*.jsonl")}
    assert len(whole) == 26
    shutil.rmtree(mirror / "ruler")
    draw = random.Random(4)
    for _ in range(10):
        kill(words, draw, 25.0)
        time.sleep(0.5)  # its workers end with it
    evaluate(words)
    assert {path.relative_to(mirror): path.read_bytes() for path in (mirror / "ruler").rglob("*.jsonl")} == whole
