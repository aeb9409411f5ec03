#!/bin/sh
# venv.sh PYTHON VENV: the virtual environment VENV made by PYTHON, unless a usable one is there.
set -eu
python=$1
venv=$2

if ! command -v "$python" >/dev/null 2>&1; then
    echo "no $python found: install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2
    exit 1
fi
if ! "$python" -c '' 2>/dev/null; then # a version manager's shim that stands for nothing
    echo "$python is there but does not start; name another one: make PYTHON=python3.12" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "$python is $("$python" -V 2>&1 | head -n 1), but rigbus needs Python 3.11 or newer;" >&2
    echo "name another one: make PYTHON=python3.12" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
fi

wanted=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
found=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
# One that was moved has no working pip any more; one of another version is not what was asked for.
if [ "$found" = "$wanted" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi
echo "making $venv with $("$python" -V 2>&1)"
"$python" -m venv --clear "$venv"
