"""What the vLLM engine, and lm-eval's vLLM model of the short tasks, ask of vLLM, by the signatures of a release."""

import asyncio
import importlib
import importlib.metadata
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

from megatron_longpo.data.tokenise import end_of_turn_id
from megatron_longpo.evaluate.short import engines as short_engines
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.engines import vllm_engine
from tests.mutations import Mutation
from tests.signatures.mutated import is_noticed, mutations
from tests.signatures.recorded import Library, Source, value_of
from tests.unit.generate.chat_models import ask, save_chat_model

VERSION = "0.33.0"
"""The version that docs and comments speak of."""
ENGINE = mutations(
    "megatron_longpo/generate/engines/vllm_engine.py",
    ("vllm-length-renamed", "max_model_len=context_limit", "max_length=context_limit"),
    (
        "vllm-memory-and-ranks-swapped",
        "gpu_memory_utilization=gpu_",
        "gpu_memory_utilization=tensor_parallel_size or gpu_",
    ),
    ("vllm-sampling-defaults-of-the-folder", 'generation_config="vllm",', ""),
    ("vllm-temperature-is-top-p", "temperature=request.sampling.temperature", "temperature=request.sampling.top_p"),
    ("vllm-top-p-is-temperature", "top_p=request.sampling.top_p", "top_p=request.sampling.temperature"),
    ("vllm-answer-length-renamed", "max_tokens=", "max_new_tokens="),
    ("vllm-ends-renamed", "stop_token_ids=[", "stop=["),
    ("vllm-output-kind", "FINAL_ONLY", "FINAL"),
    ("vllm-prompt-renamed", '"prompt_token_ids": ids', '"prompt_ids": ids'),
    ("vllm-prompt-argument-renamed", "prompt={", "inputs={"),
    ("vllm-request-without-a-name", ", request_id=str(next(self._numbers))", ""),
    ("vllm-tokens-of-the-answer-renamed", "answer.token_ids", "answer.tokens"),
    ("vllm-type-of-the-engine-renamed", "engine.model_config.dtype", "engine.model_config.torch_dtype"),
    ("vllm-end-renamed", "self._engine.shutdown()", "self._engine.close()"),
)
SHORT = mutations(
    "megatron_longpo/evaluate/short/engines.py",
    ("short-length-renamed", "max_model_len=context_limit, batch", "context=context_limit, batch"),
    ("short-type-renamed", "str(folder), dtype=dtype", "str(folder), torch_dtype=dtype"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"))


@contextmanager
def imported(library: Library) -> Iterator[Library]:
    """vLLM as recorded, and what its metadata would say."""
    version = importlib.metadata.version
    library.calls.clear()
    with library.installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: VERSION if name == "vllm" else version(name))
        yield library


@cache
def beneath_lm_eval() -> Library:
    """One for all: lm-eval's model can be imported once only, since it registers its name."""
    return Library.of(f"vllm-{VERSION}")


def compare_engine(module: ModuleType, model: Path) -> None:
    """An engine opened, asked once and closed."""
    with imported(Library.of(f"vllm-{VERSION}")) as library:
        config = library.instance("vllm.config.ModelConfig", dtype="torch.bfloat16", max_model_len=4096)
        name, started = "vllm.v1.engine.async_llm.AsyncLLM", []

        def start(owner: Any, given: dict[str, Any]) -> Any:
            assert "model_config" in library.records[name]["attributes"]
            engine = owner.__new__(owner)
            engine.model_config = config
            started.append(given["engine_args"])
            return engine

        async def answers(_: Any, given: dict[str, Any]) -> AsyncIterator[Any]:
            completion = "vllm.outputs.CompletionOutput"
            one = library.instance(completion, text="so", token_ids=[5, 6, 7], finish_reason="length")
            yield library.instance("vllm.outputs.RequestOutput", outputs=[one])

        library.behaviour = {f"{name}.from_engine_args": start, f"{name}.generate": answers}
        engine = module.open_vllm_engine(
            model, dtype="half", tensor_parallel_size=3, gpu_memory_utilization=0.8, context_limit=2048
        )
        request = ask("What is it?", seed=11, temperature=0.7, top_p=0.9, max_new_tokens=17)
        completion = asyncio.run(engine.complete(request))
        asyncio.run(engine.aclose())

        (given,) = library.arguments("vllm.engine.arg_utils.AsyncEngineArgs.__init__")
        sizes = {"tensor_parallel_size": 3, "gpu_memory_utilization": 0.8, "max_model_len": 2048}
        assert given == {"model": str(model), "dtype": "half", "enable_prefix_caching": True} | sizes | {
            "generation_config": "vllm"
        }
        assert isinstance(started[0], sys.modules["vllm.engine.arg_utils"].AsyncEngineArgs)  # type: ignore[attr-defined]
        (given,) = library.arguments("vllm.sampling_params.SamplingParams.__init__")
        kinds = sys.modules["vllm.sampling_params"].RequestOutputKind  # type: ignore[attr-defined]
        ends = [end_of_turn_id(AutoTokenizer.from_pretrained(model))]
        drawn = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 17, "seed": 11, "stop_token_ids": ends}
        assert given == drawn | {"output_kind": kinds.FINAL_ONLY}
        (given,) = library.arguments(f"{name}.generate")
        assert type(given["sampling_params"]).__name__ == "SamplingParams" and given["request_id"] == "0"
        assert (
            given["prompt"].keys()
            == {"prompt_token_ids"}
            <= library.records["vllm.inputs.TokensPrompt"]["fields"].keys()
        )
        assert completion == Completion(
            text="so", finish="length", num_prompt_tokens=len(given["prompt"]["prompt_token_ids"]), num_new_tokens=3
        )
        assert library.arguments(f"{name}.shutdown") == [{}]
        assert (engine.identity["dtype"], engine.identity["vllm"]) == ("bfloat16", VERSION)
        assert engine.context_limits == {"short": 4096, "long": 4096}


