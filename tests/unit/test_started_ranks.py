"""What the environment says of ranks: whole, or one line that names the variable."""

import os

import pytest
import torch

from megatron_longpo import platform
from megatron_longpo.errors import UserError
from megatron_longpo.started_ranks import ALONE, check_ranks

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "_is_active", True)
    for name in ALONE:
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "left.over")
    assert check_ranks() == 1
    assert {name: os.environ[name] for name in ALONE} == ALONE
    assert check_ranks() == 1


def test_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    assert check_ranks() == 2
    assert {name: os.environ[name] for name in TWO} == TWO


WRONG = [
    ({"RANK": None}, "RANK is not set, though RANK or WORLD_SIZE is; start with torchrun"),
    ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
    ({"LOCAL_RANK": None}, "LOCAL_RANK is not set"),
    ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
    ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
    ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc', no number"),
    ({"RANK": "-1"}, "RANK is '-1', no number"),
    ({"LOCAL_RANK": ""}, "LOCAL_RANK is '', no number"),
    ({"RANK": "2"}, "RANK is 2, and WORLD_SIZE 2: ranks are 0 to 1"),
    ({"MASTER_PORT": "99999"}, "MASTER_PORT is 99999; ports are 1 to 65535"),
    ({"MASTER_PORT": "0"}, "MASTER_PORT is 0; ports are 1 to 65535"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=str)
def test_wrong(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], said: str) -> None:
    for name, value in (TWO | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        check_ranks()


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(platform, "_is_active", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"LOCAL_RANK is 1, and 1 GPUs are visible: .* --nproc-per-node 1 at most"):
        check_ranks()
