"""A real OpenAI-compatible server that is given the answers: PORT TOKENIZER-FOLDER ANSWERS-FILE SECONDS LOG

ANSWERS-FILE holds JSON lines of a prompt's text and what to answer; LOG gets a line for every answer that was given.
Like `transformers serve`, it refuses fields that it does not know.
"""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from megatron_longpo.data.tokenizer import load_tokenizer

MODEL = "all-knowing"
KNOWN = {"model", "prompt", "max_tokens", "stop", "frequency_penalty", "temperature", "top_p", "seed"}
STARTUP_S = 90.0


def application(folder: Path, answers: Path, delay_s: float, log: Path) -> FastAPI:
    """Models, completions; chats only to count tokens."""
    tokenizer = load_tokenizer(folder)
    known = [json.loads(line) for line in answers.read_text().splitlines()]
    app = FastAPI()

    def counted(ids: list[int], answer: str, **choice: Any) -> dict[str, Any]:
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(tokenizer(answer).input_ids), "total_tokens": 0}
        return {"id": "1", "created": 1, "model": MODEL, "usage": usage, "choices": [{"index": 0, **choice}]}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]}

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> Any:
        if body["model"] != MODEL:
            return JSONResponse({"error": {"message": f"no model {body['model']}"}}, status_code=404)
        ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        message = {"role": "assistant", "content": "-"}
        return counted(ids, "-", message=message, finish_reason="stop")

    @app.post("/v1/completions")
    async def complete(body: dict[str, Any]) -> Any:
        if unknown := body.keys() - KNOWN:
            return JSONResponse({"error": {"message": f"unexpected {unknown}"}}, status_code=422)
        await asyncio.sleep(delay_s)
        answer = next((one["answer"] for one in known if one["text"] in body["prompt"]), "nothing")
        with log.open("a") as file:
            file.write(answer + "\n")
        ids = tokenizer(body["prompt"], add_special_tokens=True).input_ids
        return counted(ids, answer, text=answer, finish_reason="stop")

    return app


@contextmanager
def answering(
    port: int, folder: Path, answers: Mapping[str, str], workspace: Path, delay_s: float = 0.0
) -> Iterator[str]:
    """Run the server while the block runs; yields its endpoint. What it answered is in WORKSPACE/log."""
    file = workspace / "answers.jsonl"
    file.write_text("".join(json.dumps({"text": text, "answer": one}) + "\n" for text, one in answers.items()))
    words = [str(port), str(folder), str(file), str(delay_s), str(workspace / "log")]
    process = subprocess.Popen([sys.executable, "-m", "tests.unit.evaluate.answer_server", *words])
    try:
        deadline = time.monotonic() + STARTUP_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the server does not come up"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    import uvicorn

    port, folder, answers, delay, log = sys.argv[1:]
    app = application(Path(folder), Path(answers), float(delay), Path(log))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
