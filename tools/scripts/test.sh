#!/usr/bin/env bash
# test.sh VENV [pytest arguments]: the whole suite.
#
# LLM=0 leaves the model tests out; RIGBUS_REQUIRE_LLM=1 makes their absence an error. llama-cpp-python has to
# be built from source once: that goes on beside the other tests, and the model tests come when it is done.
set -euo pipefail
venv=$1
shift
python=$venv/bin/python
reports=build/test-reports
builder=
mkdir -p "$reports"
rm -f "$reports"/*.xml

say() { printf '\n== %s\n' "$*"; }

stop_builder() { # the build runs in a process group of its own (set -m)
    if [ -n "$builder" ]; then
        kill -TERM -- "-$builder" 2>/dev/null || true
    fi
}
trap stop_builder EXIT

run() { # run NAME [arguments]: pytest's own lines and status
    local name=$1
    shift
    # Live tests mostly wait for processes: three at a time fill two cores. A file's tests stay in one process, the longest
    # files come first (tests/conftest.py says which).
    "$python" -m pytest -n "${JOBS:-3}" --dist loadfile --no-loadscope-reorder --junitxml="$reports/$name.xml" "$@"
}

has_llm() { "$python" -c 'import gguf, llama_cpp; llama_cpp.llama_backend_init()' >/dev/null 2>&1; }

install_llm() { # install_llm WHEEL: the wheel first, so that pip does not build a newer source release
    "$python" -m pip install -q --disable-pip-version-check "$1"
    "$python" -m pip install -q --disable-pip-version-check --editable '.[test-llm]'
    has_llm
}

total() { # one closing line for two runs, counted from their reports
    "$python" - "$reports" <<'PY'
import sys
from pathlib import Path
from xml.etree import ElementTree

suites = [ElementTree.parse(path).getroot().find("testsuite") for path in Path(sys.argv[1]).glob("*.xml")]
count = {name: sum(int(s.get(name, 0)) for s in suites) for name in ("tests", "failures", "errors", "skipped")}
failed = count["failures"] + count["errors"]
print(f"\n{count['tests'] - failed - count['skipped']} passed, {failed} failed, {count['skipped']} skipped")
PY
}

if [ "${LLM:-auto}" = 0 ]; then
    say "the model tests are left out (LLM=0)"
    run all -m "not llm" "$@"
    exit
fi

if ! has_llm && wheel=$(bash tools/scripts/llm_wheel.sh "$venv" --kept-only); then
    say "installing the kept wheel $(basename "$wheel")"
    install_llm "$wheel" || say "it does not work here: building a new one"
fi
if has_llm; then
    run all "$@"
    exit
fi

if ! command -v "${CXX:-c++}" >/dev/null 2>&1 && ! command -v g++ >/dev/null 2>&1; then
    why="model tests not run: llama-cpp-python needs a C++ compiler
   (Debian and Ubuntu: apt-get install g++; macOS: xcode-select --install); then run make test again"
    say "$why"
    status=0
    run all "$@" || status=$?
    say "$why"
    exit "$status"
fi

log=build/llm-wheel.log
say "building llama-cpp-python beside the tests (once, about ten minutes; log: $log; LLM=0 leaves it out)"
rm -f "${wheel:-}"
set -m
bash tools/scripts/llm_wheel.sh "$venv" >"$log.path" 2>"$log" &
builder=$!
set +m

status=0
run rest -m "not llm" "$@" || status=$?
if [ "$status" -eq 5 ]; then # nothing was selected: the arguments name model tests only
    status=0
fi
if kill -0 "$builder" 2>/dev/null; then
    say "waiting for llama-cpp-python"
fi
if ! wait "$builder"; then
    builder=
    tail -n 40 "$log" >&2
    say "model tests not run: llama-cpp-python could not be built (whole log: $log); make test LLM=0 leaves them out"
    exit 1
fi
builder=
install_llm "$(tail -n 1 "$log.path")"
say "the model tests"
llm=0
run llm -m llm "$@" || llm=$?
if [ "$llm" -ne 0 ] && [ "$llm" -ne 5 ]; then
    status=$llm
fi
total
exit "$status"
