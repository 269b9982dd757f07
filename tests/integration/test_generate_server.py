"""The OpenAI engine against a real server: transformers' own `serve`, a process on loopback."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.engines.local_engine import open_local_engine
from megatron_longpo.generate.engines.openai_engine import OpenAIEngine, open_openai_engine
from tests.ranks import free_port
from tests.transformers_server import served
from tests.unit.generate.chat_models import CONTEXT, ask, save_chat_model

REQUESTS = [ask(f"Question {number}?", number, temperature=0.0, max_new_tokens=40) for number in range(8)]


@pytest.mark.slow
def test_a_server_killed_in_the_middle_and_started_again(tmp_path: Path) -> None:
    """Nothing is lost, nothing comes twice, and greedy answers are those of an undisturbed run."""
    folder, port = save_chat_model(tmp_path / "model"), free_port()

    async def connect(endpoint: str) -> OpenAIEngine:
        return await open_openai_engine(
            endpoint,
            tokenizer=load_tokenizer(folder),
            model_folder=folder,
            model_name=str(folder),
            max_concurrent=2,
            first_answer_s=120,
            retry_for_s=120,
        )

    async def disturbed() -> tuple[list[Completion], list[Completion]]:
        with served(folder, port) as endpoint:
            engine = await connect(endpoint)
            assert engine.context_limits == {"short": CONTEXT, "long": CONTEXT}
            assert engine.identity["model"] == "model"
            undisturbed = await asyncio.gather(*(engine.complete(request) for request in REQUESTS))
            asked = [asyncio.create_task(engine.complete(request)) for request in REQUESTS]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert not all(task.done() for task in asked)
        with served(folder, port):
            answers = await asyncio.gather(*asked)
            other = load_tokenizer(folder, "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
            with pytest.raises(UserError, match="tokens where the given tokenizer and chat template count"):
                await open_openai_engine(endpoint, tokenizer=other, model_name=str(folder), context_limit=CONTEXT)
            with pytest.raises(UserError, match=r"refuses the request .*Server is pinned to"):
                await open_openai_engine(
                    endpoint, tokenizer=load_tokenizer(folder), model_name="another", context_limit=CONTEXT
                )
        await engine.aclose()
        return undisturbed, answers

    undisturbed, answers = asyncio.run(disturbed())
    assert answers == undisturbed
    assert all(answer.num_new_tokens > 0 for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("does_draw", [False, True])
def test_a_server_draws_if_its_model_says_so(tmp_path: Path, does_draw: bool) -> None:
    """`transformers serve` ignores the temperature of a request when the model's folder does not ask for drawing."""
    folder, port = save_chat_model(tmp_path / "model"), free_port()
    if does_draw:
        (folder / "generation_config.json").write_text('{"do_sample": true}', encoding="utf-8")

    async def connect(endpoint: str) -> None:
        engine = await open_openai_engine(
            endpoint,
            tokenizer=load_tokenizer(folder),
            model_folder=folder,
            model_name=str(folder),
            first_answer_s=120,
            draws=True,
        )
        await engine.aclose()

    expected = nullcontext() if does_draw else pytest.raises(UserError, match='"do_sample": true')
    with served(folder, port) as endpoint, expected:
        asyncio.run(connect(endpoint))


@pytest.mark.slow
def test_a_begun_answer_is_continued_as_by_the_model_in_this_process(tmp_path: Path) -> None:
    """Greedy, through the completions endpoint; the folder's repetition penalty applies to neither."""
    folder, port = save_chat_model(tmp_path / "model"), free_port()
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.7}', encoding="utf-8")
    begun = [
        replace(ask(f"Question {number}?", temperature=0.0, max_new_tokens=12), answer_start=f"Number {number} is")
        for number in range(20)
    ]

    async def answers() -> tuple[list[str], list[str]]:
        local = open_local_engine(folder)
        with served(folder, port) as endpoint:
            server = await open_openai_engine(
                endpoint,
                tokenizer=load_tokenizer(folder),
                model_folder=folder,
                model_name=str(folder),
                max_concurrent=4,
                first_answer_s=120,
                continues=True,
            )
            both = [await asyncio.gather(*map(engine.complete, begun)) for engine in (local, server)]
            await server.aclose()
        await local.aclose()
        here, there = ([answer.text for answer in some] for some in both)
        return here, there

    here, there = asyncio.run(answers())
    assert sum(one == other for one, other in zip(here, there, strict=True)) >= 19
    assert len(set(here)) > 10
