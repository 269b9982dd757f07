"""The paths of a GPU, in the order of the page: what the rows of docs/gpu-status.md say."""

from benchmarks.gpu.status import Path

PATHS = (
    Path(
        what="attention kernels `flash`, `cudnn` (bf16, fp16)",
        code="`model/kernel_calls.py`",
        cpu=(
            "not reachable; shapes at 131,072 tokens on meta tensors (`tests/unit/model/test_kernels.py`), arguments "
            "and results by torch's schemas (`tests/signatures/test_torch.py`)"
        ),
        tests=(
            "test_attention.py::test_equals_masked_attention[flash]",
            "test_attention.py::test_equals_masked_attention[cudnn]",
            "test_attention.py::test_at_length[flash]",
            "test_attention.py::test_at_length[cudnn]",
        ),
    ),
    Path(
        what="attention kernels `flash3`, `flash4`",
        code="`model/kernel_calls.py`",
        cpu="not reachable; the package is not installed; the same arguments",
        tests=(
            "test_attention.py::test_equals_masked_attention[flash3]",
            "test_attention.py::test_equals_masked_attention[flash4]",
            "test_attention.py::test_at_length[flash3]",
            "test_attention.py::test_at_length[flash4]",
        ),
    ),
    Path(
        what="attention kernel `cpu`",
        code="`model/kernel_calls.py`",
        cpu="proven, [exactness](exactness.md)",
        gpu="-",
    ),
    Path(
        what="attention kernel `plain` (fp32 on a GPU)",
        code="`model/kernel_calls.py`",
        cpu="proven (`tests/unit/model/test_kernels.py`)",
        tests=("test_attention.py::test_equals_masked_attention[plain]",),
    ),
    Path(
        what="the choice of a kernel on a small case",
        code="`model/kernels.py`",
        cpu="proven, wrong kernels are passed over (the same test)",
        tests=(
            "test_attention.py::test_equals_masked_attention[auto]",
            "test_attention.py::test_at_length[auto]",
        ),
    ),
    Path(
        what="`--longpo-recompute keep-attention`",
        code="`model/attention.py`",
        cpu="proven, same gradients to the bit",
        tests=("test_step.py::test_keep_attention_equals_full_recomputation",),
    ),
    Path(
        what="log-prob head, vocabulary-parallel",
        code="`model/logprob.py`",
        cpu="proven",
        tests=("test_logprob.py::test_products_are_fp32",),
    ),
    Path(
        what="tensor, sequence, pipeline and data parallelism over NCCL",
        code="stock Megatron",
        cpu="proven over gloo",
    ),
    Path(
        what="bf16 training with fp32 main gradients",
        code="stock Megatron, `_WeightGradient` in `model/logprob.py`",
        cpu="run, within 2% of fp32 (`tests/integration/test_train.py`)",
        tests=(
            "test_programs.py::test_three_steps_of_training[local]",
            "test_step.py::test_equals_the_hugging_face_model[local]",
        ),
    ),
    Path(
        what="`--longpo-optimizer rmsprop`",
        code="`optimizer.py`",
        cpu="proven",
    ),
    Path(
        what="`--optimizer-cpu-offload` with it",
        code="stock Megatron, `optimizer.py`",
        cpu="equal to the bit, with CPU tensors in the GPU's part (`tests/unit/test_optimizer_offload.py`)",
    ),
    Path(
        what="`score-reference --dtype bf16`",
        code="`reference/score.py`",
        cpu="run, within 2% of fp32 (`tests/integration/test_reference.py`)",
        tests=("test_programs.py::test_score_reference",),
    ),
    Path(
        what="`score-reference --context long --context-parallel-size N`",
        code="`reference/{frozen,score}.py`",
        cpu="proven over gloo, cp 2 equals cp 1 to 1e-6 (`tests/integration/test_reference.py`)",
    ),
    Path(
        what="`--longpo-online-reference`",
        code="`reference/online.py`",
        cpu="proven over gloo with tp 2, pp 2, cp 2: same losses as cached (`tests/integration/test_online.py`)",
    ),
    Path(
        what="Transformer Engine on the trunk (`--transformer-impl transformer_engine`)",
        code="`model/transformer_engine.py`",
        cpu=(
            "cannot run; refused with a message; proven around a stand-in "
            "(`tests/unit/model/test_transformer_engine.py`); every call of the model's by the signatures of 2.10.0 "
            "and 2.20.2 (`tests/signatures/test_transformer_engine.py`)"
        ),
        tests=(
            "test_step.py::test_equals_the_hugging_face_model[transformer_engine]",
            "test_memory.py::test_memory_at_128k[transformer_engine]",
            "test_programs.py::test_three_steps_of_training[transformer_engine]",
        ),
    ),
    Path(
        what="Qwen3's query and key norms",
        code="stock Megatron, `model/build.py`",
        cpu="proven, [exactness](exactness.md)",
        gpu="not yet run, with neither `--transformer-impl`",
    ),
    Path(
        what="`import-hf --verify`, `export-hf --verify` on a CUDA device",
        code="`commands/verify.py`",
        cpu="run (`tests/unit/hf/test_verify.py`)",
        tests=("test_programs.py::test_import_and_export_verify",),
    ),
    Path(
        what="FP8 (`--fp8-format`, with Transformer Engine)",
        code="stock Megatron; micro-batches padded to 16 tokens",
        cpu="cannot run; refused with a message; recipes made by the same signatures",
        tests=("test_step.py::test_fp8",),
    ),
    Path(
        what="131,072 tokens on one GPU",
        code="all of `model/`",
        cpu="-",
        tests=("test_memory.py::test_memory_at_128k[local]",),
    ),
    Path(
        what="packing (`--longpo-tokens-per-microbatch`)",
        code="`data/packing.py`, `model/attention.py`",
        cpu="proven, [exactness](exactness.md)",
    ),
    Path(
        what="virtual pipeline stages",
        code="stock Megatron",
        cpu="run over gloo (`tests/integration/test_train.py`)",
    ),
    Path(
        what="context parallelism on torch's kernels, all four `--cp-comm-type`",
        code="`model/{exchange,trunk,branches}.py`",
        cpu="proven over gloo, up to 8 ranks",
        tests=("test_context_parallel.py::test_equals_masked_attention",),
    ),
    Path(
        what="self-generation by transformers",
        code="`generate/engines/local_*.py`",
        cpu="run, same answers alone and in a batch (`tests/unit/generate/test_local_model.py`)",
    ),
    Path(
        what="self-generation by vLLM",
        code="`generate/engines/vllm_engine.py`",
        cpu="not yet run; calls by the signatures of 0.33.0 (`tests/signatures/test_vllm.py`)",
    ),
    Path(
        what="`evaluate run --engine hf`",
        code="`evaluate/{long,short}`, `generate/engines/local_*.py`",
        cpu="run",
    ),
    Path(
        what="`evaluate run --engine openai`",
        code="`generate/engines/{openai_engine,server_continue}.py`, `evaluate/short/served.py`",
        cpu="run against `transformers serve` (RULER, InfiniteBench) and a server of the tests (short tasks)",
        gpu="not yet run; vLLM's server not yet tried",
    ),
    Path(
        what="`evaluate run --engine vllm`",
        code="`evaluate/{run,short}/engines.py`",
        cpu="not yet run; calls by the same signatures, lm-eval's among them",
    ),
    Path(
        what="MFU by the GPU's name, peak memory, phases of a step",
        code="`throughput.py`, `step_clock.py`, `platform.py`",
        cpu="run, with a peak that was told and the RSS (`tests/integration/test_watch.py`)",
    ),
    Path(
        what="`Dockerfile`",
        code="-",
        cpu="not yet built",
        gpu="not yet built",
    ),
)
