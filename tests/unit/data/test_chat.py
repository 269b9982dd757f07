"""data/chat.py: the invariants of its docstring, with templates that keep and that break them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from megatron_longpo.data.chat import check_chat_template, render_text
from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from tests.tokenizers import CHATML_TEMPLATE, LLAMA3_TEMPLATE, MISTRAL_TEMPLATE

MESSAGE = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
LOOP = "{% for message in messages %}" + MESSAGE + "{% endfor %}"

_tokenizers: dict[str, PreTrainedTokenizerFast] = {}


@pytest.fixture(scope="module", autouse=True)
def _load(tokenizer_folders: dict[str, Path]) -> None:
    """Once for all examples of a property."""
    _tokenizers.update((family, load_tokenizer(folder)) for family, folder in tokenizer_folders.items())


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(Path(_tokenizers["chatml"].name_or_path))
    tokenizer.chat_template = template
    return tokenizer


texts = st.text(st.sampled_from("ab<|>[]/INST\n \té世🙂\ue000"), min_size=1, max_size=12).filter(
    lambda text: text.strip()
)
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


@given(family=st.sampled_from(["chatml", "mistral", "llama3"]), context=texts, turns=turns)
def test_ranges_hold_exactly_the_context_and_the_answers(
    family: str, context: str, turns: list[tuple[str, str]]
) -> None:
    instructions, answers = zip(*turns, strict=True)
    rendered = render_text(_tokenizers[family], context, instructions, answers)
    strip = str.strip if family == "llama3" else str
    start, end = rendered.context
    assert rendered.text[start:end] == (context.lstrip() if family == "llama3" else context)
    assert rendered.text[end:].startswith(strip(f"x\n\n{instructions[0]}")[1:])
    for answer, (start, end) in zip(answers, rendered.responses, strict=True):
        # Mistral's template writes a blank before an answer, which the model has to produce.
        assert rendered.text[start:end] == (" " if family == "mistral" else "") + strip(answer)
    messages = [
        message
        for index, (instruction, answer) in enumerate(turns)
        for message in (
            {"role": "user", "content": instruction if index else f"{context}\n\n{instruction}"},
            {"role": "assistant", "content": answer},
        )
    ]
    assert rendered.text == _tokenizers[family].apply_chat_template(messages, tokenize=False)


@given(answer=texts)
def test_a_response_starts_where_the_generation_prompt_ends(answer: str) -> None:
    for tokenizer in _tokenizers.values():
        rendered = render_text(tokenizer, "c", ["i"], [answer])
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "c\n\ni"}], tokenize=False, add_generation_prompt=True
        )
        assert rendered.text[: rendered.responses[0][0]] == prompt


def test_a_template_without_generation_prompt_has_its_header_outside_the_response() -> None:
    rendered = render_text(with_template(LOOP), "c", ["i"], ["answer"])
    assert rendered.text[: rendered.responses[0][0]].endswith("<|im_start|>assistant\n")


def test_a_marker_inside_a_text_does_not_move_a_range() -> None:
    answer = "assistant\n<|im_start|>assistant\n[/INST] ab"
    for tokenizer in _tokenizers.values():
        rendered = render_text(tokenizer, "[/INST] assistant\n", ["[INST]"], [answer])
        start, end = rendered.responses[0]
        assert rendered.text[start:end].lstrip() == answer


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, MISTRAL_TEMPLATE, LLAMA3_TEMPLATE, LOOP])
def test_good_templates_pass_the_check(template: str) -> None:
    check_chat_template(with_template(template))


BAD_TEMPLATES = {
    "none": (None, "no chat template"),
    "last message differs": (
        "{% for message in messages %}{% if loop.last %}{{ '<last>' }}{% endif %}" + MESSAGE + "{% endfor %}",
        "not prefix-stable",
    ),
    "drops old turns": (
        "{% for message in messages[-2:] %}" + MESSAGE + "{% endfor %}",
        "not prefix-stable",
    ),
    "thinks in the last turn only": (
        "{% for message in messages %}{% if loop.last and message['role'] == 'assistant' %}"
        "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% else %}" + MESSAGE + "{% endif %}{% endfor %}",
        "not prefix-stable",
    ),
    "opens a thought in the generation prompt": (
        LOOP + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
        r"generation prompt ends in .*<think>.*a stored answer is rendered .*This one",
    ),
    "asks with another header": (
        LOOP + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        "generation prompt ends in",
    ),
    "rewrites answers": (
        LOOP.replace("message['content']", "(message['content'] | upper)"),
        "rewrites",
    ),
    "leaves answers out": ("{% for message in messages %}{{ message['role'] }}{% endfor %}", "rewrites"),
    "prints the day": ("{{ strftime_now('%Y') }}" + LOOP, "prints the date of the day"),
    "is no Jinja": ("\n{% for %}", r"line 2 of the chat template is not valid Jinja \(Expected"),
    "raises": ("{{ raise_exception('no users here') }}", "no users here"),
}


@pytest.mark.parametrize(("template", "message"), BAD_TEMPLATES.values(), ids=BAD_TEMPLATES.keys())
def test_bad_templates_are_refused_once_per_tokenizer(template: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_chat_template(with_template(template))
    assert "\n" not in str(caught.value)


def test_of_several_templates_the_default_counts() -> None:
    tokenizer = with_template(None)
    tokenizer.chat_template = {"default": LOOP, "tool_use": "x"}
    check_chat_template(tokenizer)
    tokenizer.chat_template = {"rag": LOOP, "tool_use": "x"}
    with pytest.raises(UserError, match="rag, tool_use and none named default"):
        check_chat_template(tokenizer)


def test_a_template_that_asks_for_a_date_is_told_a_fixed_one() -> None:
    template = "{{ (date_string if date_string is defined else strftime_now('%d %b %Y')) + '\\n' }}" + LOOP
    tokenizer = with_template(template)
    check_chat_template(tokenizer)
    assert render_text(tokenizer, "c", ["i"], ["a"]).text.startswith("26 Jul 2024\n")


def test_a_template_that_rewrites_only_this_answer_is_refused() -> None:
    template = LOOP.replace("message['content']", "(message['content'] | replace('secret', '***'))")
    tokenizer = with_template(template)
    check_chat_template(tokenizer)
    with pytest.raises(UserError, match="rewrites an answer"):
        render_text(tokenizer, "c", ["i"], ["the secret word"])
    with pytest.raises(UserError, match="rewrites the first user message"):
        render_text(tokenizer, "a secret", ["i"], ["a"])
