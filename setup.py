"""The package: name, requirements, console script. Tool settings are in pyproject.toml, pins in requirements.txt.

``make lock`` renews the pins after a change of ``REQUIREMENTS`` or ``EXTRAS``. Both stay plain literals: a test reads
them without running this file.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

REQUIREMENTS = [
    "megatron-core>=0.19.2,<0.20",
    "torch>=2.6",
    "transformers>=5",
    "huggingface-hub",
    "tokenizers",
    "safetensors",
    "sentencepiece",
    "jinja2",  # chat templates; transformers asks for it only when one is rendered
    "numpy",
    "omegaconf",  # megatron.training imports these two and megatron-core does not pull them in
    "psutil",
    "einops",  # Megatron makes the groups of --cp-comm-type a2a+p2p with it
    "tensorboard",
    "rich",
    "tqdm",
]

EXTRAS = {
    # Fused attention, norms and linear layers, for torch built with CUDA 13; see docs/install.md for CUDA 12.
    "gpu": ["transformer-engine[core_cu13,pytorch]>=2.10"],
    # import-data reads Arrow and parquet files with it.
    "arrow": ["pyarrow"],
    # Sentence borders; OpenAI-compatible servers; languages; near-equal answers; parquet, .zst and .bz2.
    "generate": ["nltk", "openai", "py3langid", "rapidfuzz", "pyarrow"],
    # generate --runner ray.
    "ray": ["ray"],
    # dateutil 4 brings a typepy with which lm-eval's command line ends in a traceback.
    "evaluate": ["lm-eval[ruler,api]>=0.4.13", "python-dateutil<3", "rouge-score", "matplotlib", "openai"],
    "bench": ["matplotlib"],
    # The model of the quickstart is a GGUF file, which transformers reads with these two.
    "quickstart": ["accelerate", "gguf", "matplotlib"],
    # The documentation site: make docs.
    "docs": ["mkdocs-material"],
    # training's --wandb-project.
    "wandb": ["wandb"],
    "dev": [
        "fastapi",  # these two: `transformers serve`, which the tests of generate's openai engine talk to
        "uvicorn",
        "hypothesis",
        "pip",  # these three: what .venv is made with (scripts/environment.sh), and what a user adds packages with
        "setuptools",
        "uv",
        "pre-commit",
        "pyright[nodejs]",
        "pytest<9.2",  # 9.2 ignores how pytest-xdist 3.8 groups tests (tests/conftest.py)
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
    ],
}

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """The package's version, read rather than imported: building must not need the requirements."""
    text = (HERE / "megatron_longpo" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert found, "megatron_longpo/__init__.py has no __version__ line"
    return found.group(1)


setup(
    name="megatron-longpo",
    version=read_version(),
    description="LongPO on Megatron-Core: short-to-long preference training in one shared pass",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.12",
    packages=find_packages(include=["megatron_longpo", "megatron_longpo.*"]),
    package_data={"megatron_longpo": ["py.typed", "**/*.jinja", "launch/recipes/*.toml"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megatron-longpo=megatron_longpo.commands.main:main"]},
)
