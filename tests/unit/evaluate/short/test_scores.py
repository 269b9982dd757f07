"""Short tasks by lm-eval: scores and log-probabilities are those of loops that are written out here."""

import json
import math
import random
import socket
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any

import lm_eval
import pytest

from megatron_longpo.evaluate.mirror import Mirror
from megatron_longpo.evaluate.short.run import run_short, short_settings
from megatron_longpo.evaluate.short.tasks import DEFINITIONS
from tests.unit.evaluate.short.sets import (
    NUM,
    SUBJECTS,
    local,
    logps_by_hand,
    rows_of,
    run,
)


def test_arc_is_as_by_hand_without_network_and_without_noise(
    model: Any,
    with_bos: Any,
    mirror: Mirror,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("somebody asks the network"))
    heard: list[tuple[int, int]] = []
    found = run_short(
        local(model, with_bos), "arc_challenge", mirror=mirror, limit=None, kept_answers=tmp_path / "kept",
        on_progress=lambda done, num: heard.append((done, num)),
    )  # fmt: skip
    assert capfd.readouterr() == ("", "")
    assert heard == [(done, 4 * NUM) for done in range(0, 4 * NUM + 1, 16)]

    train, test = (rows_of(mirror, "arc_challenge", "ARC-Challenge", split) for split in ("train", "test"))
    draw, scores = random.Random(1234), list[float]()
    for row, sample, own in zip(test, found.samples, found.lm_eval_samples["arc_challenge"], strict=True):
        shots = draw.sample(train, 25)
        prompt = "".join(f"Question: {one['question']}\nAnswer: {right(one)}\n\n" for one in shots)
        prompt += f"Question: {row['question']}\nAnswer:"
        texts = row["choices"]["text"]
        logps = logps_by_hand(model, with_bos, prompt, texts)
        # fp32 against fp64, sums of a few tokens
        assert [logp for logp, _ in own["filtered_resps"]] == pytest.approx(logps, abs=1e-3)
        best = max(range(4), key=lambda i: logps[i] / len(texts[i]))
        scores.append(float(texts[best] == right(row)))
        assert (sample.answer, sample.score) == (texts[best], scores[-1])
    assert [sample.id for sample in found.samples] == [str(number) for number in range(NUM)]
    assert found.score == pytest.approx(100 * mean(scores)) and 0 < found.score < 100
    assert found.standard_error == pytest.approx(100 * stdev(scores) / math.sqrt(NUM))
    assert found.num_truncated == 0


def right(row: dict[str, Any]) -> str:
    return row["choices"]["text"]["ABCD".index(row["answerKey"])]


def test_mmlu_is_as_by_hand(model: Any, plain: Any, mirror: Mirror, tmp_path: Path) -> None:
    found = run(local(model, plain, batch_size=16), "mmlu", mirror, tmp_path / "kept")
    by_subject: dict[str, list[float]] = {}
    samples = {sample.id: sample for sample in found.samples}
    for subject in SUBJECTS:
        parts = [f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}."]
        parts += [f"{asked(row)} {'ABCD'[row['answer']]}" for row in rows_of(mirror, "mmlu", subject, "dev")]
        for number, row in enumerate(rows_of(mirror, "mmlu", subject, "test")):
            logps = logps_by_hand(model, plain, "\n\n".join([*parts, asked(row)]), "ABCD")
            best = max(range(4), key=logps.__getitem__)
            assert samples[f"{subject}/{number}"].answer == "ABCD"[best]
            by_subject.setdefault(subject, []).append(float(best == row["answer"]))
            assert samples[f"{subject}/{number}"].score == by_subject[subject][-1]
    all_scores = [score for scores in by_subject.values() for score in scores]
    assert len(found.samples) == len(all_scores) == 2 * 57
    assert found.score == pytest.approx(100 * mean(all_scores)) and 0 < found.score < 100
    # The subjects' variances, pooled: one degree of freedom each.
    pooled = mean(variance(scores) for scores in by_subject.values())
    assert found.standard_error == pytest.approx(100 * math.sqrt(pooled / len(all_scores)))


def asked(row: dict[str, Any]) -> str:
    options = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
    return f"{row['question']}{options}\nAnswer:"


@pytest.mark.parametrize("task", ["hellaswag", "winogrande"])
def test_the_others_run_too(model: Any, plain: Any, mirror: Mirror, tmp_path: Path, task: str) -> None:
    found = run(local(model, plain), task, mirror, tmp_path / "kept", limit=5)
    assert [sample.id for sample in found.samples] == list("01234")
    assert found.score == pytest.approx(100 * mean(sample.score for sample in found.samples))
    assert found.lm_eval_results["n-shot"] == {task: DEFINITIONS[task].num_fewshot}
    assert found.lm_eval_results["n-samples"][task] == {"original": NUM, "effective": 5}
    assert "megatron-longpo-short" not in json.dumps(found.lm_eval_results)
    again = run(local(model, plain, batch_size=1), task, mirror, tmp_path / "other", limit=5)
    assert [sample.prompt_sha256 for sample in again.samples] == [sample.prompt_sha256 for sample in found.samples]
    assert again.lm_eval_results["configs"] == found.lm_eval_results["configs"]


def test_settings(mirror: Mirror) -> None:
    assert short_settings("hellaswag", mirror) == {
        "chat_template": False, "data": "made up", "data_sha256": mirror.sha256_of("hellaswag"), "fewshot_seed": 1234,
        "lm_eval": lm_eval.__version__, "log_softmax": "float32", "metric": "acc_norm", "num_fewshot": 10,
    }  # fmt: skip
