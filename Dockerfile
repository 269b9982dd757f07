# The training image: Python 3.12, the packages of requirements.txt, Transformer Engine built for the image's CUDA 13.
#   docker build -t megatron-longpo .                                        # and, with Apex:
#   docker build -t megatron-longpo --build-arg APEX=git+REPOSITORY@TAG .
#   docker run --gpus all --ipc host -v "$PWD:/data" megatron-longpo megatron-longpo --help
# The CUDA that torch was built with, to the minor version: Apex compiles with no other (its setup.py asks nvcc).
FROM nvidia/cuda:13.2.0-cudnn-devel-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        build-essential git make python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /megatron-longpo
# Megatron 0.19 asks for CUDA_DEVICE_MAX_CONNECTIONS=1 with tensor or context parallelism before Blackwell
# (megatron/training/arguments.py, validate_args).
ENV VIRTUAL_ENV=/megatron-longpo/.venv PATH=/megatron-longpo/.venv/bin:$PATH \
    UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 CUDA_DEVICE_MAX_CONNECTIONS=1

# The packages before the source, so that a change of the source rebuilds seconds and not hours.
COPY requirements.txt setup.py README.md ./
COPY scripts scripts
COPY megatron_longpo/__init__.py megatron_longpo/
RUN scripts/environment.sh
# Not in requirements.txt: its PyTorch part is compiled here, against the torch just installed and the image's CUDA. Its
# version is the newest whose signatures our calls were compared with (tests/signatures).
ARG TRANSFORMER_ENGINE=2.20.2
RUN scripts/uv.sh pip install -c requirements.txt wheel==0.48.0 ninja==1.13.2 pybind11==3.1.0 cmake==4.4.5 \
    && NVTE_FRAMEWORK=pytorch scripts/uv.sh pip install -c requirements.txt --no-build-isolation \
        "transformer-engine[core_cu13,pytorch]==$TRANSFORMER_ENGINE"
# Apex has no wheel and is compiled too: weight gradients for --transformer-impl local (docs/training.md).
ARG APEX=
RUN case "$APEX" in \
        "") ;; \
        *@*) APEX_CPP_EXT=1 APEX_CUDA_EXT=1 scripts/uv.sh pip install -c requirements.txt --no-build-isolation "$APEX" ;; \
        *) echo "APEX=$APEX names no version: end it with @ and a tag or a commit" >&2 && exit 2 ;; \
    esac
COPY . .
