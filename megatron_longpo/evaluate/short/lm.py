"""A model of lm-eval's kind that remembers what it answered.

Imports lm-eval's models: imported only where a short task runs. What is overridden is what lm-eval's `TemplateLM` asks
of every model (lm_eval/api/model.py, 0.4.13).
"""

import hashlib
import math
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import lm_eval
from lm_eval.api.model import TemplateLM

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.short.tasks import Answer, Request, ShortModel
from megatron_longpo.journal import Journal, journal_lines


class KeptAnswers(TemplateLM):
    """Hands requests on to a model, some at a time, and keeps the answers in a journal; a context manager.

    What is handed on together is the same in a run that goes on after a kill as in one that was left alone, and so, on
    the same machine, are the answers, to the bit.
    """

    def __init__(self, model: ShortModel, path: Path, on_progress: Callable[[int, int], None]) -> None:
        """Open the journal, or begin it.

        Raises:
            UserError: another process has it open, it is damaged, or it was begun with another context or lm-eval.
        """
        super().__init__()
        self._model, self._on_progress = model, on_progress
        self._journal = Journal(
            path, {"answers": "short tasks", "most_tokens": model.most_tokens, "lm_eval": lm_eval.__version__}
        )
        self._known: dict[str, Answer] = {
            key: (logp, greedy) for _, _, line in journal_lines(path) for key, logp, greedy in line.get("requests", ())
        }
        self.num_tokens: list[int] = []
        """Of every request, in the order in which they came."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.close()

    @property
    def eot_token_id(self) -> int:
        return self._model.lm.eot_token_id

    @property
    def prefix_token_id(self) -> int:
        return self._model.lm.prefix_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        return self._model.lm.tok_encode(string, add_special_tokens=add_special_tokens, **options)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[Answer]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Sequence[Request], **options: Any) -> list[Answer]:
        self.num_tokens = [len(prompt) + len(option) for _, prompt, option in requests]
        keys = [_key(request) for request in requests]
        waiting = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._known}
        todo = sorted(waiting.items(), key=lambda item: item[1][1:])  # neighbours share their beginning
        num_at_once, num_open = self._model.num_at_once, len(todo)
        self._on_progress(len(keys) - num_open, len(keys))
        for start in range(0, num_open, num_at_once):
            self._ask(todo[start : start + num_at_once])
            self._on_progress(len(keys) - max(num_open - start - num_at_once, 0), len(keys))
        return [self._known[key] for key in keys]

    def _ask(self, asked: Sequence[tuple[str, Request]]) -> None:
        for _, (_, _, option) in asked:
            if len(option) >= self._model.most_tokens:
                raise UserError(
                    f"an option of {len(option)} tokens does not fit into the model's context with a prompt (of both, "
                    f"{self._model.most_tokens} fit); this model cannot do the task"
                )
        answers = self._model.lm._loglikelihood_tokens([request for _, request in asked], disable_tqdm=True)
        if any(math.isnan(logp) for logp, _ in answers):
            raise UserError(
                "the model answers with log-probabilities that are no numbers (NaN); its weights are broken"
            )
        found = {key: (logp, greedy) for (key, _), (logp, greedy) in zip(asked, answers, strict=True)}
        self._journal.append({"kind": "answers", "requests": [[key, *answer] for key, answer in found.items()]})
        self._known |= found

    def loglikelihood_rolling(self, requests: Any) -> NoReturn:
        raise NotImplementedError

    def generate_until(self, requests: Any) -> NoReturn:
        raise NotImplementedError


def _key(request: Request) -> str:
    _, prompt, option = request
    return hashlib.sha256(array("q", [len(option), *prompt, *option]).tobytes()).hexdigest()[:24]
