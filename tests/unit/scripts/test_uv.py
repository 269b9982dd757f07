"""What scripts/uv.sh hands on to uv of pip's settings, as pip lists them."""

import subprocess
from pathlib import Path

import pytest

from tests.unit.scripts.stand_ins import VENV_PYTHON, stand_in

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "uv.sh"
HANDED_ON = (
    "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_STRATEGY", "ALL_PROXY", "UV_INSECURE_HOST", "SSL_CERT_FILE",
)  # fmt: skip


def settings_of_uv(tmp_path: Path, pip_settings: str, **variables: str) -> dict[str, str]:
    """The variables that uv is started with, where ``pip config list`` prints ``pip_settings``."""
    (tmp_path / "scripts").mkdir(exist_ok=True)
    script = tmp_path / "scripts" / "uv.sh"
    script.write_bytes(SCRIPT.read_bytes())
    stand_in(tmp_path / ".venv" / "bin" / "python", VENV_PYTHON)
    stand_in(tmp_path / ".venv" / "bin" / "uv", 'printf "%s|" "$@"; printf "\\0"; env -0')
    environment = {"PATH": "/usr/bin:/bin", "PIP_SETTINGS": pip_settings, **variables}
    output = subprocess.check_output(["bash", str(script), "pip", "a b"], env=environment, text=True)
    arguments, *variables_seen = output.rstrip("\0").split("\0")
    assert arguments == "pip|a b|"
    seen = dict(variable.split("=", 1) for variable in variables_seen)
    assert seen["UV_PYTHON"] == str(tmp_path / ".venv" / "bin" / "python")
    assert seen["UV_PYTHON_DOWNLOADS"] == "never"
    return {name: value for name, value in seen.items() if name in HANDED_ON}


def test_without_settings_nothing_is_set(tmp_path: Path) -> None:
    assert settings_of_uv(tmp_path, "") == {}
    assert settings_of_uv(tmp_path, "global.timeout='9'\nglobal.require-virtualenv='1'\n") == {}


@pytest.mark.parametrize("section", [":env:", "install", "global"])
def test_a_mirror_a_proxy_and_a_certificate_are_handed_on(tmp_path: Path, section: str) -> None:
    settings = {
        "cert": "/a b/ca.pem",
        "index-url": "mirror",
        "extra-index-url": "second third",
        "proxy": "proxy:3128",
        "trusted-host": "mirror:8080",
    }
    pip_settings = "".join(f"{section}.{name}='{value}'\n" for name, value in settings.items())
    assert settings_of_uv(tmp_path, pip_settings) == {
        "SSL_CERT_FILE": "/a b/ca.pem",
        "UV_DEFAULT_INDEX": "mirror",
        "UV_INDEX": "second third",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "ALL_PROXY": "proxy:3128",
        "UV_INSECURE_HOST": "mirror:8080",
    }


def test_pips_environment_comes_before_its_files_and_install_before_global(tmp_path: Path) -> None:
    files = "global.index-url='from-global'\ninstall.index-url='from-install'\n"
    assert settings_of_uv(tmp_path, files)["UV_DEFAULT_INDEX"] == "from-install"
    assert settings_of_uv(tmp_path, f":env:.index-url='from-env'\n{files}")["UV_DEFAULT_INDEX"] == "from-env"


def test_what_is_set_for_uv_stays(tmp_path: Path) -> None:
    pip_settings = "global.index-url='pips'\nglobal.extra-index-url='pips'\n"
    own = {"UV_DEFAULT_INDEX": "own", "UV_INDEX": "own", "UV_INDEX_STRATEGY": "first-index"}
    assert settings_of_uv(tmp_path, pip_settings, **own) == own
    older_name = settings_of_uv(tmp_path, "global.index-url='pips'\n", UV_INDEX_URL="own")
    assert older_name == {}


def test_indexes_on_lines_of_their_own_are_all_handed_on(tmp_path: Path) -> None:
    listed = settings_of_uv(tmp_path, r"global.extra-index-url='\nfirst\nsecond'" + "\n")
    assert listed["UV_INDEX"].split() == ["first", "second"]
