"""Ask a server until it answers: what is tried again, how long, and what is said in the end.

The package ``openai`` retries too, but it counts tries where a user thinks in minutes, and it does not retry an answer
whose body is cut or is no JSON; so its own retries are off and all of it is here.
"""

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_longpo.errors import UserError
from megatron_longpo.strict_json import is_array, is_object

if TYPE_CHECKING:
    import openai

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 10.0
"""A server that comes back is noticed within this time."""
RETRIED_STATUSES = {408, 409, 425, 429}
"""Time-out, conflict, too early, too many requests; and everything from 500 on."""
CONTEXT_WORDS = ("context", "too long", "maximum", "max_tokens", "max_model_len")
"""What servers say of a prompt that does not fit."""


class BrokenAnswerError(Exception):
    """An answer that no server should give, and that the next try may mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server is waited for."""

    request_timeout_s: float
    """Limit for one try, from the connection to the last byte."""
    retry_for_s: float
    """Time from the first failure of a request to the start of its last try."""


async def ask_until_answered[T](endpoint: str, patience: Patience, attempt: Callable[[], Awaitable[T]]) -> T:
    """The result of the first ``attempt`` that succeeds, each after a longer wait, with jitter or as the server asks.

    Args:
        attempt: sends the request; raises what the package ``openai`` raises, or BrokenAnswerError.

    Raises:
        UserError: the server refuses the request for good, or is still failing when the patience ends.
    """
    import openai

    num_failures, first_failure_s = 0, 0.0
    while True:
        try:
            async with asyncio.timeout(patience.request_timeout_s):
                return await attempt()
        except (openai.OpenAIError, BrokenAnswerError, TimeoutError) as error:
            reason = _reason_to_retry(endpoint, error, patience)
            asked_for_s = _retry_after_s(error)
        now_s = time.monotonic()
        first_failure_s = first_failure_s or now_s
        delay_s = _delay_s(num_failures, asked_for_s)
        num_failures += 1
        if now_s + delay_s > first_failure_s + patience.retry_for_s:
            waiting = f"; the server asks to wait {asked_for_s:.0f} s" if asked_for_s else ""
            raise UserError(
                f"{endpoint}: {reason} ({num_failures} tries in {now_s - first_failure_s:.0f} s{waiting}); see that the"
                " server runs and is not overloaded, or wait longer with --retry-for"
            )
        await asyncio.sleep(delay_s)


def read_object(body: bytes, what: str, holding: str) -> dict[str, Any]:
    """The JSON object in a server's answer, which may be anything; the package would pass on what is none.

    Args:
        body: the bytes as they came. JSON is UTF-8, whatever the header says of its character set.
        what: the object's kind, for the message.
        holding: the name of a list that it must have.

    Raises:
        BrokenAnswerError: it is not whole JSON (NaN and Infinity are none), or no such object.
    """
    shown = " ".join(body[:400].decode("utf-8", "replace").split())[:80]
    try:
        fields: object = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BrokenAnswerError(f"the answer is not whole JSON ({shown!r})") from error
    if not is_object(fields) or not is_array(fields.get(holding)):
        raise BrokenAnswerError(f"the answer is no {what} ({shown!r})")
    return fields


def whole_number(value: object) -> int | None:
    """A positive number that a server gives, 12 or 12.0; None for everything else that it may say in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < 2**53:
        return None
    return int(value) if value == int(value) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _delay_s(num_failures: int, asked_for_s: float | None) -> float:
    """Doubles from try to try; the jitter keeps the requests that failed together from coming back together."""
    if asked_for_s:
        return asked_for_s * random.uniform(1, 1.1)
    return min(FIRST_DELAY_S * 2 ** min(num_failures, 10), LONGEST_DELAY_S) * random.uniform(0.75, 1)


def _reason_to_retry(endpoint: str, error: Exception, patience: Patience) -> str:
    """What failed, in a few words; raises UserError if the next try would fail too."""
    import openai

    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return f"no answer within {patience.request_timeout_s:g} s (--request-timeout)"
    if isinstance(error, openai.APIConnectionError):
        return f"no connection ({_words(error.__cause__ or error)})"
    if isinstance(error, openai.APIStatusError):
        out_of_money = error.code == "insufficient_quota"  # a 429 that no waiting mends
        if (error.status_code in RETRIED_STATUSES or error.status_code >= 500) and not out_of_money:
            return f"the server answers {error.status_code} ({_words(error)})"
        raise UserError(_refusal(endpoint, error)) from error
    return _words(error)


def _refusal(endpoint: str, error: "openai.APIStatusError") -> str:
    said = f"{error.status_code}: {_words(error)}"
    if error.status_code in (401, 403):
        return f"{endpoint}: the server does not let us in ({said}); set OPENAI_API_KEY to its key"
    if error.status_code == 404:
        return (
            f"{endpoint}: no such model or path ({said}); the endpoint usually ends in /v1, and --model-name has to be"
            " one of the names the server lists"
        )
    if error.status_code in (400, 413, 422) and any(word in said.lower() for word in CONTEXT_WORDS):
        return (
            f"{endpoint}: the server refuses the request ({said}); if its context is smaller than the model's, say so"
            " with --context-limit"
        )
    return f"{endpoint}: the server refuses the request ({said}); check --model-name and the server's log"


def _retry_after_s(error: Exception) -> float | None:
    """Seconds that the server asks to wait, from the header Retry-After: a number, or a date."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return None
    value = error.response.headers.get("retry-after", "")
    try:
        seconds = float(value)
        return max(0.0, seconds) if seconds == seconds else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _words(error: BaseException) -> str:
    """A server's own words, whatever their form, or what the exception says; on one line."""
    import openai

    said = error.response.text if isinstance(error, openai.APIStatusError) else str(error)
    return " ".join((said or type(error).__name__).split())[:200]
