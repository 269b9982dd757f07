"""option_ranges.py where a package is missing; the rest is refused in tests/integration/test_train_refuses.py."""

import argparse
import importlib.util
import re

import pytest

from megatron_longpo.arguments.option_ranges import check_packages
from megatron_longpo.errors import UserError


@pytest.mark.parametrize("option, package", [("wandb-project", "wandb"), ("tensorboard-dir", "tensorboard")])
def test_a_logger_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch, option: str, package: str) -> None:
    args = argparse.Namespace(wandb_project=None, wandb_exp_name="e", tensorboard_dir=None)
    setattr(args, option.replace("-", "_"), "x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(UserError, match=re.escape(f"--{option} needs the package {package}")):
        check_packages(args)
    monkeypatch.undo()
    check_packages(argparse.Namespace(wandb_project=None, tensorboard_dir="x"))
