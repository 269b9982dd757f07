"""The miniature's model and tokenizer, as a Hugging Face folder like any other."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.miniature.task import SPECIAL, VOCABULARY, Question, Text

PAD, BOS, USER, ASSISTANT, END, UNKNOWN = range(len(SPECIAL))
LENGTH = 64
"""L: tokens of the longest conversation that the base is taught."""
BASE_THETA, POLICY_THETA = 1e4, 1e5
"""RoPE's base: what the model is taught with, and what it reads longer texts with."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}<assistant> {{ message['content'] }} <end> "
    "{% else %}{{ raise_exception('the miniature knows user and assistant only') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


_IDS = {word: id_ for id_, word in enumerate(VOCABULARY)}


def encode(text: str) -> list[int]:
    """Ids of a text's words, which stand apart by spaces."""
    return [_IDS[word] for word in text.split()]


def head_ids(text: Text | None) -> list[int]:
    """What a conversation begins with: the text, or nothing, as the user's."""
    return [BOS, USER, *(word for line in (text.lines if text else ()) for word in encode(line))]


def turn_ids(question: Question) -> tuple[list[int], list[int]]:
    """The question with the header of the answer, and the answer with its end."""
    return [*encode(question.text), ASSISTANT], [*encode(question.answer), END]


def new_model() -> LlamaForCausalLM:
    """A Llama of 0.4M parameters, with torch's random weights."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": BASE_THETA},
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=END,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    # Words that are copied into answers are learnt far sooner where both embeddings begin alike, the first one larger.
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.06)
        model.model.embed_tokens.weight.copy_(model.lm_head.weight * config.hidden_size**0.5)
        for name, weight in model.named_parameters():
            if "layers" in name and weight.ndim == 2:
                weight.normal_(std=weight.shape[1] ** -0.5)
                if "o_proj" in name or "down_proj" in name:
                    weight /= (2 * config.num_hidden_layers) ** 0.5
    return model


def new_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word; spaces and line ends separate."""
    tokenizer = Tokenizer(WordLevel({word: id_ for id_, word in enumerate(VOCABULARY)}, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[END],
        unk_token=SPECIAL[UNKNOWN],
        model_max_length=LENGTH,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the model in bf16, which a committed base can afford, and the tokenizer."""
    model.bfloat16().save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
