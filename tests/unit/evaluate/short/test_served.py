"""Short tasks asked of a server that gives log-probabilities, and of servers that do not."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.mirror import Mirror
from megatron_longpo.evaluate.short.engines import served_short_model
from megatron_longpo.evaluate.short.tasks import ShortModel
from tests.unit.evaluate.short.sets import (
    CONTEXT,
    local,
    run,
)


def completion(model: Any, body: dict[str, Any], kind: str) -> dict[str, Any]:
    """What vLLM answers to a request of lm-eval's; or what other servers do."""
    ids = body["prompt"][0] if isinstance(body["prompt"][0], list) else body["prompt"]
    assert body["max_tokens"] == 1 and body["echo"] and body["logprobs"] == 1
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    best, greedy = (part.tolist() for part in logp.max(-1))
    tokens = [*ids, greedy[-1]]
    own = [None, *(float(logp[place, tokens[place + 1]]) for place in range(len(ids)))]
    top = [None, *({f"token_id:{token}": value} for token, value in zip(greedy, best, strict=True))]
    shown = 1 if kind == "no echo" else len(tokens)
    logprobs = {"token_logprobs": own[-shown:], "top_logprobs": top[-shown:]}
    return {"choices": [{"index": 0, "text": "", "logprobs": None if kind == "no logprobs" else logprobs}]}


@contextmanager
def server(model: Any, kind: str = "") -> Iterator[tuple[str, list[list[int]]]]:
    """(endpoint, prompts that came in)."""
    prompts: list[list[int]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                prompts.append(body["prompt"][0])
                answer = {"detail": "Not Found"} if kind == "chat only" else completion(model, body, kind)
            data = json.dumps(answer).encode()
            self.send_response(404 if kind == "chat only" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1", prompts
    http.shutdown()
    http.server_close()


def served(endpoint: str, tokenizer: Any, context_limit: int = CONTEXT) -> ShortModel:
    return served_short_model(
        endpoint, "tiny", tokenizer, context_limit=context_limit, num_concurrent=3, timeout_s=20
    )  # fmt: skip


def test_a_server_gives_what_the_model_gives(
    model: Any, with_bos: Any, mirror: Mirror, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with server(model) as (endpoint, prompts):
        found = run(served(endpoint, with_bos), "arc_challenge", mirror, tmp_path / "served", limit=5)
    assert capfd.readouterr() == ("", "")
    assert len(prompts) == 1 + 5 * 4
    assert {tuple(ids[:1]) for ids in prompts} == {(with_bos.bos_token_id,)}
    assert all(ids.count(with_bos.bos_token_id) == 1 for ids in prompts)
    expected = run(local(model, with_bos), "arc_challenge", mirror, tmp_path / "local", limit=5)
    assert replace(found, lm_eval_samples={}) == replace(expected, lm_eval_samples={})
    for ours, theirs in zip(*(one.lm_eval_samples["arc_challenge"] for one in (found, expected)), strict=True):
        logps = [[logp for logp, _ in row["filtered_resps"]] for row in (ours, theirs)]
        assert logps[0] == pytest.approx(logps[1], abs=1e-3)  # fp32, sums of a few tokens


def test_a_server_is_sent_no_more_than_it_takes(model: Any, plain: Any, mirror: Mirror, tmp_path: Path) -> None:
    with server(model) as (endpoint, prompts):
        found = run(served(endpoint, plain, context_limit=100), "arc_challenge", mirror, tmp_path / "kept", limit=2)
    assert max(map(len, prompts)) == 99  # and one new
    assert found.num_truncated == 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("chat only", r"it answers 404: \{\"detail\": \"Not Found\"\}"),
        ("no echo", r"1 log-probabilities for a prompt of \d+ tokens and one new"),
        ("no logprobs", "TypeError"),
    ],
)
def test_servers_without_log_probabilities_are_refused(model: Any, plain: Any, kind: str, reason: str) -> None:
    with server(model, kind) as (endpoint, prompts), pytest.raises(UserError, match=reason) as error:
        served(endpoint, plain)
    assert len(prompts) == 1
    assert "serve it with vLLM" in str(error.value) and "\n" not in str(error.value)


def test_a_server_that_is_gone(model: Any, plain: Any, mirror: Mirror, tmp_path: Path) -> None:
    with server(model) as (endpoint, _):
        before = served(endpoint, plain)
    with pytest.raises(UserError, match="no server answers"):
        served(endpoint, plain)
    before.lm.max_retries = 1
    with pytest.raises(UserError, match=r"the server failed .* give the same command again"):
        run(before, "winogrande", mirror, tmp_path / "kept", limit=1)
