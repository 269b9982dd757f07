import asyncio
import hashlib
import json
import re
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Request
from megatron_longpo.generate.journal import Shard
from megatron_longpo.generate.report.report import write_report
from megatron_longpo.generate.settings import Settings
from tests.html_page import Page
from tests.unit.generate.model_by_rule import Counts, ModelByRule, is_asking
from tests.unit.generate.run_by_rule import NUM_CONTEXTS, join, run

HOSTILE = "<script>alert(1)</script></details></article> & \" ' {{ 7 * 7 }} {% raw %} <!--"
UNICODE = "\u0645\u0631\u062d\u0628\u0627 \u4f60\u597d \U0001f409 \u202eabc e\u0301"


def count_words(texts: Any) -> list[int]:
    return [len(text.split()) for text in texts]


def sometimes_wrong(request: Request) -> str | None:
    if request.seed % 5 == 0:
        return "No questions." if is_asking(request) else "I am sorry, but I cannot find that."
    return "Once more. " * 20 if request.seed % 7 == 0 else None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    asyncio.run(run(folder, Shard(1, 1), ModelByRule(sometimes_wrong), Counts()))
    return folder / "pairs.jsonl", join(folder)


def page_of(made: tuple[Path, dict[str, Any]], report: Path, **options: Any) -> Page:
    write_report(*made, report, **{"count_tokens": count_words, **options})
    return Page(report.read_text(encoding="utf-8"))


