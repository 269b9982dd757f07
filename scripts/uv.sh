#!/usr/bin/env bash
# Run the uv of .venv on .venv, with pip's settings: behind a mirror or a proxy, pip is what was told the way.
set -euo pipefail
venv=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv
pip_settings=$("$venv/bin/python" -m pip config list)

hand_on() { # $1: pip's name of a setting, $2: uv's variable, which counts where it is set; fails if neither is
    local section value
    [ -z "${!2:-}" ] || return 0
    for section in :env: install global; do # in the order in which pip heeds them
        value=$(sed -n "s/^$section\.$1='\(.*\)'\$/\1/p" <<<"$pip_settings")
        value=${value//\\n/ } # a value of several lines is shown with \n
        [ -z "$value" ] || { export "$2=$value" && return 0; }
    done
    return 1
}

[ -n "${UV_INDEX_URL:-}" ] || hand_on index-url UV_DEFAULT_INDEX || true
# pip takes a version from whichever index has it; the hashes of requirements.txt say that it is the right one.
! hand_on extra-index-url UV_INDEX || export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
hand_on proxy ALL_PROXY || true
hand_on trusted-host UV_INSECURE_HOST || true
hand_on cert SSL_CERT_FILE || true

export UV_PYTHON="$venv/bin/python" UV_PYTHON_DOWNLOADS=never
exec "$venv/bin/uv" "$@"
