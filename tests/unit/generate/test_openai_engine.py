"""The engine against servers on loopback that fail on purpose: survived, or one clear line."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.engines.openai_engine import OpenAIEngine, open_openai_engine
from megatron_longpo.generate.engines.prompt_length import prompt_tokens
from megatron_longpo.generate.engines.server_check import PROBE, TOLERANCE
from tests.unit.generate.bad_server import BadServer, Behaviour, chat_answer, response, serving
from tests.unit.generate.chat_models import ask

REQUEST = ask("What is it?", seed=11, temperature=0.5, top_p=0.8, max_new_tokens=7)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folders: dict[str, Path]) -> Any:
    return load_tokenizer(tokenizer_folders["chatml"])


@pytest.fixture(scope="module")
def probe_answer(tokenizer: Any) -> bytes:
    """What a server with the same tokenizer says to the first request."""
    return response(chat_answer("x", prompt_tokens(tokenizer, [{"role": "user", "content": PROBE}])))


GOOD = response(chat_answer("It is.", 9))
EXPECTED = Completion(text="It is.", finish="stop", num_prompt_tokens=9, num_new_tokens=3)


def run(
    tokenizer: Any,
    *script: Behaviour | bytes,
    use: Callable[[OpenAIEngine], Awaitable[Any]] = lambda engine: engine.complete(REQUEST),
    models: bytes | None = None,
    **options: Any,
) -> tuple[Any, BadServer]:
    """Open the engine on a server that does as ``script`` says, use it, and close it."""

    async def with_server() -> tuple[Any, BadServer]:
        async with serving(*script, models=models) as server:
            values = {"request_timeout_s": 1.0, "retry_for_s": 20.0, "first_answer_s": 0.1} | options
            engine = await open_openai_engine(server.endpoint, tokenizer=tokenizer, **values)
            try:
                return await use(engine), server
            finally:
                await engine.aclose()

    return asyncio.run(with_server())


def test_a_request_says_all_that_decides_its_answer(tokenizer: Any, probe_answer: bytes) -> None:
    answer, server = run(tokenizer, probe_answer, GOOD)
    assert answer == EXPECTED
    assert server.bodies[1] == {
        "model": "small",
        "messages": [{"role": "user", "content": "What is it?"}],
        "temperature": 0.5,
        "top_p": 0.8,
        "max_tokens": 7,
        "seed": 11,
    }


def test_a_server_that_ignores_the_temperature_is_refused(tokenizer: Any, probe_answer: bytes) -> None:
    with pytest.raises(UserError, match=r"small answers the same to three seeds at temperature 1 \('It is.'\), so it"):
        run(tokenizer, probe_answer, GOOD, draws=True)


def test_a_server_that_draws_is_not(tokenizer: Any, probe_answer: bytes) -> None:
    failed, others = response({"choices": []}), [response(chat_answer(text, 9)) for text in ("Axe, sea", "Axe, sky")]
    answer, server = run(tokenizer, probe_answer, failed, *others, others[0], GOOD, draws=True, first_answer_s=20.0)
    assert answer == EXPECTED
    probes = server.bodies[1:-1]
    assert {body["seed"] for body in probes} == {0, 1, 2} and {body["temperature"] for body in probes} == {1}


HALF = GOOD[: len(GOOD) // 2]
CHUNKED = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{"id": "1",'


@pytest.mark.parametrize(
    "failures",
    [
        [response({"error": {"message": "busy"}}, 500)] * 2,
        [response(b"<html>Bad gateway</html>", 502, "text/html")],
        [response({"error": {"message": "slow down"}}, 429, headers="Retry-After: 1\r\n")],
        [response({"error": {"message": "conflict"}}, 409)],
        [Behaviour(GOOD, after_s=30)],  # hangs for longer than the time-out
        [Behaviour(HALF, cut=True)],
        [Behaviour(CHUNKED, cut=True)],
        [Behaviour(b"", cut=True)],  # the connection is reset
        [response(b'{"choices": [{"ind')],  # whole for HTTP, cut for JSON
        [response(b"<html>It works!</html>", content_type="text/html")],
        [response([])],
        [response({"choices": []})],
        [response({"choices": None})],
        [response(chat_answer("It i", 9, finish=None))],
        [response(chat_answer("It i", 9, finish=["stop"]))],
        [response({"choices": [{"message": None, "finish_reason": "stop"}]})],
        [response({"choices": [{"message": "It is.", "finish_reason": "stop"}]})],
        [response({"choices": [{"finish_reason": "stop"}]})],
        [response({"error": {"message": "busy"}})],
        *(
            [response(chat_answer(content, 9))]
            for content in (12, True, {"text": "It is."}, ["It is."], [{"type": "image"}])
        ),
        [response(json.dumps(chat_answer("It", 9)).replace("9", "NaN").encode())],
        [response(json.dumps(chat_answer("It", 9)).replace("It", "\xe9").encode("latin-1"))],
        [response(b"[" * 100_000)],
        [response(chat_answer("It i", 9, finish="abort"))],
    ],
    ids=lambda failures: re.sub(r"\W+", "-", str(failures[0]))[-40:],
)
def test_what_may_pass_is_tried_again(tokenizer: Any, probe_answer: bytes, failures: list[Any]) -> None:
    answer, server = run(tokenizer, probe_answer, *failures, GOOD)
    assert answer == EXPECTED
    assert len(server.bodies) == 1 + len(failures) + 1
    assert server.bodies[1] == server.bodies[-1]


def test_the_server_says_how_long_to_wait(tokenizer: Any, probe_answer: bytes) -> None:
    start = time.monotonic()
    run(tokenizer, probe_answer, response({}, 429, headers="Retry-After: 2\r\n"), GOOD)
    assert time.monotonic() - start > 2


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (
            response({"error": {"message": "busy"}}, 500),
            r"the server answers 500 \(.*busy.*\) \(\d tries in \d s\); see",
        ),
        (Behaviour(GOOD, after_s=30), r"no answer within 0.2 s \(--request-timeout\) \(\d tries"),
        (Behaviour(HALF, cut=True), r"no connection \(peer closed connection without sending complete message"),
        (response(b"{"), r"the answer is not whole JSON"),
        (response(b"Hello", content_type="text/plain"), r"the answer is not whole JSON \('Hello'\)"),
        (response({}, 503, headers="Retry-After: 900\r\n"), r"\(1 tries in 0 s; the server asks to wait 900 s\)"),
    ],
)
def test_what_does_not_pass_is_one_line_in_the_end(
    tokenizer: Any, probe_answer: bytes, failure: Any, line: str
) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"^http://127.0.0.1:\d+/v1: .*{line}") as caught:
        run(tokenizer, probe_answer, failure, request_timeout_s=0.2, retry_for_s=1.0)
    assert "\n" not in str(caught.value)
    assert "--retry-for" in str(caught.value)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (
            response({"error": {"message": "maximum context length is 512"}}, 400),
            "refuses the request .*--context-limit",
        ),
        (response({"detail": "Server is pinned"}, 400), "refuses the request .*Server is pinned.*--model-name"),
        (response({"error": {"message": "no such field"}}, 422), "refuses the request .*no such field"),
        (response({"error": {"message": "no key"}}, 401), "does not let us in .*OPENAI_API_KEY"),
        (response({"error": {"message": "who?"}}, 404), "no such model or path .*/v1"),
        (response({"error": {"message": "pay", "code": "insufficient_quota"}}, 429), "refuses the request .*pay"),
        (response(chat_answer("", 9, finish="tool_calls")), "calls a tool in place of an answer"),
        (response(chat_answer(None, 9, tool_calls=[{"id": "1"}])), "calls a tool in place of an answer"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(tokenizer: Any, probe_answer: bytes, failure: bytes, line: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=line):
        run(tokenizer, probe_answer, failure, GOOD)
    assert time.monotonic() - start < 5


def test_a_server_that_goes_and_comes_back_is_waited_for(tokenizer: Any, probe_answer: bytes) -> None:
    async def restart() -> list[Completion]:
        async with serving(probe_answer, Behaviour(GOOD, after_s=60)) as first:
            engine = await open_openai_engine(first.endpoint, tokenizer=tokenizer, retry_for_s=30)
            asked = [asyncio.create_task(engine.complete(ask("What is it?", seed))) for seed in range(5)]
            async with asyncio.timeout(20):
                while first.num_open < 5:
                    await asyncio.sleep(0.01)
        await asyncio.sleep(1)  # nobody listens
        async with serving(GOOD, port=first.port) as second:
            answers = await asyncio.gather(*asked)
            assert sorted(body["seed"] for body in second.bodies) == [0, 1, 2, 3, 4]
        await engine.aclose()
        return answers

    assert asyncio.run(restart()) == [EXPECTED] * 5


def test_concurrency_is_bounded_and_order_is_kept(tokenizer: Any, probe_answer: bytes) -> None:
    requests = [ask("What is it?", seed) for seed in range(12)]

    async def ask_all(engine: OpenAIEngine) -> Any:
        assert engine.num_concurrent == 3
        return await asyncio.gather(*(engine.complete(request) for request in requests))

    answers, server = run(tokenizer, probe_answer, Behaviour(GOOD, after_s=0.05), use=ask_all, max_concurrent=3)
    assert answers == [EXPECTED] * 12
    assert server.most_open == 3
    seeds = [body["seed"] for body in server.bodies[1:]]
    assert all(abs(seed - index) < 3 for index, seed in enumerate(seeds))


def test_cancelling_is_quick_and_closes_the_connections(tokenizer: Any, probe_answer: bytes) -> None:
    async def cancel(engine: OpenAIEngine) -> float:
        asked = [asyncio.create_task(engine.complete(REQUEST)) for _ in range(3)]
        await asyncio.sleep(0.3)
        start = time.monotonic()
        for task in asked:
            task.cancel()
        assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*asked, return_exceptions=True))
        await engine.aclose()
        return time.monotonic() - start

    # One hangs, one is between two tries, one hangs too.
    script = [probe_answer, Behaviour(GOOD, after_s=60), response({}, 503, headers="Retry-After: 15\r\n")]
    elapsed, _ = run(tokenizer, *script, Behaviour(GOOD, after_s=60), use=cancel, request_timeout_s=30)
    assert elapsed < 1


def test_an_answer_that_a_filter_withheld_counts_as_cut(tokenizer: Any, probe_answer: bytes) -> None:
    answer, _ = run(tokenizer, probe_answer, response(chat_answer("It", 9, finish="content_filter")))
    assert (answer.text, answer.finish) == ("It", "length")


def test_a_server_that_counts_nothing_is_told_of_and_counted_for(tokenizer: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        answer, _ = run(tokenizer, response(chat_answer("It is.", None)))
    assert "could not be checked" in caplog.text
    assert answer.num_prompt_tokens == prompt_tokens(tokenizer, REQUEST.messages)
    assert answer.num_new_tokens == len(tokenizer.encode("It is."))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (chat_answer("It is.", 9, reasoning_content="Well"), "It is."),
        (chat_answer("It is.", 9, reasoning="Well", refusal=None, tool_calls=[]), "It is."),
        (chat_answer([{"type": "thinking", "thinking": []}, {"type": "text", "text": "It is."}], 9), "It is."),
        (chat_answer(None, 9, reasoning_content="Well"), ""),
        (chat_answer(None, 9, refusal="I can't"), ""),
        (chat_answer("It is \ud83d", 9), "It is \ud83d"),
        (chat_answer("It is.", 9) | {"model": "another"}, "It is."),
        *(
            (chat_answer("It is.", 9) | {"usage": usage}, "It is.")
            for usage in (None, [], "12", {"prompt_tokens": "9"})
        ),
        (chat_answer("It is \udead", 9) | {"usage": {"completion_tokens": -3}}, "It is \udead"),
        (chat_answer("It is.", 9) | {"usage": {"prompt_tokens": True, "completion_tokens": 1e400}}, "It is."),
    ],
)
def test_odd_answers_that_are_answers(tokenizer: Any, probe_answer: bytes, answer: Any, text: str) -> None:
    """Thoughts kept apart, no content, half of a surrogate pair, another model's name, counts of the wrong type."""
    content = json.dumps(answer).replace("Infinity", "1e400").encode()
    found, _ = run(tokenizer, probe_answer, response(content))
    assert found.text == text
    counts = (
        prompt_tokens(tokenizer, REQUEST.messages),
        len(tokenizer.encode(text.encode("utf-8", "replace").decode())),
    )
    assert (found.num_prompt_tokens, found.num_new_tokens) in ((9, 3), (9, counts[1]), counts)


