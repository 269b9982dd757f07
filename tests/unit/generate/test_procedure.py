import asyncio
import re
from collections import Counter
from dataclasses import replace

from megatron_longpo.errors import TooLong
from megatron_longpo.generate.engine import Completion, Request
from megatron_longpo.generate.procedure import Outcome, make_pair, request_key
from megatron_longpo.generate.prompts import LEAD_INS
from megatron_longpo.generate.settings import Settings
from tests.unit.generate.model_by_rule import Answer, ModelByRule, is_asking, make_context

SETTINGS = Settings(num_turns=3, min_turns=3, no_filter=("language",))
CONTEXT = make_context(num_chunks=5)
CHUNKS = [CONTEXT.text[chunk.start : chunk.end].strip() for chunk in CONTEXT.chunks]


def run(special: Answer = lambda request: None, settings: Settings = SETTINGS) -> tuple[Outcome, list[Request]]:
    model = ModelByRule(special)
    outcome = asyncio.run(make_pair(CONTEXT, settings, model.complete, re.compile(r"<\|end\|>")))
    return outcome, model.requests


def chunk_of(request: Request) -> int:
    """Which chunk a short request shows."""
    (number,) = [number for number, chunk in enumerate(CHUNKS) if chunk in request.messages[0]["content"]]
    return number


def test_a_pair_of_chosen_from_the_chunk_and_rejected_from_the_document() -> None:
    outcome, requests = run()
    assert outcome.pair is not None
    assert outcome.pair["context"] == CONTEXT.text.strip()
    assert len(outcome.pair["turns"]) == outcome.turns == 3
    by_message = {request.messages[0]["content"]: request for request in requests}
    for turn, number in zip(outcome.pair["turns"], outcome.pair["meta"]["evidence_chunks"], strict=True):
        assert turn["short_context"] == CHUNKS[number]
        short = by_message[f"{CHUNKS[number]}\n\n{turn['instruction']}"]
        long = by_message[f"{CONTEXT.text.strip()}\n\n{turn['instruction']}"]
        assert (short.context, long.context) == ("short", "long")
        assert short.sampling == long.sampling == SETTINGS.answer
        answers = asyncio.run(_answers(short, long))
        assert (turn["chosen"], turn["rejected"]) == answers
    assert len(requests) == 3 * 3  # one list of questions and two answers a turn: the other chunks are not asked about


async def _answers(*requests: Request) -> tuple[str, ...]:
    model = ModelByRule()
    return tuple([(await model.complete(request)).text for request in requests])


def test_the_question_kept_is_one_of_the_list_after_a_lead_in() -> None:
    outcome, requests = run()
    assert outcome.pair is not None
    lists = {chunk_of(request): asyncio.run(_answers(request))[0] for request in requests if is_asking(request)}
    for turn, number in zip(outcome.pair["turns"], outcome.pair["meta"]["evidence_chunks"], strict=True):
        listed = [line.partition(". ")[2] for line in lists[number].splitlines()]
        assert turn["instruction"] in [lead_in.format(question=question) for lead_in in LEAD_INS for question in listed]


