"""commands/inspect.py: what it shows is what is stored; what it cannot show is one clear line."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.commands.main import main
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.data.render import Context
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.reference.cache import ReferenceManifest, default_path, write_cache
from tests.pairs import make_records, write_jsonl

RECORDS = make_records(3)


@pytest.fixture
def prefix(tokenizer_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Three pairs of one, two and three turns, built with the Mistral tokenizer."""
    source = write_jsonl(tmp_path / "pairs.jsonl", RECORDS)
    argv = ["build", "--input", str(source), "--tokenizer", str(tokenizer_folders["mistral"])]
    assert main([*argv, "--output", str(tmp_path / "set"), "--max-length", "4000"]) == 0
    capsys.readouterr()
    return tmp_path / "set"


def inspect(prefix: Path, *options: str) -> int:
    return main(["inspect", "--data", str(prefix), *options])


def inspect_json(prefix: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert inspect(prefix, "--json", *options) == 0
    return json.loads(capsys.readouterr().out)


def score(prefix: Path, dataset_fingerprint: str, context: Context = "short") -> list[list[tuple[float, float]]]:
    """A reference cache beside the dataset; returns what is in it."""
    logp = [[(-1.5 - pair - turn, -2.25 + turn) for turn in range(pair + 1)] for pair in range(3)]
    write_cache(
        default_path(prefix, context),
        ReferenceManifest(dataset_fingerprint, "w", RopeParameters(rope_theta=1e4), "float32", context),
        logp,
    )
    return logp


def test_json_holds_ids_spans_and_where_it_came_from(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = inspect_json(prefix, capsys, "--index", "1")
    pair = PairReader(prefix)[1]
    assert (shown["index"], shown["id"], shown["source"]) == (1, "pair-1", f"{prefix.parent / 'pairs.jsonl'}:2")
    assert (shown["meta"], shown["num_removed"], shown["reference_logp"]) == ({"n": 1}, 0, {})
    assert [item["name"] for item in shown["conversations"]] == ["long", "short, turn 0", "short, turn 1"]
    for item, stored in zip(shown["conversations"], (pair.long, *pair.short), strict=True):
        assert item["trunk"] == stored.trunk.tolist()
        for name in ("chosen", "rejected"):
            branch = getattr(stored, name)
            assert item[name]["tokens"] == branch.tokens.tolist()
            assert [response["span"] for response in item[name]["responses"]] == branch.spans.tolist()
            assert "text" not in item[name]["responses"][0]


def test_with_the_tokenizer_there_is_text(
    prefix: Path, tokenizer_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = inspect_json(prefix, capsys, "--id", "pair-2", "--tokenizer", str(tokenizer_folders["mistral"]))
    record = RECORDS[2]
    long, *shorts = shown["conversations"]
    assert record["context"] in long["trunk_text"]
    for name in ("chosen", "rejected"):
        answers = [f" {turn[name]}</s>" for turn in record["turns"]]  # the blank is Mistral's template's
        assert [response["text"] for response in long[name]["responses"]] == answers
        assert [short[name]["responses"][0]["text"] for short in shorts] == answers


def test_responses_are_coloured(
    prefix: Path,
    tokenizer_folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert inspect(prefix, "--index", "2", "--tokenizer", str(tokenizer_folders["mistral"])) == 0
    shown = capsys.readouterr().out
    for turn in RECORDS[2]["turns"]:
        for answer, colour in ((turn["chosen"], "32"), (turn["rejected"], "31")):
            # rich colours line by line
            assert all(f"\x1b[1;{colour}m{line}" in shown for line in f" {answer}</s>".split("\n"))
        assert f"\x1b[1;32m{turn['instruction']}" not in shown


def test_long_trunks_are_shortened_unless_full(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    num_hidden = len(PairReader(prefix)[0].long.trunk) - 240
    assert inspect(prefix) == 0
    assert f"[... {num_hidden} tokens; --full shows them ...]" in capsys.readouterr().out
    assert inspect(prefix, "--full") == 0
    assert str(PairReader(prefix)[0].long.trunk.tolist()) in capsys.readouterr().out


def test_tokens_are_shown_with_text_on_demand(
    prefix: Path, tokenizer_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = PairReader(prefix)[0].long.chosen
    ids = str(chosen.tokens[chosen.spans[0, 0] : chosen.spans[0, 1]].tolist())
    options = ("--tokenizer", str(tokenizer_folders["mistral"]))
    assert inspect(prefix, *options) == 0
    assert ids not in capsys.readouterr().out
    assert inspect(prefix, *options, "--tokens") == 0
    assert ids in capsys.readouterr().out


def test_reference_logp_is_shown_when_it_lies_beside(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for context in ("short", "long"):
        logp = score(prefix, PairReader(prefix).manifest.fingerprint, context)
        expected = [list(turn) for turn in logp[2]]
        assert inspect_json(prefix, capsys, "--index", "2")["reference_logp"][context] == expected
        assert inspect(prefix, "--index", "2") == 0
        shown = f"reference on the {context} context, turn 1: chosen -4.500000 nats, rejected -1.250000 nats"
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--index", "3"), "--index 3: {prefix} has 3 pairs; give 0 to 2"),
        (("--index", "-1"), "--index -1: "),
        (("--id", "nobody"), "{prefix}: no pair has the id 'nobody'"),
        (("--tokenizer", "{chatml}"), "--tokenizer {chatml}: fingerprint "),
        (("--tokenizer", "nowhere"), "nowhere: no such folder"),
        (("--data", "nowhere"), "nowhere.manifest.json: no such file"),
    ],
)
def test_what_is_not_there_is_one_line(
    prefix: Path,
    tokenizer_folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    chatml = tokenizer_folders["chatml"]
    assert inspect(prefix, *(option.format(chatml=chatml) for option in options)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    expected = message.format(prefix=prefix, chatml=chatml)
    assert captured.err.startswith(f"megatron-longpo inspect: error: {expected}")
    assert captured.err.count("\n") == 1


def test_another_datasets_reference_is_refused(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score(prefix, "another")
    assert inspect(prefix) == 2
    assert f"{default_path(prefix)}: scored for another dataset" in capsys.readouterr().err
