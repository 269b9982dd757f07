"""The sentences of a model card that are the same for every model."""

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
