#!/usr/bin/env bash
# bundle.sh VENV: dist/rigbus-bundle, a folder that installs rigbus on a machine without a network.
#
# BUNDLE_PYTHONS="3.11 3.12"   Python versions of that machine (default: the one of VENV)
# BUNDLE_PLATFORMS="…"         its platform tags as pip knows them, e.g. manylinux_2_28_aarch64 (default: this one)
# BUNDLE_DIR=FOLDER             where it is made
# BUNDLE_EXTRAS=gpu            extras to bring along (llm: its wheel must be kept here first, see make llm-wheel)
set -euo pipefail
python=$(cd "$1/bin" && pwd)/python
bundle=${BUNDLE_DIR:-dist/rigbus-bundle}
wheels=$bundle/wheels
keep=${XDG_CACHE_HOME:-$HOME/.cache}/rigbus/wheels
versions=${BUNDLE_PYTHONS:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf "$bundle"
mkdir -p "$wheels"

# From a clean copy: what an earlier build left in build/ would get into the wheel.
mkdir "$work/source"
tar -cf - --exclude='__pycache__' --exclude='*.pyc' \
    pyproject.toml README.md LICENSE ./*.py py.typed bus agents plans bridge tools | tar -xf - -C "$work/source"
"$python" -m pip wheel -q --disable-pip-version-check --no-deps --wheel-dir "$wheels" "$work/source"
ours=$(ls "$wheels"/rigbus-*.whl)

options=()
for tag in ${BUNDLE_PLATFORMS:-}; do
    options+=(--platform "$tag")
done
if [ -d "$keep" ]; then
    options+=(--find-links "$keep")
fi
for version in $versions; do
    echo "collecting the wheels for Python $version"
    "$python" -m pip download -q --disable-pip-version-check --only-binary=:all: --python-version "$version" \
        ${options[@]+"${options[@]}"} --dest "$wheels" "$ours${BUNDLE_EXTRAS:+[$BUNDLE_EXTRAS]}"
done

cp tools/scripts/install.sh "$bundle/install.sh"
chmod 755 "$bundle/install.sh"
cp LICENSE README.md "$bundle/"
echo "${BUNDLE_EXTRAS:+[$BUNDLE_EXTRAS]}" >"$bundle/EXTRAS"
(cd "$bundle" && "$python" -c 'import hashlib, pathlib
for path in sorted(pathlib.Path("wheels").iterdir()):
    print(hashlib.sha256(path.read_bytes()).hexdigest(), "", path)' >SHA256SUMS)
echo "$bundle: $(find "$wheels" -name '*.whl' | wc -l | tr -d ' ') wheels, $(du -sh "$bundle" | cut -f 1); on the rig: sh install.sh"

# Tried where there is really no network: a network namespace has not even a loopback that is up.
if [ -n "${BUNDLE_PLATFORMS:-}" ]; then
    echo "trial install: not run (the bundle is for another platform)"
elif [[ " $versions " != *" $("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') "* ]]; then
    echo "trial install: not run (the bundle is for Python $versions)"
elif ! unshare -rn true 2>/dev/null; then
    echo "trial install without a network: not run (no network namespace can be made here; Linux: unshare -rn)"
else
    PYTHON=$python unshare -rn sh "$bundle/install.sh" "$work/venv" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        echo "trial install without a network: FAILED" >&2
        exit 1
    }
    echo "trial install without a network: ok ($(grep -m 1 '^rigbus ' "$work/log" || tail -n 1 "$work/log"))"
fi
