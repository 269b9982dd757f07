import argparse
import json

import pytest

from megatron_longpo.commands.generate_options import add_arguments, policy_rope_of, settings_of
from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.contexts import ContextShape
from megatron_longpo.generate.settings import PRESETS, Settings, from_preset

REQUIRED = ["--documents", "d", "--model", "m", "--output", "o"]


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*REQUIRED, *options])


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_presets_make_contexts_that_fill_their_length(preset: str | None) -> None:
    settings = from_preset(preset)
    settings.check()
    shape = ContextShape(
        num_chunks=settings.num_chunks,
        min_tokens=settings.min_chunk_tokens,
        max_tokens=settings.max_chunk_tokens,
        context_tokens=settings.context_tokens,
    )
    shape.check()
    assert settings.num_chunks * settings.max_chunk_tokens > 0.9 * settings.length
    conversation = settings.num_turns * (settings.answer.max_new_tokens + settings.question_room)
    assert settings.context_tokens + conversation == settings.length


def test_the_defaults_are_the_released_recipe() -> None:
    settings = settings_of(parsed())
    assert settings == Settings() == from_preset("mistral-128k")
    assert (settings.length, settings.num_turns, settings.min_turns, settings.num_questions) == (131072, 4, 4, 4)
    assert (settings.question.temperature, settings.question.top_p) == (0.7, 0.9)
    assert (settings.answer.temperature, settings.answer.max_new_tokens) == (1.0, 1024)


def test_what_is_given_comes_before_the_preset() -> None:
    settings = settings_of(parsed("--preset", "256k", "--num-turns", "2", "--answer-tokens", "99"))
    assert (settings.length, settings.num_turns, settings.min_turns) == (262144, 2, 2)
    assert settings.answer.max_new_tokens == 99
    assert settings.no_filter == ()


def test_filters_under_their_old_names() -> None:
    given = settings_of(parsed("--no-filter", "cut-off", "--keep", "alike", "language"))
    assert given.no_filter == ("cut off", "too similar", "language")
    assert parsed().no_filter == []  # `extend` has not written into the default


def test_old_names_are_not_shown() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert not {"--keep", "--long-rope", "alike"} & set(parser.format_help().split())


def test_the_policys_rope() -> None:
    assert policy_rope_of(parsed()) is None
    assert policy_rope_of(parsed("--preset", "mistral-128k")) == {"rope_type": "default", "rope_theta": 1e7}
    given = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    for option in ("--policy-rope", "--long-rope"):
        assert policy_rope_of(parsed("--preset", "mistral-128k", option, json.dumps(given))) == given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[]", "needs an object with rope_type"),
        ("{}", "needs an object with rope_type"),
        ('"yarn"', "needs an object with rope_type"),
        ('{"rope_typ": "yarn"}', "needs an object with rope_type"),
        ('{"rope_type": "yan", "rope_theta": 1e6}', 'rope_type is "yan"; supported are default'),
        ('{"rope_type": ["yarn"], "rope_theta": 1e6}', 'rope_type is ["yarn"]; supported are default'),
        ('{"rope_type": "default"}', "rope_theta is missing"),
        ('{"rope_type": "default", "rope_theta": NaN}', "rope_theta is NaN; it must be a number above 0"),
        ('{"rope_type": "default", "rope_theta": "1e7"}', 'rope_theta is "1e7"; it must be a number above 0'),
        ('{"rope_type": "default", "theta": 1e7, "rope_theta": 1e7}', "theta is 10000000.0; rope_type 'default' does"),
        ('{"rope_type": "linear", "rope_theta": 1e4, "facto": 2}', "factor is missing"),
        ('{"rope_type": "linear", "rope_theta": 1e4, "factor": 0.5}', "factor is 0.5; it must be a number of"),
        ('{"rope_type": "yarn", "rope_theta": 1e4, "factor": 4}', "original_max_position_embeddings is missing"),
    ],
)  # fmt: skip
def test_a_rope_with_a_mistake_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        policy_rope_of(parsed("--policy-rope", text))
    assert str(error.value).startswith("--policy-rope") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-turns", "0"], "--num-turns 0: needs at least 1"),
        (["--min-length", "1000"], "--min-length 1000 is below the 65536 tokens that 4 chunks"),
        (["--question-temperature", "-1"], "--question-temperature -1.0: needs at least 0"),
        (["--max-repetition", "1.5"], "--max-repetition 1.5: needs 0 to 1"),
        (["--question-tokens", "0"], "--question-tokens 0: needs at least 1"),
        (["--answer-temperature", "inf"], "--answer-temperature inf: needs at least 0"),
        (["--answer-temperature", "nan"], "--answer-temperature nan: needs at least 0"),
        (["--question-top-p", "nan"], "--question-top-p nan: needs more than 0, at most 1"),
        (["--max-similarity", "nan"], "--max-similarity nan: needs 0 to 1"),
        (["--max-short-tokens", "9000"], "--max-short-tokens 9000 drops every chunk of --min-chunk-tokens 16384"),
        (["--text-field", "t\udcff"], "--text-field 't\\udcff': not UTF-8"),
        (["--served-model", "\udcff"], "--served-model '\\udcff': not UTF-8"),
    ],
)
def test_impossible_figures(options: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        settings_of(parsed(*options))
    assert message in str(error.value)
