"""The sentences of a model card that are the same for every model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """An objective in words."""

    description: str
    tags: tuple[str, ...]


_LONGPO_TAGS = ("longpo", "preference-optimization", "long-context")
_LONGPO = "LongPO (arXiv 2502.13922), short-to-long preference optimisation"

METHODS = {
    "longpo": Method(_LONGPO, _LONGPO_TAGS),
    "longpo-per-turn": Method(f"{_LONGPO}, with one sigmoid per turn", _LONGPO_TAGS),
    "hinge": Method(f"{_LONGPO}, with the hinge loss (arXiv 2305.10425)", _LONGPO_TAGS),
    "ipo": Method(f"{_LONGPO}, with the IPO loss (arXiv 2310.12036)", _LONGPO_TAGS),
    "dpo": Method(
        "DPO (arXiv 2305.18290) on short-to-long pairs, with a reference that reads the long context",
        ("dpo", "preference-optimization", "long-context"),
    ),
    "sft": Method("supervised fine-tuning on the chosen answers of short-to-long pairs", ("sft", "long-context")),
}
"""Name of the objective -> what to call it."""

USAGE = """\
The document comes first in the user's message, then the question.

With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto", device_map="auto")
chat = [{{"role": "user", "content": document + "\\n\\n" + question}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs.to(model.device), max_new_tokens=512)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

With vLLM:

```python
from vllm import LLM, SamplingParams
llm = LLM("{name}", max_model_len={length})
chat = [{{"role": "user", "content": document + "\\n\\n" + question}}]
output = llm.chat(chat, SamplingParams(temperature=0.0, max_tokens=512))
print(output[0].outputs[0].text)
```"""

USAGE_WITHOUT_CHAT = """\
With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto", device_map="auto")
inputs = tokenizer(text, return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_new_tokens=512)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```

With vLLM:

```python
from vllm import LLM, SamplingParams
llm = LLM("{name}", max_model_len={length})
output = llm.generate(text, SamplingParams(temperature=0.0, max_tokens=512))
print(output[0].outputs[0].text)
```"""

CITATION = """\
```bibtex
@inproceedings{{chen2025longpo,
  title         = {{LongPO: Long Context Self-Evolution of Large Language Models through Short-to-Long Preference
                   Optimization}},
  author        = {{Guanzheng Chen and Xin Li and Michael Qizhe Shieh and Lidong Bing}},
  booktitle     = {{The Thirteenth International Conference on Learning Representations}},
  year          = {{2025}},
  eprint        = {{2502.13922}},
  archivePrefix = {{arXiv}}
}}

@software{{megatron_longpo,
  title   = {{megatron-longpo: LongPO on Megatron-Core}},
  version = {{{version}}}
}}
```"""
