#!/usr/bin/env bash
# Print the path of the Python to build the environment with: 3.12 or newer, with venv.
#
# $PYTHON, if set, is the only candidate. Otherwise 3.12 comes first, because the pins are tested with it, then newer
# ones; each is looked for on PATH and then among pyenv's versions.
set -euo pipefail

# A candidate counts only if it runs this: pyenv puts shims on PATH that fail for versions not selected, and Debian
# ships a Python without ensurepip. The real path is that of the interpreter behind a shim, and outside an activated
# environment, which may be the very one to be made anew.
probe='
import os, sys
sys.version_info >= (3, 12) or sys.exit(1)
import ctypes, ensurepip, ssl, venv
print(os.path.realpath(sys.executable))'

try() {
    local found
    if found=$("$1" -c "$probe" 2>/dev/null) && [ -n "$found" ]; then
        printf '%s\n' "$found"
        exit 0
    fi
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

pyenv_versions() { # $1: name pattern of the version, $2: program; newest first
    local root
    for root in "${PYENV_ROOT:-}" "${HOME:-}/.pyenv"; do
        [ -n "$root" ] || continue
        # shellcheck disable=SC2086  # the pattern is meant to expand
        ls -d "$root"/versions/$1/bin/"$2" 2>/dev/null | sort -rV || true
    done
}

candidates() {
    local minor
    for minor in 3.12 3.13 3.14; do
        type -aP "python$minor" || true
        pyenv_versions "$minor*" "python$minor"
    done
    type -aP python3 || true
    pyenv_versions '3.*' python3
}

if [ -n "${PYTHON:-}" ]; then
    try "$PYTHON"
    seen=$("$PYTHON" -c 'import platform; print("Python " + platform.python_version())' 2>/dev/null) ||
        fail "PYTHON=$PYTHON does not run; set it to a Python 3.12 or newer, or unset it"
    fail "PYTHON=$PYTHON is $seen; Python 3.12 or newer with the modules venv, ensurepip, ssl and ctypes is needed"
fi

while IFS= read -r candidate; do
    try "$candidate"
done < <(candidates)
fail "no Python 3.12 or newer with venv on PATH or under pyenv; install one (Debian, Ubuntu: python3.12 and \
python3.12-venv; pyenv: pyenv install 3.12) or set PYTHON=/path/to/python3.12"