def test_the_same_seed_asks_the_same_and_another_seed_does_not() -> None:
    first, second, other = run()[1], run()[1], run(settings=replace(SETTINGS, seed=7))[1]
    keys = [{request_key(request) for request in requests} for requests in (first, second, other)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == len(first)  # no two requests under one key
    assert keys[0].isdisjoint(keys[2])


def test_a_chunk_that_fails_is_replaced_by_another() -> None:
    first_asked = run()[1][0]
    failing = chunk_of(first_asked)
    outcome, _ = run(lambda request: "No list." if is_asking(request) and chunk_of(request) == failing else None)
    assert outcome.pair is not None
    assert outcome.dropped == Counter({"malformed questions": 1})
    assert outcome.asked == 4
    assert failing not in outcome.pair["meta"]["evidence_chunks"]


def test_too_few_turns_give_no_pair_unless_fewer_are_wanted() -> None:
    good = {1, 3}

    def special(request: Request) -> str | None:
        return "No list." if is_asking(request) and chunk_of(request) not in good else None

    outcome, _ = run(special)
    assert (outcome.pair, outcome.turns, outcome.asked) == (None, 2, 5)
    outcome, _ = run(special, replace(SETTINGS, min_turns=1))
    assert outcome.pair is not None
    assert set(outcome.pair["meta"]["evidence_chunks"]) == good


def test_another_list_is_asked_for_with_another_seed() -> None:
    first = [request for request in run()[1] if is_asking(request)]
    seeds = {request.seed for request in first}

    def special(request: Request) -> str | None:
        return "No list." if request.seed in seeds else None

    settings = replace(SETTINGS, question_attempts=2)
    outcome, requests = run(special, settings)
    assert outcome.turns == 3
    assert not outcome.dropped
    assert sum(is_asking(request) for request in requests) == 6


def test_questions_that_tell_their_place_are_not_kept() -> None:
    listed = [
        "1. What does the first paragraph of this say about rivers?",
        "2. Why was the bridge built between the two old towns?",
        "3. What follows in the next section about granite?",
        "4. What is said at the beginning of the text about it?",
    ]
    outcome, _ = run(lambda request: "\n".join(listed) if is_asking(request) else None)
    assert outcome.pair is not None
    assert all("Why was the bridge built" in turn["instruction"] for turn in outcome.pair["turns"])
    none_left = "\n".join(
        [listed[0], listed[2].replace("3", "2"), listed[3].replace("4", "3"), "4. What is in this chunk?"]
    )
    outcome, _ = run(lambda request: none_left if is_asking(request) else None)
    assert outcome.dropped == Counter({"position": 5})


def test_control_tokens_end_a_document_or_a_turn() -> None:
    context = replace(CONTEXT, text=f"{CONTEXT.text}<|end|>")
    model = ModelByRule()
    outcome = asyncio.run(make_pair(context, SETTINGS, model.complete, re.compile(r"<\|end\|>")))
    assert (outcome.pair, outcome.dropped, model.requests) == (None, Counter({"control tokens": 1}), [])
    outcome, _ = run(lambda request: None if is_asking(request) else "An answer that ends in <|end|> itself.")
    assert outcome.dropped == Counter({"control tokens": 5})


def test_a_question_that_leaves_no_room_drops_its_turn_alone() -> None:
    def special(request: Request) -> str | None:
        if request.context == "long" and "Why was the bridge" in request.messages[0]["content"]:
            raise TooLong("a prompt of 9999 tokens")
        first = is_asking(request) and chunk_of(request) == 0
        return "\n".join(f"{number}. Why was the bridge {number} built?" for number in range(1, 5)) if first else None

    outcome, _ = run(special, replace(SETTINGS, num_turns=5, min_turns=4))
    assert outcome.dropped == Counter({"too long": 1})
    assert outcome.turns == 4


def test_thoughts_before_questions_and_answers_are_no_part_of_them() -> None:
    plain, _ = run()

    model = ModelByRule()

    async def complete(request: Request) -> Completion:
        answer = await model.complete(request)
        return replace(answer, text=f"<think>\n1. Is it so?\n</think>\n\n{answer.text}")

    outcome = asyncio.run(make_pair(CONTEXT, SETTINGS, complete, None))
    assert outcome.pair == plain.pair is not None


def test_a_question_with_half_a_surrogate_pair_is_not_asked() -> None:
    listed = "1. Why was it \ud83d built?\n2. Who lives in it now?\n3. What is made of it?\n4. When was it built?"
    outcome, requests = run(lambda request: listed if is_asking(request) else None)
    assert outcome.dropped == Counter({"malformed questions": 5})
    assert all(is_asking(request) for request in requests)