def test_counts_of_tokens_may_be_floats(tokenizer: Any, probe_answer: bytes) -> None:
    usage = {"usage": {"prompt_tokens": 123.0, "completion_tokens": 45.0}}
    answer, _ = run(tokenizer, probe_answer, response(chat_answer("It is.", 9) | usage))
    assert (answer.num_prompt_tokens, answer.num_new_tokens) == (123, 45)


def test_another_models_name_in_the_answer_is_told(tokenizer: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        run(tokenizer, response(chat_answer("It is.", None) | {"model": "large"}), GOOD)
    assert "asked for the model small, the server says that 'large' answers" in caplog.text


def test_another_tokenizer_is_refused(tokenizer: Any) -> None:
    ours = prompt_tokens(tokenizer, [{"role": "user", "content": PROBE}])
    run(tokenizer, response(chat_answer("x", ours + TOLERANCE)))
    with pytest.raises(UserError, match=rf"small counts {ours + 9} tokens where the given tokenizer .* count {ours};"):
        run(tokenizer, response(chat_answer("x", ours + TOLERANCE + 1)))


def models(*names: str, **fields: Any) -> bytes:
    return response({"object": "list", "data": [{"id": name, "object": "model", **fields} for name in names]})


def test_the_model_is_chosen_or_named(tokenizer: Any, probe_answer: bytes) -> None:
    _, server = run(tokenizer, probe_answer, GOOD, models=models("a", "b", max_model_len=99), model_name="b")
    assert server.bodies[0]["model"] == "b"
    # `transformers serve` lists no model that lies in a folder.
    _, server = run(tokenizer, probe_answer, GOOD, models=models(), model_name="/models/mine", context_limit=99)
    assert server.bodies[0]["model"] == "/models/mine"
    # On a machine without a Hugging Face cache it cannot even list none.
    broken = response({"detail": "CacheNotFound"}, 500)
    _, server = run(tokenizer, probe_answer, GOOD, models=broken, model_name="mine", context_limit=99)
    assert server.bodies[0]["model"] == "mine"
    with pytest.raises(UserError, match="the server answers 500"):
        run(tokenizer, probe_answer, GOOD, models=broken)
    with pytest.raises(UserError, match="lists the models a, b; say which with --model-name"):
        run(tokenizer, probe_answer, models=models("a", "b"))
    with pytest.raises(UserError, match="lists no model; say which with --model-name"):
        run(tokenizer, probe_answer, models=models())
    wrong = response({"error": {"message": "who?"}}, 404)
    with pytest.raises(UserError, match=r"no such model or path \(404: .*who.*lists the models a, b$"):
        run(tokenizer, wrong, models=models("a", "b"), model_name="c", context_limit=99)


def test_the_context_limit_comes_from_the_server_the_option_or_the_folder(
    tokenizer: Any, probe_answer: bytes, tmp_path: Path
) -> None:
    async def limits(engine: OpenAIEngine) -> Any:
        return engine.context_limits["long"]

    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4096}', encoding="utf-8")
    said, silent = models("a", max_model_len=2048), models("a")
    for listed, options, expected in [
        (said, {"context_limit": 8192, "model_folder": tmp_path}, 2048),
        (said, {"context_limit": 1024}, 1024),
        (silent, {"context_limit": 1024, "model_folder": tmp_path}, 1024),
        (silent, {"model_folder": tmp_path}, 4096),
    ]:
        assert run(tokenizer, probe_answer, use=limits, models=listed, **options)[0] == expected
    with pytest.raises(UserError, match="does not say how long its context is; say it with --context-limit"):
        run(tokenizer, probe_answer, models=silent)
    with pytest.raises(UserError, match=r"need a short context of \d+, and the model has 12;"):
        run(tokenizer, probe_answer, context_limit=12)


