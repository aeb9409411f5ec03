#!/usr/bin/env bash
# demo_as_user.sh: `make demo` in a copy of this folder, as a plain user with an empty home. Needs root.
#
# No account is made: the process runs under the ids of "nobody". Says "not run" and why where that cannot be.
set -euo pipefail
name="demo as a plain user"

not_run() {
    echo "$name: not run ($*)"
    exit 0
}

[ "$(id -u)" -eq 0 ] || not_run "this is already a plain user; make demo is the same thing"
command -v setpriv >/dev/null 2>&1 || not_run "no setpriv here"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/home" "$folder/rigbus"
tar -cf - --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude=./dist --exclude=__pycache__ . |
    tar -xf - -C "$folder/rigbus"
chown -R 65534:65534 "$folder"
as_user=(setpriv --reuid=65534 --regid=65534 --clear-groups env -u XDG_CACHE_HOME -u XDG_STATE_HOME
    -u XDG_CONFIG_HOME -u XDG_RUNTIME_DIR -u PYENV_ROOT "HOME=$folder/home" USER=nobody LOGNAME=nobody
    "PATH=/usr/local/bin:/usr/bin:/bin")
cd "$folder/rigbus"
python=
for candidate in python3 python3.13 python3.12 python3.11; do # one in root's home is out of a user's reach
    if "${as_user[@]}" "$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || not_run "no Python 3.11 with venv that a plain user can start"
echo "$name: $("${as_user[@]}" "$python" -V)"
status=0
"${as_user[@]}" make demo PYTHON="$python" </dev/null || status=$?
left=$(pgrep -u 65534 -f "$folder" || true)
if [ -n "$left" ]; then
    echo "$name: processes left: $left" >&2
    status=1
fi
[ "$status" -eq 0 ] && echo "$name: ok"
exit "$status"
