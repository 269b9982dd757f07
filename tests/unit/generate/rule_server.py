"""`ModelByRule` behind HTTP, as a program: a real OpenAI-compatible server whose answers can be foreseen.

PORT TOKENIZER-FOLDER SECONDS (of delay a request, at most)
"""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.generate.engine import Request, Sampling
from megatron_longpo.generate.engines.prompt_length import prompt_tokens
from tests.unit.generate.model_by_rule import ModelByRule

MODEL = "rule"
CONTEXT = 4096
STARTUP_S = 60.0


def application(tokenizer_folder: Path, delay_s: float) -> FastAPI:
    """The server's two routes."""
    tokenizer = load_tokenizer(tokenizer_folder)
    model = ModelByRule(delay_s=delay_s)
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": CONTEXT}]}

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> Any:
        if body["model"] != MODEL:
            return JSONResponse({"error": {"message": f"The model {body['model']!r} does not exist."}}, status_code=404)
        # As in OpenAI's own, everything but the messages may be left out.
        sampling = Sampling(
            temperature=body.get("temperature", 1.0),
            top_p=body.get("top_p", 1.0),
            max_new_tokens=body.get("max_tokens", CONTEXT),
        )
        request = Request(
            messages=tuple(body["messages"]), sampling=sampling, seed=body.get("seed", 0), context="short"
        )
        answer = await model.complete(request)
        num_prompt, num_new = prompt_tokens(tokenizer, body["messages"]), len(tokenizer(answer.text)["input_ids"])
        message = {"role": "assistant", "content": answer.text}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish}],
            "usage": {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new},
        }

    return app


def start(port: int, tokenizer_folder: Path, delay_s: float = 0.0) -> subprocess.Popen[bytes]:
    """Start the program and wait until it answers."""
    command = [sys.executable, "-m", "tests.unit.generate.rule_server", str(port), str(tokenizer_folder), str(delay_s)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + STARTUP_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                return process
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.1)


@contextmanager
def serving(port: int, tokenizer_folder: Path, delay_s: float = 0.0) -> Iterator[str]:
    """Run the server while the block runs; yields its endpoint."""
    process = start(port, tokenizer_folder, delay_s)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    import uvicorn

    port, folder, delay = sys.argv[1:]
    uvicorn.run(application(Path(folder), float(delay)), host="127.0.0.1", port=int(port), log_level="warning")
