# The training image: Python 3.12, the pinned packages, Transformer Engine built for the image's CUDA 13.
#   docker build -t megatron-longpo .
#   docker run --gpus all --ipc host -v "$PWD:/data" megatron-longpo megatron-longpo --help
FROM nvidia/cuda:13.0.2-cudnn-devel-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        build-essential git python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/venv PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3.12 -m venv "$VIRTUAL_ENV"

WORKDIR /megatron-longpo
# The packages before the source, so that a change of the source rebuilds seconds and not hours.
COPY constraints.txt setup.py README.md ./
COPY megatron_longpo/__init__.py megatron_longpo/
RUN pip install -c constraints.txt setuptools wheel ninja pybind11 cmake \
    && pip install -c constraints.txt '.[generate,arrow]'
# Its PyTorch part is compiled against the torch just installed, so pip must not fetch another one to build with.
RUN NVTE_FRAMEWORK=pytorch pip install -c constraints.txt --no-build-isolation '.[gpu]'
COPY . .
RUN pip install -c constraints.txt --no-deps --no-build-isolation -e .