def by_hand(folder: Path, pairs: list[dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """A file of these pairs with a manifest as `merge` writes it."""
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    num_turns = sum(len(pair["turns"]) for pair in pairs)
    counts = {"pairs": len(pairs), "contexts": len(pairs), "seconds": 0.0, "sources": {}, "dropped": {}}
    counts |= dict.fromkeys(("turns", "asked", "usable_turns"), num_turns)
    counts |= dict.fromkeys(("requests", "prompt_tokens", "new_tokens"), 7)
    return path, {
        "settings": asdict(Settings(num_turns=3)),
        "engine": {"engine": "rule"},
        "num_shards": 1,
        "written": "2026-01-02T03:04:05Z",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "counts": counts,
    }


def pair(number: int = 0, num_turns: int = 1, text: str = "so it is") -> dict[str, Any]:
    turns = [
        {
            "short_context": f"short {turn} {text}",
            "instruction": f"why {turn} {text}",
            "chosen": f"chosen {turn} {text}",
            "rejected": f"rejected {turn} and more {text}",
        }
        for turn in range(num_turns)
    ]
    return {"id": f"book-{number}", "context": f"{text} {'word ' * 500} the end of it", "turns": turns, "meta": {}}


def test_the_report_of_a_run(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    page = page_of(made, tmp_path / "report.html")
    counts = made[1]["counts"]
    assert page.tags.count("figure") == 5
    assert page.tags.count("article") == min(10, counts["pairs"])
    assert page.row("usable turns")[:2] == [
        f"{counts['usable_turns']}",
        f"{counts['usable_turns'] / counts['asked']:.1%}",
    ]
    assert page.row("min turns")[0].split() == ["2", "(recipe:", "4)"]
    assert page.row("num questions") == ["4"]
    assert page.row("documents") == [str(NUM_CONTEXTS)]
    assert page.row("SHA-256 of the pairs") == [made[1]["sha256"]]
    assert "language (off)" in page.text


def test_it_needs_no_other_file(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    page = page_of(made, tmp_path / "report.html")
    assert {"script", "link", "img", "iframe", "object"} & set(page.tags) == set()
    assert {"href", "src", "srcset"} & {name for name, _ in page.attributes} == set()
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "://" not in text and "@import" not in text
    assert "url(" not in text


def test_the_waterfall_adds_up_to_the_manifest(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    page = page_of(made, tmp_path / "report.html")
    counts = made[1]["counts"]
    left = 0
    start = next(index for index, row in enumerate(page.rows) if row[0].strip() == "chunks asked about")
    for row in page.rows[start:]:
        number = int(row[1].replace(",", "").replace("\u2212", "-"))
        left = number if number > 0 else left + number
        if row[0].strip() == "usable turns":
            assert left == counts["usable_turns"]
        if row[0].strip() == "turns in pairs":
            break
    assert left == counts["turns"]
    assert len(counts["dropped"]) == 3
    assert all(page.row(name)[0] == f"\u2212{n}" for name, n in counts["dropped"].items())


def test_lengths_are_those_of_the_file(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    page = page_of(made, tmp_path / "report.html")
    pairs = [json.loads(line) for line in made[0].read_text(encoding="utf-8").splitlines()]
    turns = [turn for one in pairs for turn in one["turns"]]
    for name, field in (("short context", "short_context"), ("chosen", "chosen")):
        values = sorted(len(turn[field].split()) for turn in turns)
        shown = page.row(name)
        assert [shown[0], shown[1], shown[5]] == [str(len(values)), str(values[0]), str(values[-1])]
        assert abs(int(shown[2]) - statistics.median(values)) <= 0.5
    in_characters = page_of(made, tmp_path / "report.html", count_tokens=None)
    contexts = sorted(len(one["context"]) for one in pairs)
    assert in_characters.row("long context")[1] == f"{contexts[0]:,}"
    assert page.row("long context")[1] == str(min(one["meta"]["num_context_tokens"] for one in pairs))


def test_differences_in_length(tmp_path: Path) -> None:
    longer = pair(1)
    longer["turns"][0]["chosen"] += " and much more than that"
    equal = pair(2)
    equal["turns"][0]["chosen"] = equal["turns"][0]["rejected"].replace("rejected", "chosen")
    page = page_of(by_hand(tmp_path, [pair(0, 2), longer, equal]), tmp_path / "report.html")
    halves = [row for row in page.rows if row[0].strip() in ("chosen", "neither", "rejected") and len(row) == 3]
    assert [row[1:] for row in halves] == [["1", "25.0%"], ["1", "25.0%"], ["2", "50.0%"]]
    assert "median \u22121, mean \u22120.2 tokens a turn" in page.text  # of -2, -2, 3 and 0


def test_the_same_input_gives_the_same_bytes(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(*made, tmp_path / name, count_tokens=count_words, seed=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_seed_draws_the_pairs(tmp_path: Path) -> None:
    made = by_hand(tmp_path, [pair(number) for number in range(100)])
    drawn = [re.findall(r"book-\d+", page_of(made, tmp_path / "report.html", seed=seed).text) for seed in (1, 2)]
    for ids in drawn:
        assert len(ids) == len(set(ids)) == 10
        assert ids == sorted(ids, key=lambda name: int(name[5:]))  # in the order of the file
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("text", [HOSTILE, UNICODE])
def test_texts_are_shown_and_never_obeyed(tmp_path: Path, text: str) -> None:
    one = pair(0, 3, text)
    one |= {"id": f"book {text}".replace("\u202e", ""), "meta": {"domain": text, "num_context_tokens": text}}
    path, manifest = by_hand(tmp_path, [one])
    manifest["engine"] = {text: text}
    manifest["sources"] = [text] * 30
    manifest["counts"]["sources"] = {text: 3}
    page = page_of((path, manifest), tmp_path / "report.html")
    assert "script" not in page.tags
    assert page.tags.count("article") == 1
    assert page.tags.count("details") == 3 + 2  # three short contexts, and two turns below the first
    for turn in one["turns"]:
        assert all(content in page.text for content in turn.values())
    assert one["id"] in page.text
    assert page.row(text) == [text]
    assert page.row("sources")[0].endswith("and 10 more")
    assert "the end of it" not in page.text  # contexts are not shown whole


def test_control_characters_are_shown_as_pictures(tmp_path: Path) -> None:
    page = page_of(by_hand(tmp_path, [pair(text="a\x00b\x1bc\td")]), tmp_path / "report.html")
    assert "why 0 a\u2400b\u241bc\td" in page.text


def test_one_pair_of_one_turn(tmp_path: Path) -> None:
    page = page_of(by_hand(tmp_path, [pair()]), tmp_path / "report.html")
    assert "One pair, drawn with seed 42" in page.text
    assert page.row("turns in pairs")[:2] == ["1", "100.0%"]
    assert "nothing is known of them" in page.text
    assert "?" in page.row("new tokens")[0]  # per second of no time


def test_short_contexts_are_counted_in_a_sample(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_longpo.generate.report.report_data.MAX_SHORT_PAIRS", 3)
    page = page_of(made, tmp_path / "report.html")
    assert "of 3 pairs, drawn" in page.text
    assert 6 <= int(page.row("short context")[0]) <= 9


def test_another_runs_manifest_is_refused(tmp_path: Path) -> None:
    path, manifest = by_hand(tmp_path, [pair(0, 2), pair(1, 2)])
    manifest["counts"]["pairs"] = 3
    with pytest.raises(UserError, match=r"pairs\.jsonl: holds 2 pairs of 4 turns, its manifest says 3 of 4; give"):
        write_report(path, manifest, tmp_path / "report.html", count_tokens=None)


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    path, manifest = by_hand(tmp_path, [pair()])
    path.write_text("{}\n")
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: the pair lacks the field 'id'"):
        write_report(path, manifest, tmp_path / "report.html", count_tokens=None)
    assert (tmp_path / "report.html").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs.jsonl", "report.html"]
