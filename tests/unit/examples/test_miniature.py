"""examples/miniature: one right answer to every question, one way to write a conversation, and the committed base."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from examples.miniature import evaluate, make_texts, pretrain
from examples.miniature.model import ASSISTANT, BOS, END, LENGTH, USER, encode, new_tokenizer
from examples.miniature.run import BASE
from examples.miniature.task import KINDS, RELATIONS, SKILLS, VOCABULARY, Fact, Text, ask, ask_skill, make_text


def texts(number: int = 40, num_tokens: int = 240) -> list[Text]:
    draw = random.Random(0)
    return [make_text(draw, num_tokens) for _ in range(number)]


def answer_by_reading(text: str, question: str) -> list[str]:
    """All answers that the lines of a text allow."""
    stated = [line.rstrip(".").split() for line in text.splitlines()]
    facts = [Fact(words[0], words[1], " ".join(words[2:])) for words in stated if words[0] in RELATIONS]
    words = question.split()
    first, second = ([fact for fact in facts if [fact.relation, fact.name] == words[at : at + 2]] for at in (1, 4))
    if len(words) == 3:
        return [fact.thing for fact in first]
    return [f"{one.name} {one.thing} {other.name} {other.thing}" for one in first for other in second]


def test_every_question_has_one_answer_and_reading_gives_it() -> None:
    draw = random.Random(1)
    for text in texts():
        for kind in KINDS:
            question = ask(draw, text.facts, kind)
            assert question.kind == kind
            assert answer_by_reading(str(text), question.text) == [question.answer]
            assert all(fact in text.facts for fact in question.evidence)


def test_texts_are_as_long_as_asked_and_facts_stand_everywhere_in_them() -> None:
    lengths = [sum(map(len, map(str.split, text.lines))) for text in texts()]
    assert max(lengths) <= 240
    assert min(lengths) > 230
    places = [text.lines.index(fact.line) / len(text.lines) for text in texts(200) for fact in text.facts]
    assert all(
        abs(sum(start <= place < start + 0.2 for place in places) / len(places) - 0.2) < 0.03
        for start in (0, 0.2, 0.4, 0.6, 0.8)
    )


def test_no_skill_is_in_a_long_text() -> None:
    draw = random.Random(2)
    skills = [ask_skill(draw, kind) for kind in SKILLS for _ in range(50)]
    assert all(
        not set(question.text.split()[:1]) & set(re.findall(r"\w+", str(text)))
        for question in skills
        for text in texts()
    )


def test_a_conversation_is_written_as_it_was_taught() -> None:
    tokenizer, text = new_tokenizer(), texts(1, 40)[0]
    messages = [{"role": "user", "content": f"{text}\n\nwhat owns Bruno"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    words = [word for line in text.lines for word in encode(line)]
    assert prompt == [BOS, USER, *words, *encode("what owns Bruno"), ASSISTANT]
    messages += [{"role": "assistant", "content": "Alice"}, {"role": "user", "content": "what owns Alice"}]
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    assert whole == [*prompt, *encode("Alice"), END, USER, *encode("what owns Alice")]
    assert len(tokenizer) == len(VOCABULARY)
    assert AutoTokenizer.from_pretrained(BASE).get_vocab() == tokenizer.get_vocab()


def test_questions_to_generate_have_their_evidence_in_the_text() -> None:
    draw = random.Random(3)
    for number, text in enumerate(texts(5)):
        lines = make_texts.questions_on(draw, f"text-{number}", text)
        assert len({line["question"] for line in lines}) == len(lines) > make_texts.PER_KIND
        for line in lines:
            evidence = line["evidence"]
            assert isinstance(evidence, list)
            assert all(stretch in str(text).splitlines() for stretch in evidence)


def test_right_is_what_greedy_decoding_writes() -> None:
    model, draw = evaluate.load(BASE), random.Random(4)
    for text in texts(6, 100):  # longer than it knows: right and wrong answers
        questions = [ask(draw, text.facts, kind) for kind in KINDS for _ in range(3)]
        found = evaluate.are_right(model, text, questions)
        assert [
            answer == one.answer
            for answer, one in zip(evaluate.answers_to(model, text, questions), questions, strict=True)
        ] == found
    question = ask_skill(draw, "reverse")
    prompt = torch.tensor([[BOS, USER, *encode(question.text), ASSISTANT]])
    written = model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :].tolist()
    assert evaluate.are_right(model, None, [question]) == [written == [*encode(question.answer), END]]


def test_the_base_knows_its_length_and_is_lost_at_four_times_it() -> None:
    assert (BASE / "model.safetensors").stat().st_size < 2_000_000
    model = evaluate.load(BASE)
    short = evaluate.accuracy(model, evaluate.make_exam(5, 1))
    assert all(short[kind] >= 0.95 for kind in KINDS), short
    assert evaluate.accuracy(model, evaluate.make_exam(5, 4))["all"] < 0.15
    assert evaluate.accuracy(model, evaluate.make_skill_exam(5))["all"] > 0.98


def test_pretraining_again_begins_as_it_did() -> None:
    record = json.loads((BASE / "pretraining.json").read_text())
    torch.set_num_threads(1)
    run = pretrain.Pretraining(record["seed"], record["steps"])
    assert [run.one_step() for _ in range(3)] == pytest.approx(record["first_losses"][:3], rel=1e-4)


def test_a_killed_pretraining_goes_on(tmp_path: Path) -> None:
    whole = pretrain.Pretraining(1, 8)
    losses = [whole.one_step() for _ in range(4)]
    begun = pretrain.Pretraining(1, 8)
    for _ in range(2):
        begun.one_step()
    begun.save(tmp_path / "state.pt")
    resumed = pretrain.Pretraining(1, 8)
    resumed.load(tmp_path / "state.pt")
    assert [resumed.one_step() for _ in range(2)] == pytest.approx(losses[2:], rel=1e-6)
    other = pretrain.Pretraining(2, 8)
    other.load(tmp_path / "state.pt")
    assert other.step == 0


def test_sequences_fit_and_mark_the_answers() -> None:
    draw = random.Random(6)
    for _ in range(300):
        ids, is_answer = pretrain.sample(draw, 1.0)
        assert len(ids) == len(is_answer) <= LENGTH
        assert all(
            ids[place + 1] != ids[place] for place, marked in enumerate(is_answer[:-1]) if marked and ids[place] == END
        )
