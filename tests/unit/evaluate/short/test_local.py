"""Short tasks in this process: what is sent to the model, what does not fit, what a kill leaves, what is refused."""

import math
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.mirror import PLACES, Mirror, open_mirror
from megatron_longpo.evaluate.short.run import run_short
from tests.unit.evaluate.short.sets import (
    NUM,
    adding,
    hellaswag_row,
    local,
    record,
    run,
    tiny_model,
    winogrande_row,
    write_set,
)


@contextmanager
def sent_to(model: Any) -> Iterator[list[list[int]]]:
    """Every row of ids that goes through the model; what it has in its cache comes first."""
    rows: list[list[int]] = []
    beginning: list[list[int]] = [[]]

    def look(module: Any, args: Any, options: dict[str, Any]) -> None:
        ids = (args[0] if args else options["input_ids"]).tolist()
        if options.get("past_key_values") is None:
            beginning[0] = ids[0]
            rows.extend(ids)
        else:
            rows.extend(beginning[0] + own for own in ids)

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    yield rows
    hook.remove()


def test_a_prompt_begins_as_the_tokenizer_begins_it(
    model: Any, plain: Any, with_bos: Any, mirror: Mirror, tmp_path: Path
) -> None:
    for tokenizer, num_bos in ((with_bos, 1), (plain, 0)):
        with sent_to(model) as rows:
            run(local(model, tokenizer), "winogrande", mirror, tmp_path / str(num_bos), limit=3)
        assert len(rows) >= 6
        specials = set(tokenizer.all_special_ids)
        # Rows are filled up with zeros, which is a special token's id as well.
        heads = [[one for one in row[: len(row) // 2] if one in specials] for row in rows]
        assert heads == [[tokenizer.bos_token_id] * num_bos] * len(rows)
        assert all(row[0] == tokenizer.bos_token_id for row in rows) == bool(num_bos)


def test_too_long_prompts_are_cut_and_counted(model: Any, plain: Any, mirror: Mirror, tmp_path: Path) -> None:
    whole = run(local(model, plain), "arc_challenge", mirror, tmp_path / "whole")
    with sent_to(model) as rows:
        cut = run(local(model, plain, context_limit=100), "arc_challenge", mirror, tmp_path / "cut", limit=4)
    assert whole.num_truncated == 0
    assert cut.num_truncated == len(cut.samples) == 4
    assert max(map(len, rows)) == 100
    assert cut.prompt_tokens > 4 * 100  # what it was before
    with pytest.raises(UserError, match="does not fit"):
        run(local(model, plain, context_limit=1), "arc_challenge", mirror, tmp_path / "tiny", limit=4)


def test_a_batch_is_halved_where_memory_runs_out(model: Any, plain: Any, mirror: Mirror, tmp_path: Path) -> None:
    expected = run(local(model, plain), "hellaswag", mirror, tmp_path / "expected")
    most = [3]

    def run_out(module: Any, args: Any) -> None:
        if len(args[0]) > most[0]:
            raise torch.OutOfMemoryError("of 80 GiB 79 are used")

    hook = model.register_forward_pre_hook(run_out)
    try:
        wrapped = local(model, plain, batch_size=16)
        found = run(wrapped, "hellaswag", mirror, tmp_path / "found")
        most[0] = 0
        with pytest.raises(UserError, match=r"^cpu: the memory does not hold a single prompt"):
            run(wrapped, "hellaswag", mirror, tmp_path / "none")
    finally:
        hook.remove()
    assert found.samples == expected.samples


def test_broken_models_and_tokenizers_are_refused(
    plain: Any, mirror: Mirror, tmp_path: Path, tokenizer_folders: dict[str, Path]
) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    with pytest.raises(UserError, match="NaN"):
        run(local(broken, plain), "winogrande", mirror, tmp_path / "kept")
    with pytest.raises(UserError, match="add_eos_token"):
        local(broken, adding(load_tokenizer(tokenizer_folders["llama3"]), "<|begin_of_text|> $A <|eot_id|>"))


def test_the_tokenizer_is_left_as_it_was(model: Any, tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["llama3"])
    before = tokenizer.pad_token
    local(model, tokenizer)
    assert tokenizer.pad_token == before is None


def test_bad_mirrors_are_one_clear_line(model: Any, plain: Any, tmp_path: Path) -> None:
    root = tmp_path / "mirror"
    write_set(
        root / PLACES["winogrande"],
        {"winogrande_xl": {"train": [winogrande_row(0)], "validation": [winogrande_row(1)]}},
    )
    record(root, "winogrande")
    write_set(root / PLACES["hellaswag"], {"default": {"train": [hellaswag_row(0)]}})
    (root / PLACES["hellaswag"] / "default" / "train.parquet").write_bytes(b"no parquet")
    record(root, "hellaswag")
    for task, message in (
        ("winogrande", r"winogrande has 1 worked examples to choose from, 5 are needed"),
        ("hellaswag", r"lm-eval cannot read the set hellaswag \("),
        ("mmlu", r"this mirror has no mmlu; bring it: megatron-longpo evaluate prepare"),
    ):
        with pytest.raises(UserError, match=message) as error:
            run(local(model, plain), task, open_mirror(root), tmp_path / "kept")
        assert "\n" not in str(error.value)


# A run that is killed.


def slow_run(model: Any, tokenizer: Any, mirror: Mirror, kept: Path) -> None:
    run_short(
        local(model, tokenizer, batch_size=1), "hellaswag", mirror=mirror, limit=None, kept_answers=kept,
        on_progress=lambda done, num: time.sleep(0.1),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_run_goes_on(
    model: Any, plain: Any, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = tmp_path / "kept"
    # Forked, so that nothing is imported anew; with one thread, torch has none that a fork would lose.
    process = multiprocessing.get_context("fork").Process(target=slow_run, args=(model, plain, mirror, kept))
    process.start()
    while process.is_alive() and not (kept.exists() and kept.read_bytes().count(b"\n") >= 5):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob("megatron-longpo-short-*"))) == 1
    with kept.open("ab") as file:
        file.write(b'1234abcd {"kind": "answ')  # as a kill in the midst of a write leaves it
    heard: list[int] = []
    found = run_short(
        local(model, plain, batch_size=1), "hellaswag", mirror=mirror, limit=None, kept_answers=kept,
        on_progress=lambda done, num: heard.append(done),
    )  # fmt: skip
    assert 4 * 4 <= heard[0] < 4 * NUM == heard[-1]
    assert found == run(local(model, plain, batch_size=1), "hellaswag", mirror, tmp_path / "uninterrupted")
    assert list(tmp_path.glob("megatron-longpo-short-*")) == []


def test_answers_to_another_context_are_refused(model: Any, plain: Any, mirror: Mirror, tmp_path: Path) -> None:
    run(local(model, plain), "winogrande", mirror, tmp_path / "kept", limit=1)
    with pytest.raises(UserError, match="most_tokens was 4097, is 513"):
        run(local(model, plain, context_limit=512), "winogrande", mirror, tmp_path / "kept", limit=1)


# Servers.
