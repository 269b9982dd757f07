"""A server on loopback that speaks enough HTTP to answer chat completions, rightly or wrongly on purpose."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

MODELS = {"object": "list", "data": [{"id": "small", "object": "model", "max_model_len": 2048}]}


def response(body: object, status: int = 200, content_type: str = "application/json", headers: str = "") -> bytes:
    """A whole HTTP response; ``body`` as JSON, unless it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
    return (head + headers + "\r\n").encode() + content


def chat_answer(text: Any, num_prompt_tokens: int | None, finish: Any = "stop", **message: Any) -> dict[str, Any]:
    """What an OpenAI-compatible server says; without usage if the number is None."""
    message = {"role": "assistant", "content": text, **message}
    answer: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "small",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if num_prompt_tokens is not None:
        answer["usage"] = {"prompt_tokens": num_prompt_tokens, "completion_tokens": 3, "total_tokens": 0}
    return answer


@dataclass
class Behaviour:
    """One answer: bytes to send, after how long, and whether the connection is cut behind them."""

    content: bytes
    after_s: float = 0.0
    cut: bool = False


@dataclass
class BadServer:
    """Answers the chat requests in turn as ``script`` says, the last behaviour for ever."""

    script: list[Behaviour | bytes]
    models: bytes = field(default_factory=lambda: response(MODELS))
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of the chat requests received."""
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    num_open: int = 0
    most_open: int = 0
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                behaviour = await self._behaviour(head.decode(), reader)
                self.num_open += 1
                self.most_open = max(self.most_open, self.num_open)
                try:
                    await asyncio.sleep(behaviour.after_s)
                finally:
                    self.num_open -= 1
                writer.write(behaviour.content)
                await writer.drain()
                if behaviour.cut:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    async def _behaviour(self, head: str, reader: asyncio.StreamReader) -> Behaviour:
        if head.startswith("GET"):
            return Behaviour(self.models)
        length = next(line for line in head.lower().splitlines() if line.startswith("content-length:"))
        self.bodies.append(json.loads(await reader.readexactly(int(length.split(":")[1]))))
        chosen = self.script[min(len(self.bodies), len(self.script)) - 1]
        return chosen if isinstance(chosen, Behaviour) else Behaviour(chosen)


@asynccontextmanager
async def serving(*script: Behaviour | bytes, models: bytes | None = None, port: int = 0) -> AsyncIterator[BadServer]:
    """Run a server while the block runs, on a free port or a given one."""
    server = BadServer(list(script), **({} if models is None else {"models": models}))
    listener = await asyncio.start_server(server._serve, "127.0.0.1", port)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in list(server.connections):
            writer.close()


def good(texts: Sequence[str], num_prompt_tokens: int) -> list[bytes]:
    """One whole answer for each text."""
    return [response(chat_answer(text, num_prompt_tokens)) for text in texts]
