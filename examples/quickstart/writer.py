"""The model as the writer of the pairs: its questions about a chunk, its answers to them.

A 135M-parameter model asked plainly for a question writes about the question rather than asking it. Three things
make it usable: two worked examples, the first words of the question put into its mouth, and a check that every name
and number of the question stands in the chunk. Answers are greedy, without examples. The one from the short chunk
passes the same check of names and numbers and has to take up the fact that was asked for, since training moves the
model toward it; the one from the long document is taken as it comes.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from examples.quickstart.text import Chunk, split_sentences

Message = dict[str, str]
"""``{"role": "user" or "assistant", "content": str}``."""

EXAMPLES = (
    (
        "Namibia",
        'Origin of the name: named for the coastal Namib Desert; the name means "vast place"',
        "How did Namibia get its name from a desert?",
    ),
    (
        "Peru",
        "Climate: varies from tropical in east to dry desert in west; temperate to frigid in Andes",
        "Where in Peru is the climate tropical, and where is it dry?",
    ),
)
OPENINGS = {
    "Location": ("Where is {country}", "Which"),
    "Climate": ("What is the climate", "When is the climate of {country}", "Where in {country}"),
    "Terrain": ("What is the terrain", "Where in {country}"),
    "Natural resources": ("Which natural resources", "What resources"),
    "Origin of the name": ("How did {country}", "Why is {country}", "What does the name"),
    "Capital": ("What is the capital",),
    "Origin of the capital's name": ("How did the capital of {country}", "What does the name of the capital"),
    "Flag": ("What does the flag of {country}", "What do the colors", "Why does the flag of {country}"),
    "Population": ("Where do most people in {country}", "Why does {country}"),
}
"""A line's label -> first words of a question about it."""
COMMON_WORDS = frozenset((
    "about", "after", "also", "before", "between", "called", "country", "does", "from", "have", "into", "located",
    "made", "most", "much", "name", "named", "that", "their", "this", "what", "when", "where", "which", "with",
))  # fmt: skip
NUM_CANDIDATES = 4
MAX_QUESTION_TOKENS = 32
MAX_QUESTION_CHARACTERS = 120
MAX_ANSWER_TOKENS = 96
MIN_ANSWER_CHARACTERS = 20


@dataclass(frozen=True)
class Writer:
    """A loaded model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def prompt_ids(self, messages: list[Message], opening: str = "") -> torch.Tensor:
        """Token ids ``[1, T]`` of the conversation, the assistant's header and the answer's ``opening``."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert isinstance(text, str)
        ids = self.tokenizer(text + opening, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert isinstance(ids, torch.Tensor)
        return ids

    def questions(self, chunk: Chunk, rng: random.Random) -> tuple[str, list[str]]:
        """A line of the chunk and usable questions about it: one batch of candidates, often with none among them."""
        fact = rng.choice(chunk.lines)
        opening = rng.choice(OPENINGS[fact.split(":")[0]]).format(country=chunk.country)
        prompt = self.prompt_ids(_question_messages(chunk.country, fact), opening)
        settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "num_return_sequences": NUM_CANDIDATES}
        candidates = [opening + self._text(ids) for ids in self._generate(prompt, MAX_QUESTION_TOKENS, settings)]
        return fact, [question for question in dict.fromkeys(candidates) if is_usable_question(question, chunk)]

    def answer(self, messages: list[Message]) -> str | None:
        """The greedy answer, cut back to whole sentences if the token limit cut it; None if it is not prose."""
        (new_ids,) = self._generate(self.prompt_ids(messages), MAX_ANSWER_TOKENS, {"do_sample": False})
        sentences = split_sentences(self._text(new_ids).strip())
        if self.tokenizer.eos_token_id not in new_ids.tolist():
            sentences = sentences[:-1]
        text = " ".join(sentences)
        is_repetitive = len(set(sentences)) < len(sentences)
        is_prose = re.fullmatch(r"[A-Z][^\n]*[.!?]", text) and not text.startswith("The answer")
        return text if is_prose and not is_repetitive and len(text) >= MIN_ANSWER_CHARACTERS else None

    def _generate(self, prompt: torch.Tensor, num_tokens: int, settings: dict[str, bool | int | float]) -> torch.Tensor:
        """New token ids ``[sequences, T]`` after ``prompt``."""
        generate: Callable[..., torch.Tensor] = self.model.generate  # type: ignore[assignment]
        with torch.inference_mode():
            mask = torch.ones_like(prompt)
            output = generate(input_ids=prompt, attention_mask=mask, max_new_tokens=num_tokens, **settings)
        return output[:, prompt.shape[1] :]

    def _text(self, ids: torch.Tensor) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text


def load_writer(folder: Path) -> Writer:
    """The fp32 model and the tokenizer of the Hugging Face ``folder``."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Writer(model.eval(), AutoTokenizer.from_pretrained(folder))


def is_usable_question(question: str, chunk: Chunk) -> bool:
    """Whether it is one short question on the chunk's country whose names, numbers and main words the chunk has."""
    one_sentence = question.endswith("?") and len(split_sentences(question)) == 1 and "\n" not in question
    if not one_sentence or len(question) > MAX_QUESTION_CHARACTERS or chunk.country not in question:
        return False
    stems = main_stems(question.replace(chunk.country, " "))
    # One main word may be the question's own ("reason").
    num_found = sum(stem in chunk.text.lower() for stem in stems)
    return num_found >= max(1, len(stems) - 1) and has_only_names_of(chunk.text, question)


def is_evidence_of(fact: str, question: str, answer: str) -> bool:
    """Whether the answer takes up what the fact says beyond the question: two main words of it, or all there are."""
    new_stems = main_stems(fact) - main_stems(question)
    return len(new_stems & main_stems(answer)) >= min(2, max(1, len(new_stems)))


def main_stems(text: str) -> set[str]:
    """The words that carry the meaning, cut to five letters in lower case, so that "waived" meets "waive"."""
    words = re.findall(r"\w[\w'-]*", text.lower())
    return {word[:5] for word in words if len(word) > 3 and word not in COMMON_WORDS}


def has_only_names_of(source: str, text: str) -> bool:
    """Whether every capitalised word and every number of ``text``, sentences' first words aside, is in ``source``."""
    words = [word for sentence in split_sentences(text) for word in re.findall(r"\w[\w'-]*", sentence)[1:]]
    names = [word for word in words if word[0].isupper() or word[0].isdigit()]
    return all(name.lower().removesuffix("'s") in source.lower() for name in names)


def _question_messages(country: str, fact: str) -> list[Message]:
    messages: list[Message] = []
    for example_country, example_fact, example_question in EXAMPLES:
        messages.append({"role": "user", "content": _question_request(example_country, example_fact)})
        messages.append({"role": "assistant", "content": example_question})
    return [*messages, {"role": "user", "content": _question_request(country, fact)}]


def _question_request(country: str, fact: str) -> str:
    return f"Country: {country}\nFact: {fact}\nWrite one question about {country} that this fact answers."
