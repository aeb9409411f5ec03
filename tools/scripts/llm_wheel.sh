#!/usr/bin/env bash
# llm_wheel.sh VENV: build the wheel of llama-cpp-python unless one that fits is kept; print its path.
#
# It is published as source only and takes about ten minutes of two cores, so the wheel is kept in
# ${XDG_CACHE_HOME:-~/.cache}/rigbus/wheels for the next clone. Talk goes to stderr.
set -euo pipefail
python=$1/bin/python
keep=${XDG_CACHE_HOME:-$HOME/.cache}/rigbus/wheels
requirement=$("$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["llm"])')

kept() { # the newest kept wheel that this Python can install and that meets the requirement
    local wheel
    for wheel in $(ls -t "$keep"/llama_cpp_python-*.whl 2>/dev/null); do
        if "$python" -m pip install -q --dry-run --no-index --no-deps --force-reinstall "$wheel" >/dev/null 2>&1 &&
            "$python" -c 'import sys
from pathlib import Path
from packaging.requirements import Requirement
version = Path(sys.argv[2]).name.split("-")[1]
sys.exit(not Requirement(sys.argv[1]).specifier.contains(version))' "$requirement" "$wheel"; then
            echo "$wheel"
            return 0
        fi
    done
    return 1
}

if kept; then
    exit 0
fi
if [ "${2:-}" = --kept-only ]; then
    exit 1
fi
if ! command -v "${CXX:-c++}" >/dev/null 2>&1 && ! command -v g++ >/dev/null 2>&1; then
    echo "no C++ compiler: install one (Debian and Ubuntu: apt-get install g++; macOS: xcode-select --install)" >&2
    exit 1
fi
mkdir -p "$keep"
building=$(mktemp -d "$keep/.building.XXXXXX")
trap 'rm -rf "$building"' EXIT
echo "building $requirement (about ten minutes on two cores)" >&2
nice -n 19 "$python" -m pip wheel --disable-pip-version-check --no-deps --wheel-dir "$building" "$requirement" >&2
mv "$building"/*.whl "$keep"/
kept
