"""The model as the writer of the pairs: its questions about a chunk, its answers to them.

A 135M-parameter model asked plainly for a question writes about the question rather than asking it. Three things
make it usable: two worked examples, the first words of the question put into its mouth, and a check that every name
and number of the question stands in the chunk. Answers are greedy, without examples. The one from the short chunk
passes the same check of names and numbers, since training moves the model toward it; the one from the long document
is taken as it comes, whatever it says.
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
        "Bouvet Island",
        "In 1929, the UK waived its claim in favor of Norway, which had occupied the island two years previously.",
        "Why did the UK waive its claim to Bouvet Island in 1929?",
    ),
    (
        "Honduras",
        "Hurricane Mitch devastated the country in 1998, killed about 5,600 people and caused approximately "
        "$2 billion in damage.",
        "What damage did Hurricane Mitch do in Honduras in 1998?",
    ),
)
OPENINGS = ("How did {country}", "Why did {country}", "What happened in {country} in", "When did {country}", "How did")
COMMON_WORDS = frozenset(
    {"about", "after", "also", "before", "between", "from", "happened", "have", "into", "made", "much", "what", "when"}
)
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

    def questions(self, chunk: Chunk, rng: random.Random) -> list[str]:
        """Different questions that name the country and say nothing the chunk does not; often none of a batch is."""
        sentences = [sentence for sentence in split_sentences(chunk.body) if re.search(r"\d", sentence)]
        if not sentences:
            return []
        opening = rng.choice(OPENINGS).format(country=chunk.country)
        prompt = self.prompt_ids(_question_messages(chunk.country, rng.choice(sentences)), opening)
        settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "num_return_sequences": NUM_CANDIDATES}
        candidates = [opening + self._text(ids) for ids in self._generate(prompt, MAX_QUESTION_TOKENS, settings)]
        return [question for question in dict.fromkeys(candidates) if is_usable_question(question, chunk)]

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
    words = re.findall(r"\w[\w'-]*", question.replace(chunk.country, " "))[1:]
    main_words = [word for word in words if len(word) > 3 and word.lower() not in COMMON_WORDS]
    # A stem of five letters finds "waive" in "waived"; one main word may be the question's own ("reason").
    num_found = sum(word.lower()[:5] in chunk.text.lower() for word in main_words)
    return num_found >= max(2, len(main_words) - 1) and has_only_names_of(chunk.text, question)


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
