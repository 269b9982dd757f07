"""The three files of a report: what they say, that answers cannot run in the page, and that they do not vary."""

import argparse
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.commands import evaluate_report, evaluate_run
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.cells import Cell
from megatron_longpo.evaluate.report.card_section import card_section
from megatron_longpo.evaluate.report.report import write_report
from megatron_longpo.evaluate.suites import RULER, SUITES
from tests.html_page import Page
from tests.unit.evaluate.making_cells import cell, drawn, written

FILES = ("report.html", "report.json", "report.md")
HOSTILE = "<script>alert(1)</script></details></table> & \" ' {{ 7 * 7 }} {% raw %} <!-- \x07\x1b[31m"
NAME = "a|b <img src=x onerror=alert(1)> $x$ *y* {{ 7 * 7 }}"


def cells_of(model: str, order: int, rate: float, answer: str = "so", **more: Any) -> list[Cell]:
    tasks = [(task, length) for task in RULER.tasks for length in (1024, 2048)]
    tasks += [(task, 0) for name in ("infinitebench", "short") for task in SUITES[name].tasks]
    return [
        cell(drawn(rate, 8, task, length), task, length, model, order, answer=answer, **more) for task, length in tasks
    ]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    written(folder, *cells_of("base", 0, 0.4), *cells_of(NAME, 1, 0.8, HOSTILE), *cells_of("longpo", 2, 0.9))
    write_report(folder)
    return folder


def read(output: Path, name: str) -> str:
    return (output / name).read_text(encoding="utf-8")


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Tables, lines, cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    lines = [[line.strip("|") for line in block.splitlines()] for block in blocks]
    return [[[one.strip() for one in re.split(r"(?<!\\)\|", line)] for line in table] for table in lines]