def test_endpoints_that_are_none(tokenizer: Any) -> None:
    for url in ("localhost:8000/v1", "http://", "http://[::1/v1", "http://127.0.0.1:99999/v1"):
        with pytest.raises(UserError, match=f"--endpoint {re.escape(url)}: not a URL"):
            asyncio.run(open_openai_engine(url, tokenizer=tokenizer, first_answer_s=0.1))
    with pytest.raises(UserError, match=r"no connection \(.*\) \(\d tries in \d s\); see that the server runs"):
        asyncio.run(open_openai_engine("http://127.0.0.1:9/v1", tokenizer=tokenizer, first_answer_s=0.1))
    with pytest.raises(
        UserError, match=r"not whole JSON \('<html>It works!</html>'\).*an endpoint looks like http://localhost:8000/v1"
    ):
        run(tokenizer, models=response(b"<html>It works!</html>", content_type="text/html"))
    with pytest.raises(UserError, match="no list of models"):
        run(tokenizer, models=response({"hello": "world"}))


def test_long_contexts_may_have_a_server_of_their_own(tokenizer: Any, probe_answer: bytes) -> None:
    async def both() -> None:
        async with serving(probe_answer, GOOD) as short, serving(probe_answer, GOOD, models=models("/x/long")) as long:
            engine = await open_openai_engine(
                short.endpoint, tokenizer=tokenizer, long_endpoint=long.endpoint, context_limit=999
            )
            await engine.complete(ask("Short?", 1))
            await engine.complete(ask("Long?", 2, context="long"))
            await engine.aclose()
            assert [body["seed"] for body in short.bodies[1:]] == [1]
            assert [(body["seed"], body["model"]) for body in long.bodies[1:]] == [(2, "/x/long")]
            assert {key: engine.identity[key] for key in ("engine", "model", "long_model")} == {
                "engine": "openai",
                "model": "small",
                "long_model": "long",
            }

    asyncio.run(both())
