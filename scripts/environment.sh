#!/usr/bin/env bash
# Make .venv: the packages of requirements.txt, and the package of this checkout as an editable install.
#
# - pip installs uv, by its hash in requirements.txt, and uv installs everything else.
# - .venv/made-from holds a digest of what .venv was made from. Until all is done it reads "unfinished": a package that
#   was being copied when a set-up was killed looks installed, so the next set-up makes .venv anew.
# - A folder .venv without that file is the user's own and is left alone.
# - One set-up at a time: requirements.txt serves as the lock, which pip and uv inherit and hold until they end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
trap 'printf "interrupted; the next run makes the environment anew\n" >&2; exit 130' INT
# Packages that these name would be taken for those of .venv.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
export PIP_USER=0

GB_NEEDED=8 # measured: 7.6 GB, nearly all of it PyTorch and its CUDA libraries
made_from=.venv/made-from

main() {
    local python="" digest
    exec 9<>requirements.txt
    flock --nonblock 9 || { say "waiting for another set-up of this checkout" && flock 9; }
    digest=$({ pwd -P && cat requirements.txt setup.py megatron_longpo/__init__.py scripts/environment.sh; } | sha256sum)
    [ -z "${PYTHON:-}" ] || python=$(scripts/find_python.sh)
    ! is_ready "$digest" "$python" || return 0
    python=$(scripts/find_python.sh)
    clear_folder
    make_environment "$python"
    runs || fail ".venv does not run: .venv/bin/python -I -c 'import megatron_longpo' says why"
    printf '%s\n' "$digest" >$made_from
    say "ready after $SECONDS s; to work in it: source .venv/bin/activate"
}

is_ready() { # $1: digest, $2: the Python that was asked for, if any
    [ "$(cat $made_from 2>/dev/null)" = "$1" ] && runs &&
        { [ -z "$2" ] || grep -qxF "executable = $2" .venv/pyvenv.cfg; }
}

runs() { # -I: neither this folder nor PYTHONPATH counts, only what is installed in .venv
    .venv/bin/python -I -c 'import megatron_longpo' 2>/dev/null
}

clear_folder() { # leaves .venv with nothing but "unfinished"
    if [ -L .venv ]; then
        say "replacing the link .venv -> $(readlink .venv)"
        rm .venv
    elif [ -e .venv ] && [ ! -e $made_from ] && [ -n "$(ls -A .venv)" ]; then
        fail "$PWD/.venv was not made by this set-up, which makes its environment there; move it away or remove it"
    fi
    mkdir -p .venv
    echo unfinished >$made_from
    find .venv -mindepth 1 -maxdepth 1 ! -path $made_from -exec rm -rf {} +
}

make_environment() { # $1: the Python
    say "making .venv with $1: 3 GB to download, unless uv has them in its cache"
    quietly "$1" -m venv .venv || fail "$1 could not make a virtual environment; set PYTHON to another one"
    sed -n '/^uv==/,/[^\\]$/p' requirements.txt >.venv/uv.txt
    quietly .venv/bin/python -m pip install --no-input --disable-pip-version-check --no-deps --only-binary=:all: \
        --require-hashes -r .venv/uv.txt || fail "pip could not install uv; \`pip config list\` shows where it looks"
    check_room
    # Compiled here once: where PYTHONDONTWRITEBYTECODE is set, as in many images, every start would take 5 s for it. And
    # Python warns of Megatron's escape sequences when it compiles them: here, unseen.
    scripts/uv.sh pip sync --compile-bytecode --require-hashes requirements.txt ||
        fail "uv could not install requirements.txt; the next run begins anew with what it has in its cache"
    scripts/uv.sh pip install --quiet --no-deps --no-build-isolation --editable . ||
        fail "uv could not install the package of this checkout"
}

check_room() {
    # uv unpacks every package into its cache, and links it into .venv where both are on one file system.
    local cache
    cache=$(.venv/bin/uv cache dir)
    mkdir -p "$cache"
    if scripts/uv.sh pip install --dry-run --no-deps "$(grep -o '^torch==[^ ]*' requirements.txt)" 2>&1 |
        grep 'Would download' >/dev/null; then
        check_free "$cache"
    fi
    [ "$(stat -c %d "$cache")" = "$(stat -c %d .venv)" ] || check_free .venv
}

check_free() { # $1: a folder that is going to hold all packages
    local free
    free=$(df -Pk "$1" | awk 'NR == 2 {print int($4 * 1024 / 1e9)}')
    [ "$free" -ge $GB_NEEDED ] || fail "the disk of $(realpath "$1") has $free GB free and $GB_NEEDED GB are needed; \
make room, or set UV_CACHE_DIR (uv's cache) to a folder on a larger disk, at best the one of this checkout"
}

quietly() { # run a command and show what it prints only if it fails
    local output
    output=$("$@" 2>&1) || { printf '%s\n' "$output" >&2 && return 1; }
}

say() {
    printf 'environment: %s\n' "$1"
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

main