def test_the_same_cells_give_the_same_bytes(output: Path, tmp_path: Path) -> None:
    for path in sorted((output / "cells").iterdir(), reverse=True):
        (tmp_path / "cells").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "cells" / f"other-{path.name}")
    write_report(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()


def test_time_stands_in_the_page_alone(tmp_path: Path) -> None:
    for name, seconds in (("one", 10.0), ("other", 99.0)):
        written(tmp_path / name, cell([1, 0], seconds=seconds))
        write_report(tmp_path / name)
    for name in FILES:
        same = (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
        assert same == (name != "report.html")


def test_the_papers_tables_with_published_rows(output: Path) -> None:
    tables = markdown_tables(read(output, "report.md"))
    heads = [table[0] for table in tables if table[0][0] == "Model" and "Length" not in table[0]]
    assert heads == [
        ["Model", "NIAH", "VT", "AGG", "QA", "AVG"],
        ["Model", "En.Sum", "En.QA", "En.MC", "AVG."],
        ["Model", "MMLU", "ARC-C", "Hellaswag", "Winogrande", "Avg"],
    ]
    assert all(len(line) == len(table[0]) for table in tables for line in table)
    ruler = {line[0]: line[1:] for line in tables[0]}
    assert ruler["Mistral-7B-LongPO-128K (published)"] == ["96.88", "96.49", "71.55", "64.81", "88.02"]
    assert all(re.fullmatch(r"\d+\.\d\d \u00b1 \d+\.\d\d", number) for number in ruler["longpo"])
    assert list(ruler)[2:5] == [
        "base",
        r"a\|b &lt;img src=x onerror=alert(1)> $x$ \*y\* {{ 7 * 7 }}".replace("7 * 7", r"7 \* 7"),
        "longpo",
    ]


def test_numbers_of_the_three_files_agree(output: Path) -> None:
    report = json.loads(read(output, "report.json"))
    assert [row["model"] for row in report["rows"]] == ["base", NAME, "longpo"]
    vt = report["suites"]["ruler"]["scores"][2]["values"]["VT"]
    by_hand = [100 * sum(drawn(0.9, 8, "ruler_vt", length)) / 8 for length in (1024, 2048)]
    assert vt["score"] == pytest.approx(sum(by_hand) / 2) and vt["complete"]
    shown = f"{vt['score']:.2f} \u00b1 {vt['standard_error']:.2f}"
    assert shown in read(output, "report.md") and shown in Page(read(output, "report.html")).text
    difference = report["suites"]["ruler"]["differences"][1]
    assert difference["label"] == "longpo \u2212 base"
    average = difference["values"]["AVG"]
    assert average["pairs"] == 13 * 2 * 8 and average["clear"] == (average["interval"][0] > 0)
    low, high = average["interval"]
    bold = f"**{average['difference']:+.2f} [{low:+.2f}, {high:+.2f}]**"
    assert average["clear"] and bold in read(output, "report.md")


def test_nothing_in_the_page_runs_or_is_fetched(output: Path) -> None:
    text = read(output, "report.html")
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "a", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    links = [value or "" for name, value in page.attributes if name in ("href", "xlink:href")]
    assert links and all(link.startswith("#") for link in links)
    assert all("url(" not in (value or "") or "url(#" in (value or "") for _, value in page.attributes)
    assert "@import" not in text and ("http-equiv", "Content-Security-Policy") in page.attributes
    assert HOSTILE.translate({7: 0x2407, 27: 0x241B}) in page.text and NAME in page.text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", text)


def test_ids_of_the_plots_are_the_same_thing_wherever_they_are_the_same(output: Path) -> None:
    named = re.findall(r'<(path|clipPath) id="([^"]*)"(.*?)(?:/>|</clipPath>)', read(output, "report.html"), re.DOTALL)
    assert len(named) > 5
    contents: dict[str, str] = {}
    for _, name, content in named:
        assert contents.setdefault(name, content) == content


def test_a_plot_for_every_group_and_suite(output: Path, tmp_path: Path) -> None:
    text = read(output, "report.html")
    assert text.count("<svg") == 5 + 1 + 1
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == ["NIAH", "VT", "AGG", "QA", "AVG"]
    written(tmp_path, cell([1, 0]))
    write_report(tmp_path)
    assert read(tmp_path, "report.html").count("<svg") == 1, "of one length there are bars"


def test_the_page_stays_small(tmp_path: Path) -> None:
    long = [cell(drawn(0.5, 50, task), task, 4096, answer="word " * 5000) for task in RULER.tasks]
    written(tmp_path, *long)
    write_report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 100_000
    assert Page(read(tmp_path, "report.html")).text.count("word word") > 0


def test_the_command_prints_the_tables_and_takes_names(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = output.parent / "copy"
    shutil.copytree(output / "cells", folder / "cells")
    parser = argparse.ArgumentParser()
    evaluate_report.add_arguments(parser)
    options = parser.parse_args([str(folder), "--models", "longpo,base", "--published", "GPT-4-128K"])
    evaluate_report.run(options)
    printed = capsys.readouterr().out
    assert printed == read(folder, "report.md")
    ruler, difference = markdown_tables(printed)[:2]
    assert [line[0] for line in ruler[2:]] == ["longpo", "base"]
    assert [line[0] for line in difference[2:]] == ["base \u2212 longpo"]
    assert re.findall(r"\| (.*) \(published\)", printed) == ["GPT-4-128K"]
    assert "Rows marked as published are from" in read(folder, "report.html")
    write_report(folder, published=["none"])
    assert "Rows marked as published" not in read(folder, "report.html")
    with pytest.raises(UserError, match="no cells of 'dpo'"):
        write_report(folder, ["dpo"])


def test_the_card_section_shows_the_model_and_the_first(output: Path) -> None:
    section = card_section(output)
    tables = markdown_tables(section)
    assert [[line[0] for line in table[2:]] for table in tables] == [["base", "longpo"], ["longpo \u2212 base"]] * 3
    from_report = {tuple(line) for table in markdown_tables(read(output, "report.md")) for line in table}
    assert all(tuple(line) in from_report for table in tables for line in table), "digit by digit"
    assert "longpo is this model, base the one that it is compared with." in section
    assert "--suite ruler --lengths 1024,2048 --engine hf --mirror MIRROR --output OUTPUT" in section
    assert "--models base=DIR " in section and "evaluate report OUTPUT" in section
    first = card_section(output, "base")
    assert "base is this model." in first and "\u2212" not in first


def test_the_commands_that_are_shown_are_commands(tmp_path: Path) -> None:
    written(
        tmp_path,
        cell([1, 0], model="my base"),
        cell([1, 0], "ruler_cwe", 8192, model="my base"),
        cell([1, 0], "mmlu", model="b", order=1, engine="openai", limit=2),
        *(cell([1, 0], task, model="b", order=1, engine="openai") for task in SUITES["short"].tasks[1:]),
    )
    write_report(tmp_path)
    lines = re.findall(r"^megatron-longpo evaluate run (.*)$", card_section(tmp_path), re.MULTILINE)
    parser = argparse.ArgumentParser()
    evaluate_run.add_arguments(parser)
    ruler, mmlu, others = (parser.parse_args(shlex.split(line)) for line in lines)
    assert "'my base=DIR'" in lines[0] and "--tasks ruler_vt,ruler_cwe --lengths 4096,8192 --engine hf " in lines[0]
    assert "--suite short --tasks mmlu --limit 2 --engine openai --endpoint URL " in lines[1]
    assert "--suite short --tasks arc_challenge,hellaswag,winogrande --engine openai " in lines[2]
    assert (ruler.engine, mmlu.engine) == ("hf", "openai")
    assert (ruler.limit, mmlu.limit, others.limit) == (None, 2, None)


def test_a_published_row_of_the_same_name_is_not_ours(tmp_path: Path) -> None:
    written(tmp_path, cell([1, 0], model="Mistral-7B-LongPO-128K"))
    write_report(tmp_path)
    (table,) = markdown_tables(card_section(tmp_path))
    assert [line[0] for line in table[2:]] == ["Mistral-7B-LongPO-128K"] and "88.02" not in str(table)


def test_the_card_section_of_no_report(output: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no report\.json; write it with: megatron-longpo evaluate report"):
        card_section(tmp_path)
    with pytest.raises(UserError, match=r"has no model 'dpo' \(--evaluation-model\); there are: base, "):
        card_section(output, "dpo")
    for text in ("{", "[]", '{"format_version": 2}', '{"format_version": 1}', '{"format_version": 1, "rows": [7]}'):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(UserError, match=r"^--evaluation ") as error:
            card_section(tmp_path)
        assert "\n" not in str(error.value)
