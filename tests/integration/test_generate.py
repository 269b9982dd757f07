"""``megatron-longpo generate`` as a user runs it, against a real server whose answers can be foreseen."""

import gzip
import json
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_longpo.commands.main import main
from megatron_longpo.data.pair import read_pairs
from megatron_longpo.journal import journal_lines
from tests.ranks import free_port
from tests.tokenizers import chatml_tokenizer, llama3_tokenizer
from tests.unit.generate.model_by_rule import sentence
from tests.unit.generate.rule_server import serving, start

FIGURES = [
    *("--length", "2600", "--min-length", "900", "--num-turns", "2", "--min-turns", "2", "--min-chunk-tokens", "200"),
    *("--max-chunk-tokens", "400", "--answer-tokens", "400", "--question-tokens", "300", "--no-filter", "language"),
]
NUM_DOCUMENTS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and documents of about 1,500 tokens."""
    folder = tmp_path_factory.mktemp("generate")
    chatml_tokenizer(folder / "model")
    (folder / "documents").mkdir()
    for number in range(NUM_DOCUMENTS):
        draw = random.Random(number)
        paragraphs = [" ".join(sentence(draw) for _ in range(4)) for _ in range(9)]
        (folder / "documents" / f"book-{number}.txt").write_text("\n\n".join(paragraphs))
    return folder


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[str]:
    with serving(free_port(), folder / "model") as endpoint:
        yield endpoint


def argv(folder: Path, output: Path, endpoint: str, *options: str | Path) -> list[str]:
    given = [*FIGURES, "--documents", str(folder / "documents"), "--model", str(folder / "model")]
    given += ["--engine", "openai", "--endpoint", endpoint, "--output", str(output), "--retry-for", "60"]
    return ["generate", *given, *map(str, options)]


def answer_keys(output: Path) -> list[str]:
    journals = output.with_name(f"{output.name}.journal").iterdir()
    return [line["key"] for path in journals for _, _, line in journal_lines(path) if line["kind"] == "answer"]


@pytest.fixture(scope="module")
def whole(folder: Path, endpoint: str) -> Path:
    """The output of a run that nothing disturbed."""
    output = folder / "whole" / "pairs.jsonl"
    assert main(argv(folder, output, endpoint)) == 0
    return output


def test_documents_become_pairs_that_build_accepts(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [pair for _, pair in read_pairs([whole])]
    assert len(pairs) >= NUM_DOCUMENTS - 2
    for pair in pairs:
        text = (folder / "documents" / pair.id.rpartition("-")[0]).read_text()
        assert pair.context in text
        assert all(turn.short_context in pair.context for turn in pair.turns)
        assert len(pair.turns) == 2
    manifest = json.loads(whole.with_name("pairs.jsonl.manifest.json").read_text())
    assert manifest["engine"]["engine"] == "openai"
    assert manifest["corpus"]["files"].keys() == {f"book-{number}.txt" for number in range(NUM_DOCUMENTS)}
    assert manifest["counts"]["requests"] == len(answer_keys(whole)) == len(set(answer_keys(whole)))
    assert str(folder) not in json.dumps(manifest)
    model, data = folder / "model", folder / "built" / "pairs"
    build = ["build", "--input", whole, "--tokenizer", model, "--output", data, "--max-length", "2600"]
    assert main([str(word) for word in build]) == 0
    assert f"{len(pairs)}" in capsys.readouterr().out


def test_the_report_is_one_whole_page(whole: Path) -> None:
    page = whole.with_name("pairs.jsonl.report.html").read_text()
    found = Counter[str]()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            found[tag] += 1

    Tags().feed(page)
    assert found["figure"] == 5 and found["script"] == found["link"] == found["img"] == 0


def test_an_existing_output_is_kept(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = whole.read_bytes()
    assert main(argv(folder, whole, "http://127.0.0.1:9/v1")) == 2
    assert "already exists; choose another --output, or give --overwrite" in capsys.readouterr().err
    assert whole.read_bytes() == before


def test_shards_merged_are_the_whole(folder: Path, whole: Path, endpoint: str, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    for number in (2, 1):
        assert main(argv(folder, output, endpoint, "--shard", f"{number}/2")) == 0
        assert not output.exists()
    assert main(argv(folder, output, "http://127.0.0.1:9/v1", "--merge", "2")) == 0  # merging needs no server
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back(folder: Path, whole: Path, tmp_path: Path) -> None:
    """Requests in flight are asked again; nothing is lost or asked twice."""
    port, output = free_port(), tmp_path / "pairs.jsonl"
    process = start(port, folder / "model", delay_s=1.0)

    def kill_and_restart() -> None:
        nonlocal process
        journal = output.with_name("pairs.jsonl.journal") / "shard-1-of-1.journal"
        while not journal.exists() or len(answer_keys(output)) < 4:
            time.sleep(0.05)
        process.kill()
        process.wait()
        time.sleep(1.0)
        process = start(port, folder / "model")

    killer = threading.Thread(target=kill_and_restart)
    killer.start()
    try:
        assert main(argv(folder, output, f"http://127.0.0.1:{port}/v1", "--max-concurrent", "3")) == 0
    finally:
        killer.join()
        process.kill()
        process.wait()
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(answer_keys(output)) == sorted(answer_keys(whole))


def run_program(words: list[str], **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore", "-m", "megatron_longpo.commands.main", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def test_an_interrupt_ends_it_and_the_same_command_goes_on(
    folder: Path, whole: Path, endpoint: str, tmp_path: Path
) -> None:
    output = tmp_path / "pairs.jsonl"
    with serving(free_port(), folder / "model", delay_s=3.0) as slow_endpoint:
        process = run_program(argv(folder, output, slow_endpoint))
        journal = output.with_name("pairs.jsonl.journal") / "shard-1-of-1.journal"
        while not journal.exists() or len(answer_keys(output)) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "megatron-longpo generate: interrupted"
    assert "Traceback" not in errors
    assert not output.exists()
    assert main(argv(folder, output, endpoint)) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(answer_keys(output)) == sorted(answer_keys(whole))


def test_a_full_disk_is_one_line(folder: Path, endpoint: str, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    process = run_program(argv(folder, tmp_path / "pairs.jsonl", endpoint), preexec_fn=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("megatron-longpo generate: error: ")
    assert "Traceback" not in errors and "journal" in errors.splitlines()[-1]
    assert not (tmp_path / "pairs.jsonl").exists()


def test_a_dry_run_counts_and_measures_and_writes_nothing(
    folder: Path, whole: Path, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv(folder, tmp_path / "pairs.jsonl", endpoint, "--dry-run", "--max-concurrent", "2")) == 0
    printed = capsys.readouterr().out
    numbers = {words[0]: words[1] for line in printed.splitlines() if len(words := re.findall(r"[\w,]+", line)) == 2}
    num_contexts = json.loads(whole.with_name("pairs.jsonl.manifest.json").read_text())["counts"]["contexts"]
    assert numbers["documents"] == numbers["units"] == f"{NUM_DOCUMENTS}"
    assert numbers["contexts"] == f"{num_contexts}"
    assert numbers["requests"] == f"{6 * num_contexts}"  # three a turn, two turns
    assert re.search(r"2 long contexts at once took .* and gave \d pairs: .* new tokens/s", printed)
    assert re.search(rf"all {num_contexts} take about .* with this engine, and may give \d+ pairs", printed)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf8(
    folder: Path, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents, output = tmp_path / "d\udcff", tmp_path / "p\udcff.jsonl"
    documents.mkdir()
    (documents / "b\udcff.txt").write_bytes((folder / "documents" / "book-0.txt").read_bytes())
    assert main(argv(folder, output, endpoint, "--documents", documents, "--max-contexts", "1")) == 0
    assert "p\\udcff.jsonl" in capsys.readouterr().out
    assert [pair.id for _, pair in read_pairs([output])] == ["b?.txt-1"]
    assert "p?.jsonl" in output.with_name(f"{output.name}.report.html").read_text(encoding="utf-8")


BAD: dict[str, tuple[list[str], str]] = {
    "filter": (
        ["--no-filter", "nonsense"],
        "--no-filter nonsense: no filter that can be turned off; there are position",
    ),
    "filter-needed": (
        ["--no-filter", "control-tokens"],
        "--no-filter control-tokens: no filter that can be",
    ),
    "shard": (["--shard", "3/2"], "--shard 3/2: give i/n with i from 1 to n"),
    "shard-word": (["--shard", "first"], "--shard 'first': give i/n"),
    "shard-digits": (["--shard", "1/" + "9" * 5000], "give i/n, like 1/8"),
    "timeout": (["--request-timeout", "nan"], "--request-timeout nan: needs more than 0 seconds"),
    "retry": (["--retry-for", "inf"], "--retry-for inf: needs more than 0 seconds"),
    "gpus": (["--gpus-per-engine", "nan"], "--gpus-per-engine nan: needs at least 0"),
    "turns": (["--min-turns", "3"], "--min-turns 3 is above --num-turns 2"),
    "chunks": (["--min-chunk-tokens", "500"], "--min-chunk-tokens 500 is above --max-chunk-tokens 400"),
    "length": (["--length", "1500"], "leaves 188 tokens for the context beside 2 answers of 400"),
    "top-p": (["--answer-top-p", "0"], "--answer-top-p 0.0: needs more than 0, at most 1"),
    "rope": (["--policy-rope", "{"], "--policy-rope"),
    "rope-server": (
        ["--policy-rope", '{"rope_type": "default", "rope_theta": 1e4}'],
        "serve one with the policy",
    ),
    "missing": (["--documents", "nowhere"], "nowhere: no such file"),
    "glob": (["--documents", "nowhere/*.txt"], "nowhere/*.txt: matches no file"),
    "too-short": (["--min-length", "90000", "--short-documents", "skip"], "no document was long enough"),
    "merge": (["--merge", "2"], "shard-1-of-2.journal: no such journal; run generate with that --shard first"),
    "template": (["--chat-template", "nowhere.jinja"], "nowhere.jinja"),
    "served": (["--served-model", "other", "--context-limit", "4096"], "other"),
    "limit": (
        ["--context-limit", "700"],
        "--max-chunk-tokens 400 with an instruction and an answer needs a context of",
    ),
    "limit-long": (["--context-limit", "2000"], "--length 2600 is more than the 2000 tokens of the model's context"),
    "local": (["--engine", "transformers"], "--endpoint is for --engine openai, not for --engine hf"),
    "model": (["--model", "nowhere"], "nowhere"),
    "duplicates": (["--max-duplicate", "2"], "--max-duplicate 2.0: needs 0 to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str, folder: Path, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = BAD[case]
    check_bad(argv(folder, tmp_path / "pairs.jsonl", endpoint, *options), message, capsys)
    assert not (tmp_path / "pairs.jsonl").exists()


def check_bad(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("megatron-longpo generate: error: ")
    assert message in lines[-1]
    assert "Traceback" not in "\n".join(lines)


def test_an_unreachable_server(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    words = argv(folder, tmp_path / "pairs.jsonl", f"http://127.0.0.1:{port}/v1", "--retry-for", "1")
    check_bad(words, f"http://127.0.0.1:{port}/v1", capsys)


def test_another_tokenizer_than_the_servers(
    folder: Path, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama3_tokenizer(tmp_path / "other")
    check_bad(argv(folder, tmp_path / "pairs.jsonl", endpoint, "--model", tmp_path / "other"), "token", capsys)


def test_a_journal_of_other_settings(
    folder: Path, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pairs.jsonl"
    assert main(argv(folder, output, endpoint, "--shard", "1/6")) == 0
    words = argv(folder, output, endpoint, "--shard", "1/6", "--seed", "7")
    check_bad(words, "begun with other settings (settings.seed was 42, is 7)", capsys)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "book-0.txt").write_text("Another text.")
    words = argv(folder, output, endpoint, "--shard", "1/6", "--documents", tmp_path / "documents")
    check_bad(words, "corpus.files", capsys)


BAD_DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "a.jsonl": (b'{"text": "one"}\n{"body": "two"}\n', "a.jsonl:2"),
    "a.txt": (b"caf\xe9 " * 100, "a.txt"),
    "a.txt.gz": (gzip.compress(b"word " * 5000)[:-9], "a.txt.gz"),
    "a.parquet": (b"PAR1 no parquet", "a.parquet"),
    "a.mp3": (b"sound", "unknown kind"),
}


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_bad_documents_are_one_line(
    name: str, folder: Path, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_DOCUMENTS[name]
    (tmp_path / name).write_bytes(content)
    check_bad(argv(folder, tmp_path / "pairs.jsonl", endpoint, "--documents", tmp_path / name), message, capsys)
    assert not (tmp_path / "pairs.jsonl").exists()
