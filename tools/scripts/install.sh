#!/bin/sh
# install.sh [FOLDER]: install rigbus from this folder alone; no network is used.
#
# FOLDER is the virtual environment to make or to bring up to date (default ~/.local/share/rigbus/venv).
# PYTHON names the Python to use (default python3; 3.11 or newer).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
venv=${1:-${XDG_DATA_HOME:-$HOME/.local/share}/rigbus/venv}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "rigbus needs Python 3.11 or newer as '$python'; name another one: PYTHON=python3.12 sh install.sh" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python has no venv module (Debian and Ubuntu: the package python3-venv)" >&2
    exit 1
fi
# A stick or a copy over a bad link can lose bytes; a wheel that is broken should be named now.
"$python" - "$here" <<'PY' || exit 1
import hashlib
import sys
from pathlib import Path

here = Path(sys.argv[1])
for line in (here / "SHA256SUMS").read_text("utf-8").splitlines():
    digest, name = line.split(maxsplit=1)
    try:
        found = hashlib.sha256((here / name).read_bytes()).hexdigest()
    except OSError as error:
        sys.exit(f"{here / name}: {error.strerror}; copy the whole folder again")
    if found != digest:
        sys.exit(f"{here / name}: is not the file that was bundled (sha256 differs); copy it again")
PY
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    mkdir -p "$(dirname "$venv")"
    "$python" -m venv --clear "$venv"
fi
# PIP_*: settings that name an index would be asked first; this install must not depend on any.
install() {
    env -u PIP_INDEX_URL -u PIP_EXTRA_INDEX_URL -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null "$venv/bin/python" -m pip \
        install --quiet --disable-pip-version-check --no-index --find-links "$here/wheels" "$@"
}
install --upgrade "rigbus$(cat "$here/EXTRAS")" || {
    version=$("$venv/bin/python" -c 'import sys, sysconfig; print("%d.%d" % sys.version_info[:2], sysconfig.get_platform())')
    echo "this bundle has no wheels for Python $version; make one that has: BUNDLE_PYTHONS=… make bundle" >&2
    exit 1
}
install --force-reinstall --no-deps rigbus # two bundles may carry the same version
echo "installed; put it on your PATH or call it so: $venv/bin/rigbus demo"
"$venv/bin/rigbus" version
