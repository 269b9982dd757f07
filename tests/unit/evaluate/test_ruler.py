"""RULER: each prompt fits as the model sees it, holds what it asks for, and depends on its own settings alone."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.long.prompts import Prompt, prompt_length
from megatron_longpo.evaluate.long.ruler import RULER_TASKS, make_prompts
from megatron_longpo.evaluate.long.ruler_data import essay_words, hotpot_questions, squad_questions
from megatron_longpo.evaluate.long.ruler_files import (
    Making,
    RulerFile,
    known_settings,
    make_files,
    makeable,
    plan_making,
    ruler_prompts,
)
from megatron_longpo.evaluate.mirror import open_mirror
from megatron_longpo.evaluate.suites import RULER
from tests.unit.evaluate.making_mirrors import make_mirror

pytestmark = pytest.mark.ranks
LENGTH, SAMPLES, SEED = 8192, 2, 42


def plan(mirror: Path, tokenizer: Path, samples: int = SAMPLES, lengths: tuple[int, ...] = (LENGTH,)) -> Making:
    return plan_making(mirror, tokenizer, None, samples=samples, seed=SEED, lengths=lengths)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_folders: dict[str, Path]) -> Making:
    """All tasks at one length, made on two processes."""
    making = plan(make_mirror(tmp_path_factory.mktemp("mirror")).folder, tokenizer_folders["mistral"])
    assert len(list(make_files(making, [RulerFile(task, LENGTH) for task in RULER.tasks], 2))) == 13
    return making


def prompts(making: Making, task: str) -> list[Prompt]:
    return ruler_prompts(making.mirror, making.settings.fingerprint, task, LENGTH)


def test_the_tasks_are_those_of_the_suite() -> None:
    assert tuple(RULER_TASKS) == RULER.tasks


@pytest.mark.parametrize("task", RULER.tasks)
def test_every_prompt_fits_with_template_and_answer_and_nearly_fills_the_length(made: Making, task: str) -> None:
    tokenizer = load_tokenizer(made.tokenizer)
    found = prompts(made, task)
    assert [one.id for one in found] == [str(number) for number in range(SAMPLES)]
    for one in found:
        assert one.length == prompt_length(tokenizer, one) <= LENGTH
        assert one.answer_start and one.answer_start == one.answer_start.strip()
    if task not in ("ruler_qa_squad", "ruler_qa_hotpot") and "essays" not in RULER_TASKS[task].sets:
        # The others' data ends before. Hay comes in steps, the longest 25 uuids of 100 tokens with this tokenizer.
        assert sum(one.length for one in found) / SAMPLES > 0.65 * LENGTH


@pytest.mark.parametrize("task", [task for task in RULER.tasks if "niah" in task])
def test_the_needles_are_in_the_hay(made: Making, task: str) -> None:
    num_references = {"ruler_niah_multiquery": 4, "ruler_niah_multivalue": 4}.get(task, 1)
    for one in prompts(made, task):
        assert len(one.references) == num_references
        assert all(f"is: {reference}." in one.text for reference in one.references)


def test_words_are_counted_as_the_answer_says(made: Making) -> None:
    for one in prompts(made, "ruler_cwe"):
        example, _, question = one.text.partition("\nBelow is a numbered list")
        assert "Answer: The top 10 words that appear most often in the list are:" in example
        words = re.findall(r"\d+\. (\S+)", question)
        counts = sorted(((words.count(word), word) for word in set(words)), reverse=True)
        assert {word for _, word in counts[:10]} == set(one.references)
    for one in prompts(made, "ruler_fwe"):
        words = [word for word in one.text.split() if re.fullmatch("[a-z]{6}", word)]
        counts = {word: words.count(word) for word in one.references}
        assert all(counts[word] >= words.count(other) for word in counts for other in set(words) - counts.keys())


def test_variables_are_those_of_the_asked_value(made: Making) -> None:
    for one in prompts(made, "ruler_vt"):
        asked = re.findall(r"the value (\d+)", one.answer_start)[-1]
        values: dict[str, str] = {}
        for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", one.text):
            values[name] = values.get(value, value)
        assert {name for name, value in values.items() if value == asked} == set(one.references)


def test_a_question_has_its_paragraph_and_all_its_answers(made: Making) -> None:
    for one in prompts(made, "ruler_qa_squad"):
        number = one.references[0].split()[1]
        assert one.references == (f"Founder {number}", f"Founder {number} of old")
        assert f"founded by Founder {number} of old" in one.text
    for one in prompts(made, "ruler_qa_hotpot"):
        assert one.references[0] in one.text


def test_all_prompts_of_a_tokenizer_are_made_with_the_same_settings(made: Making) -> None:
    with pytest.raises(UserError, match="were made with samples 2; all models are to see the same"):
        plan(made.mirror, made.tokenizer, samples=5)
    with pytest.raises(UserError, match="--lengths 512: RULER's tasks need at least 1024 tokens"):
        plan(made.mirror, made.tokenizer, lengths=(512, LENGTH))
    assert known_settings(made.mirror, made.settings.fingerprint, "ruler_vt", LENGTH, Path("m")) == made.settings


def test_prompts_of_another_tokenizer_are_not_taken(made: Making, tokenizer_folders: dict[str, Path]) -> None:
    other = tokenizer_fingerprint(load_tokenizer(tokenizer_folders["chatml"]))
    with pytest.raises(UserError, match=r"RULER has no prompts of 8,192 tokens .* make-ruler --tokenizer m --lengths"):
        known_settings(made.mirror, other, "ruler_vt", LENGTH, Path("m"))


@pytest.mark.parametrize("task", ["ruler_vt", "ruler_cwe"])
def test_a_prompt_that_cannot_fit_is_an_error_and_not_a_search_without_end(
    made: Making, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")  # as in the workers: lm-eval is not to bring anything
    tokenizer = load_tokenizer(made.tokenizer)  # of 700 words, so that a prompt has many tokens
    with pytest.raises(
        UserError, match=r"the smallest prompt has \d+ tokens with this tokenizer and does not fit into"
    ):
        make_prompts(task, tokenizer, open_mirror(made.mirror), length=1024, samples=1, seed=1)


def test_tasks_without_their_sets_are_named_and_the_others_are_left(tmp_path: Path) -> None:
    mirror = make_mirror(tmp_path)
    manifest = tmp_path / "manifest.json"
    fields = json.loads(manifest.read_text())
    del fields["sets"]["hotpotqa"]
    manifest.write_text(json.dumps(fields))
    possible, faults = makeable(open_mirror(mirror.folder), RULER.tasks)
    assert len(possible) == 12
    assert [fault.split(":")[0] for fault in faults] == ["ruler_qa_hotpot"]
    assert "--sets hotpotqa" in faults[0]


def test_the_sets_are_read_as_ruler_reads_them(tmp_path: Path) -> None:
    mirror = make_mirror(tmp_path)
    squad = squad_questions(mirror.path_of("squad"))
    assert (len(squad.questions), len(squad.paragraphs)) == (60, 60)  # those without an answer are left out
    for one in squad.questions:
        own = one["query"].removeprefix("Who founded ").removesuffix("?")
        assert own in squad.paragraphs[one["context"][0]]
        article = own.split("-")[0]
        assert [article in squad.paragraphs[other] for other in one["more_context"]] == [True]
    hotpot = hotpot_questions(mirror.path_of("hotpotqa"))
    assert (len(hotpot.questions), len(hotpot.paragraphs)) == (20, 20)
    assert all(one["outputs"][0] in hotpot.paragraphs[one["context"][0]] for one in hotpot.questions)
    assert len(essay_words(mirror.path_of("essays"))) > 1000
    mirror.path_of("squad").write_text('{"data": [{}]}')
    with pytest.raises(UserError, match=r"dev-v2\.0\.json: cannot be read \(KeyError"):
        squad_questions(tmp_path / "squad" / "dev-v2.0.json")


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_files_whatever_else_is_made(made: Making, tmp_path: Path) -> None:
    mirror = make_mirror(tmp_path / "mirror").folder
    words = ["make-ruler", "--tokenizer", made.tokenizer, "--mirror", mirror, "--lengths", LENGTH, "--samples", SAMPLES]
    words += ["--tasks", "vt,niah_single_1", "--processes", 1]
    command = [sys.executable, "-m", "megatron_longpo.commands.main", "evaluate", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(mirror.glob(f"ruler/*/{LENGTH}/*.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 files of prompts, 1 to make" in done.stderr or "2 files of prompts, 0 to make" in done.stderr
    for name in ("ruler_vt", "ruler_niah_single_1"):
        path = made.path(RulerFile(name, LENGTH))
        assert (mirror / path.relative_to(made.mirror)).read_bytes() == path.read_bytes()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr.endswith("0 to make\n")
