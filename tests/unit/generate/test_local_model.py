"""Invariants of local_model.py: a small random model in fp32, held against whole sequences without cache or batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.generate.engine import Request
from megatron_longpo.generate.engines.batching import Prompt
from megatron_longpo.generate.engines.local_load import PolicyRope, load_local_model
from megatron_longpo.generate.engines.local_model import LocalModel, Unwanted
from megatron_longpo.generate.engines.prompt_length import prompt_ids
from tests.unit.generate.chat_models import CONTEXT, ask, save_chat_model

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": CONTEXT,
}
DOCUMENT = " ".join(f"Line {number} of the report names value {number * 37 % 101}." for number in range(12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"))


def load(folder: Path, policy_rope: PolicyRope | None = None) -> LocalModel:
    return load_local_model(folder, load_tokenizer(folder), dtype=None, device="cpu", policy_rope=policy_rope)[0]


def prompts_of(folder: Path, requests: list[Request]) -> list[Prompt]:
    tokenizer = load_tokenizer(folder)
    return [Prompt(request, np.array(prompt_ids(tokenizer, request.messages))) for request in requests]


UNLIKE = [
    ask("What is it?", 1),
    ask(DOCUMENT + " Why?", 2, temperature=0.0, max_new_tokens=5),
    ask("A rather longer question, to be answered with care.", 3, temperature=1.4, top_p=1.0, max_new_tokens=20),
]
RELATED = [
    ask(f"{DOCUMENT}\n\n{question}", seed) for seed, question in enumerate(["Who?", "What value has line 3?", "?"])
]


@pytest.mark.parametrize("requests", [UNLIKE, RELATED], ids=["unlike", "related"])
def test_an_answer_is_the_same_alone_and_in_a_batch(folder: Path, requests: list[Request]) -> None:
    model, prompts = load(folder), prompts_of(folder, requests)
    together = model.answer(prompts)
    assert together == [model.answer([prompt])[0] for prompt in prompts]
    assert [answer.num_prompt_tokens for answer in together] == [len(prompt.ids) for prompt in prompts]
    assert all(answer.num_new_tokens <= r.sampling.max_new_tokens for answer, r in zip(together, requests, strict=True))
    assert len({answer.text for answer in together}) == len(requests)


def test_a_shared_beginning_is_computed_once(folder: Path) -> None:
    """The first pass over the model has one row and the beginning; the next one all rows and the rest."""
    model, prompts = load(folder), prompts_of(folder, RELATED)
    shapes: list[tuple[int, ...]] = []
    untyped: Any = model
    untyped._model.model.embed_tokens.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    model.answer(prompts)
    num_shared = shapes[0][1]
    assert shapes[0][0] == 1
    assert num_shared > 0.8 * len(prompts[0].ids)
    assert shapes[1] == (len(prompts), max(len(prompt.ids) for prompt in prompts) - num_shared)


def test_a_sliding_window_is_respected(tmp_path: Path) -> None:
    """Padding between a shared beginning and the rest would move the window, so nothing is shared."""
    folder = save_chat_model(tmp_path, "mistral", sliding_window=40)
    model, prompts = load(folder), prompts_of(folder, RELATED)
    assert len(prompts[0].ids) > 80
    assert model.answer(prompts) == [model.answer([prompt])[0] for prompt in prompts]


@pytest.mark.parametrize("requests", [UNLIKE[1:2], UNLIKE, RELATED], ids=["one", "unlike", "related"])
def test_only_the_last_position_is_projected_to_the_vocabulary(folder: Path, requests: list[Request]) -> None:
    model, positions = load(folder), list[int]()
    head: Any = model._model.get_output_embeddings()  # pyright: ignore[reportPrivateUsage]
    head.register_forward_hook(lambda module, args, logits: positions.append(logits.shape[1]))  # pyright: ignore[reportUnknownLambdaType]
    model.answer(prompts_of(folder, requests))
    assert positions and set(positions) == {1}


def test_the_seed_alone_decides(folder: Path) -> None:
    model = load(folder)
    prompts = prompts_of(folder, [ask("What is it?", seed) for seed in (7, 8, 7)])
    first, second, third = model.answer(prompts)
    assert first == third
    assert first.text != second.text


def greedy(folder: Path, ids: np.ndarray, num_tokens: int, **config: Any) -> list[int]:
    """Without cache or batch: the whole sequence through a freshly loaded model for every token."""
    with_rope = AutoConfig.from_pretrained(folder, **config)
    model = AutoModelForCausalLM.from_pretrained(folder, config=with_rope, dtype=torch.float32)
    sequence = torch.tensor(ids)[None]
    for _ in range(num_tokens):
        with torch.no_grad():
            sequence = torch.cat([sequence, model(sequence, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return sequence[0, len(ids) :].tolist()


def test_long_contexts_have_the_policys_rope_and_short_ones_the_models_own(folder: Path) -> None:
    model = load(folder, PolicyRope(rope_parameters=YARN, max_position_embeddings=4 * CONTEXT))
    expected = {
        "short": {},
        "long": {"rope_parameters": YARN, "max_position_embeddings": 4 * CONTEXT},
    }
    texts: dict[str, set[str]] = {"short": set(), "long": set()}
    for context in ("long", "short", "long", "short"):
        request = ask(DOCUMENT, temperature=0.0, max_new_tokens=16, context=context)
        (prompt,) = prompts_of(folder, [request])
        (answer,) = model.answer([prompt])
        tokens = greedy(folder, prompt.ids, 16, **expected[context])
        tokenizer = load_tokenizer(folder)
        end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
        assert answer.text == tokenizer.decode(tokens[:end], skip_special_tokens=True)
        texts[context].add(answer.text)
    assert len(texts["short"]) == len(texts["long"]) == 1
    assert texts["short"] != texts["long"]


def test_an_answer_ends_with_the_end_of_turn(folder: Path) -> None:
    """Among sixty answers of a random model some end by themselves; none holds what comes after."""
    model = load(folder)
    requests = [ask("Go on.", seed, temperature=2.0, top_p=1.0, max_new_tokens=60) for seed in range(60)]
    answers = model.answer(prompts_of(folder, requests))
    ended = [answer for answer in answers if answer.finish == "stop"]
    assert 0 < len(ended) < len(answers)
    assert {answer.num_new_tokens for answer in answers if answer.finish == "length"} == {60}
    assert all("<|im_end|>" not in answer.text for answer in answers)


def test_unwanted_work_ends_within_a_layer(folder: Path) -> None:
    asked: list[bool] = []

    def is_wanted() -> bool:
        asked.append(True)
        return len(asked) < 10  # three layers a pass: in the fourth token

    model, prompts = load(folder), prompts_of(folder, [ask("Go on.", max_new_tokens=300)])
    with pytest.raises(Unwanted):
        model.answer(prompts, is_wanted)
    assert len(asked) == 10
    assert model.answer(prompts)[0].num_new_tokens > 0


def test_sampling_defaults_of_the_folder_do_not_apply(tmp_path: Path, folder: Path) -> None:
    """Qwen2.5's generation_config.json asks for top_k 20 and a repetition penalty; a request does not."""
    edited = save_chat_model(tmp_path)
    (edited / "generation_config.json").write_text(
        '{"do_sample": true, "top_k": 1, "repetition_penalty": 5.0, "min_new_tokens": 9}', encoding="utf-8"
    )
    requests = [ask("Go on.", seed, temperature=1.5, max_new_tokens=8) for seed in range(4)]
    assert load(edited).answer(prompts_of(edited, requests)) == load(folder).answer(prompts_of(folder, requests))


def test_the_folders_end_of_sequence_ids_end_an_answer_too(tmp_path: Path) -> None:
    request = ask("Go on.", temperature=0.0, max_new_tokens=8)
    folder = save_chat_model(tmp_path)
    (prompt,) = prompts_of(folder, [request])
    third = greedy(folder, prompt.ids, 3)[2]
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [{third}]}}', encoding="utf-8")
    (answer,) = load(folder).answer([prompt])
    assert answer.finish == "stop"
    assert answer.num_new_tokens <= 3
