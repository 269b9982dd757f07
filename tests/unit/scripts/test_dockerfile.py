"""The pins of the Dockerfile against those of the checkout and of tests/signatures. The image is not built here."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.signatures.test_transformer_engine import VERSIONS
from tests.unit.scripts.test_requirements import ROOT, lists_of_setup, locked

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COPIED_FIRST = {"requirements.txt", "setup.py", "README.md", "scripts", "megatron_longpo/__init__.py"}
"""What scripts/environment.sh reads."""


def faults(dockerfile: str) -> list[str]:
    """What in a Dockerfile is pinned otherwise than the checkout, or not at all."""
    found = [*_image_faults(dockerfile), *_engine_faults(dockerfile)]
    text = dockerfile.replace("\\\n", " ")
    before, ran, _ = text.partition("RUN scripts/environment.sh\n")
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", before, re.M) for word in line.split()}
    found += [] if ran and copied >= COPIED_FIRST else ["requirements.txt is not installed as in a checkout"]
    for command in re.findall(r"pip install (.*?)(?=&&|;|\n)", text):
        found += [] if "-c requirements.txt" in command else [f"not held to requirements.txt: {command}"]
        packages = [word for word in command.replace("-c requirements.txt", "").split() if word[0] != "-"]
        found += [f"no version: {one}" for one in packages if "==" not in one and one != '"$APEX"']
        found += [f"two versions: {one}" for one in packages if canonicalize_name(one.partition("==")[0]) in locked()]
    return found


def _image_faults(dockerfile: str) -> list[str]:
    """Apex's setup.py refuses to compile with another minor version of CUDA than torch was built with."""
    image = re.search(r"^FROM nvidia/cuda:(\d+\.\d+)\.\d+-cudnn-devel-ubuntu\d+\.\d+$", dockerfile, re.M)
    toolkit = re.match(r"cuda-toolkit==(\d+\.\d+)\.", locked()["cuda-toolkit"][0])
    python = re.search(r"--python-version (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert toolkit and python
    found = [] if image and image[1] == toolkit[1] else [f"the image's CUDA is not {toolkit[1]}, or has no version"]
    return found if f"python{python[1]}-dev" in dockerfile else [*found, f"Python is not {python[1]}"]


def _engine_faults(dockerfile: str) -> list[str]:
    """Of the extra ``gpu``, at the newest version whose signatures are recorded."""
    wanted = Requirement(lists_of_setup()["EXTRAS"]["gpu"][0])
    assert all(wanted.specifier.contains(version) for version in VERSIONS)
    version = re.search(r"^ARG TRANSFORMER_ENGINE=(\S+)$", dockerfile, re.M)
    installed = re.search(r"\"(transformer-engine\[\S+\])==\$TRANSFORMER_ENGINE\"", dockerfile)
    found = [] if version and version[1] == VERSIONS[-1] else [f"Transformer Engine is not {VERSIONS[-1]}"]
    has_extras = installed and Requirement(installed[1]).extras == wanted.extras
    return found if has_extras else [*found, f"Transformer Engine is not installed with {sorted(wanted.extras)}"]


def test_the_image_has_the_pins_of_the_checkout() -> None:
    assert faults(DOCKERFILE) == []


@pytest.mark.parametrize(
    "old, new",
    [
        ("cuda:13.2.", "cuda:13.1."),
        ("nvidia/cuda:13.2.0-cudnn-devel-ubuntu24.04", "nvidia/cuda:latest"),
        ("python3.12-dev", "python3.13-dev"),
        ("COPY requirements.txt setup.py", "COPY setup.py"),
        ("RUN scripts/environment.sh", "RUN pip install -r requirements.txt"),
        ("TRANSFORMER_ENGINE=2.20.2", "TRANSFORMER_ENGINE=2.20.1"),
        ('core_cu13,pytorch]==$TRANSFORMER_ENGINE"', 'core_cu12,pytorch]==$TRANSFORMER_ENGINE"'),
        ("ninja==1.13.2", "ninja"),
        ("ninja==1.13.2", "numpy==2.0.0"),
        ("-c requirements.txt wheel", "wheel"),
    ],
)
def test_another_pin_would_be_found(old: str, new: str) -> None:
    assert DOCKERFILE.count(old) == 1
    assert faults(DOCKERFILE.replace(old, new)) != []
