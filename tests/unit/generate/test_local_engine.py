"""The engine in this process: many coroutines, batches, memory that runs out, Ctrl-C, folders that will not do."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion, Request
from megatron_longpo.generate.engines.local_engine import LocalEngine, open_local_engine
from megatron_longpo.generate.engines.local_load import PolicyRope
from tests.unit.generate.chat_models import CONTEXT, ask, save_chat_model

REQUESTS = [ask(f"Question {number} about " + "it " * number, number, max_new_tokens=6) for number in range(11)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"))


async def answers_of(engine: LocalEngine, requests: list[Request]) -> list[Completion]:
    try:
        return await asyncio.gather(*(engine.complete(request) for request in requests))
    finally:
        await engine.aclose()


def record_rows(engine: LocalEngine, most: int = 1000) -> list[int]:
    """Rows of every pass; more than ``most`` do not fit, as on a device whose memory is full."""
    rows: list[int] = []

    def before(_: Any, args: tuple[torch.Tensor]) -> None:
        rows.append(len(args[0]))
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    untyped: Any = engine
    untyped._model._model.model.embed_tokens.register_forward_pre_hook(before)
    return rows


def test_many_requests_are_answered_in_batches_as_if_alone(folder: Path) -> None:
    engine = open_local_engine(folder, batch_size=4)
    rows = record_rows(engine)
    together = asyncio.run(answers_of(engine, REQUESTS))
    assert max(rows) == 4
    alone = [asyncio.run(answers_of(open_local_engine(folder, batch_size=1), [request]))[0] for request in REQUESTS[:4]]
    assert together[:4] == alone


def test_out_of_memory_halves_the_batch_and_loses_nothing(folder: Path) -> None:
    engine = open_local_engine(folder)
    rows = record_rows(engine, most=2)
    answers = asyncio.run(answers_of(engine, REQUESTS))
    assert max(rows) > 2
    assert answers == asyncio.run(answers_of(open_local_engine(folder), REQUESTS))
    assert rows.index(2) < len(rows) / 2  # it does not try what failed again and again


def test_out_of_memory_with_one_prompt_is_an_error(folder: Path) -> None:
    engine = open_local_engine(folder)
    record_rows(engine, most=0)
    with pytest.raises(UserError, match=r"out of memory with a single prompt of \d+ tokens \(CUDA out of memory"):
        asyncio.run(answers_of(engine, REQUESTS[:2]))


def test_closing_ends_the_work_at_once(folder: Path) -> None:
    async def leave_in_the_middle() -> float:
        engine = open_local_engine(folder)
        rows = record_rows(engine)
        waiting = asyncio.gather(
            *(engine.complete(ask("Go on.", seed, max_new_tokens=400)) for seed in range(20)), return_exceptions=True
        )
        while len(rows) < 5:
            await asyncio.sleep(0.01)
        waiting.cancel()
        start = time.monotonic()
        await engine.aclose()
        assert len(rows) < 200
        return time.monotonic() - start

    assert asyncio.run(leave_in_the_middle()) < 2  # a token takes milliseconds; the machine may be busy


def test_a_request_that_nobody_waits_for_is_not_answered(folder: Path) -> None:
    async def ask_and_leave() -> Completion:
        engine = open_local_engine(folder, batch_size=1)
        first = asyncio.create_task(engine.complete(ask("Go on.", 1, max_new_tokens=450)))
        await asyncio.sleep(0.2)
        first.cancel()
        try:
            return await asyncio.wait_for(engine.complete(REQUESTS[0]), 60)
        finally:
            await engine.aclose()

    assert asyncio.run(ask_and_leave()) == asyncio.run(answers_of(open_local_engine(folder), REQUESTS[:1]))[0]


def test_limits_and_identity(folder: Path, tmp_path: Path) -> None:
    plain = open_local_engine(folder)
    rope = PolicyRope(rope_parameters={"rope_type": "default", "rope_theta": 1e6}, max_position_embeddings=2048)
    with_rope = open_local_engine(folder, policy_rope=rope)
    assert plain.context_limits == {"short": CONTEXT, "long": CONTEXT}
    assert with_rope.context_limits == {"short": CONTEXT, "long": 2048}
    assert plain.identity == open_local_engine(folder).identity != with_rope.identity
    assert plain.identity["dtype"] == "float32"
    assert not any(str(folder.parent) in value for value in plain.identity.values())
    elsewhere = tmp_path / folder.name
    elsewhere.mkdir()
    for file in folder.iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    assert open_local_engine(elsewhere).identity == plain.identity


def test_other_weights_are_another_identity(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = save_chat_model(tmp_path / folder.name)
    before = open_local_engine(other).identity
    weights = {name: tensor * 1.01 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert {key for key, value in open_local_engine(other).identity.items() if value != before[key]} == {"weights"}


def test_a_prompt_that_is_too_long_is_refused(folder: Path) -> None:
    request = ask("word " * CONTEXT)
    with pytest.raises(UserError, match=f"need a short context of .* and the model has {CONTEXT}; use smaller chunks"):
        asyncio.run(answers_of(open_local_engine(folder), [request]))


def test_folders_that_will_not_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json; give the Hugging Face folder of a model"):
        open_local_engine(tmp_path)
    with pytest.raises(UserError, match=r"--device cuda:77: cannot be used .*; use auto, cpu, cuda"):
        open_local_engine(folder, device="cuda:77")
    broken = save_chat_model(tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}), encoding="utf-8")
    with pytest.raises(UserError, match=r"\d+ tensors of the model are missing or misshapen, model.layers.3"):
        open_local_engine(broken)
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "novelty"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"^[^\n]*no model can be loaded \(ValueError[^\n]*$"):
        open_local_engine(broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        open_local_engine(broken)