def compare_short(module: ModuleType, model: Path) -> None:
    """A model of the short tasks opened, and one log-probability asked for: lm-eval between it and vLLM."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    with imported(beneath_lm_eval()) as library:
        config = library.instance("vllm.config.ModelConfig", max_model_len=2048)

        def make(owner: Any, given: dict[str, Any]) -> None:
            assert "llm_engine" in library.records["vllm.LLM"]["attributes"]
            owner.llm_engine = library.instance("vllm.v1.engine.llm_engine.LLMEngine", model_config=config)

        def logprobs(_: Any, given: dict[str, Any]) -> list[Any]:
            logprob = library.instance("vllm.logprobs.Logprob", logprob=-0.5)
            rows = [[None, *({token: logprob} for token in one.prompt_token_ids[1:])] for one in given["prompts"]]
            return [library.instance("vllm.outputs.RequestOutput", prompt_logprobs=row) for row in rows]

        library.behaviour = {
            "vllm.LLM.__init__": make,
            "vllm.LLM.generate": logprobs,
            "vllm.tokenizers.get_tokenizer": lambda given: tokenizer,
        }
        opened = module.vllm_short_model(model, tokenizer, dtype="bfloat16", context_limit=512)
        instance = importlib.import_module("lm_eval.api.instance").Instance
        request = instance("loglikelihood", {}, ("It is a", " bee"), 0)
        ((logp, _),) = opened.lm.loglikelihood([request], disable_tqdm=True)

        num_tokens = len(tokenizer("It is a bee").input_ids) - len(tokenizer("It is a").input_ids)
        assert logp == -0.5 * num_tokens
        (given,) = library.arguments("vllm.LLM.__init__")
        assert given.keys() <= library.records["vllm.engine.arg_utils.EngineArgs"]["fields"].keys()
        asked = {"model": str(model), "dtype": "bfloat16", "max_model_len": 512, "trust_remote_code": False}
        assert asked.items() <= given.items() and opened.most_tokens == 511  # vLLM must generate one more
        (given,) = library.arguments("vllm.renderers.hf.resolve_chat_template")
        assert given["model_config"] is config


def test_the_engine(folder: Path) -> None:
    compare_engine(vllm_engine, folder)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", ENGINE, ids=lambda one: one.name)
def test_a_changed_call_of_the_engine_is_noticed(mutation: Mutation, folder: Path) -> None:
    assert is_noticed(mutation, lambda module: compare_engine(module, folder))


def test_the_model_of_the_short_tasks(folder: Path) -> None:
    compare_short(short_engines, folder)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", SHORT, ids=lambda one: one.name)
def test_a_changed_call_of_the_short_tasks_is_noticed(mutation: Mutation, folder: Path) -> None:
    assert is_noticed(mutation, lambda module: compare_short(module, folder))


def test_what_is_left_out_is_what_we_take_it_for() -> None:
    """One answer, without penalties, top-k or stop strings; special tokens are left out of the text."""
    library, sampling = Library.of(f"vllm-{VERSION}"), "vllm.sampling_params.SamplingParams"
    left_out = {"n": 1, "top_k": 0, "min_p": 0.0, "stop": None, "ignore_eos": False, "skip_special_tokens": True}
    left_out |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}
    assert {name: library.default(sampling, name) for name in left_out} == left_out
    # No --context-limit is vLLM's own default: the context that the folder's config.json has.
    length = library.default("vllm.engine.arg_utils.AsyncEngineArgs", "max_model_len")
    assert length == Source("ModelConfig.max_model_len")
    assert library.records["vllm.config.ModelConfig"]["fields"]["max_model_len"].startswith("Field(default=None")
    reasons = value_of(library.records["vllm.v1.engine.FINISH_REASON_STRINGS"]["value"])
    assert vllm_engine.FINISH_REASONS.keys() <= set(reasons)


def test_generate_is_iterated_and_shutdown_is_not_awaited() -> None:
    methods = Library.of(f"vllm-{VERSION}").records["vllm.v1.engine.async_llm.AsyncLLM"]["methods"]
    assert methods["generate"].startswith("async ")
    assert methods["generate"].endswith("-> AsyncGenerator[RequestOutput, None]")
    assert not methods["shutdown"].startswith("async") and not methods["from_engine_args"].startswith("async")
