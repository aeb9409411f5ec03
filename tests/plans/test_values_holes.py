"""Ways in which bash, or what it starts, parses a value in spite of its quotes. Each runs code in a real bash here,
so that a refusal is not fuss; and each is refused, or warned of where the plan's author chose the value."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rigbus.plans.values import ValueFault, check_argv, rewrite_batch, rewrite_command

from .test_values_bash import run_bash

KNOWN = {"X", "PLAN_PATH"}.__contains__
SUBSCRIPT = "a[$(touch HIT)0]"
CODE = "$(touch HIT)"

# What bash itself parses: refused whoever chose the value.
REFUSED = {
    "an array declared with its value": ('readonly -a A="$V"', "($(touch HIT))"),
    "an associative array declared with its value": ('readonly -A A="$V"', "([0]=$(touch HIT))"),
    "an array declared with an output": ('declare -a A="$(echo "$V")"', "($(touch HIT))"),
    "an array that is declared once more": ('A=(); declare A=$(echo "$V")', "($(touch HIT))"),
    "an integer by an option in a variable": ('F=-i; declare $F n; n="$V"', SUBSCRIPT),
    "an integer that is declared later": ('f() { n="$V"; }; declare -i n; f', SUBSCRIPT),
    "an alias for eval": ('shopt -s expand_aliases\nalias e=eval\ne "$V"', CODE),
    "an alias in BASH_ALIASES": ('shopt -s expand_aliases\nBASH_ALIASES[e]=eval\ne "$V"', CODE),
    "source of a here-string": ('source /dev/stdin <<< "$V"', CODE),
    "source of a here-document": (". /dev/stdin <<E\n$V\nE\n", CODE),
    "source of a pipe": ('echo "$V" | . /dev/stdin', CODE),
    "source of a descriptor": ('source /dev/fd/3 3<<< "$V"', CODE),
    "a descriptor's name": ('echo a >&"$V"', CODE),
    "a part of a descriptor's name": ('{ echo a; } 1>& x"$V"', SUBSCRIPT),
    "an output as a descriptor's name": ('echo a >&"$(echo "$V")"', CODE),
    "a program's place in the hash table": ('hash -p "$V" prog; prog', "./HITTER"),
}
# What a program that bash starts parses, or bash by way of a variable: a warning, and refused for the item.
LATER = {
    "an integer that read fills": ('declare -i n; read n <<< "$V"', SUBSCRIPT),
    "an integer that read fills from a command": ('declare -i n; read n < <(echo "$V")', SUBSCRIPT),
    "an integer that read fills from a pipe": ('declare -i n; echo "$V" | { read n; }', SUBSCRIPT),
    "an integer that a loop reads": ('declare -i n; echo "$V" | while read n; do :; done', SUBSCRIPT),
    "PS4 that read fills": ('set -x; read PS4 <<< "$V"; true', CODE),
    "arithmetic of what a loop reads": ('while read x; do echo $((x)); done <<< "$V"', SUBSCRIPT),
    "eval of what a loop reads": ('while read x; do eval "$x"; done <<< "$V"', CODE),
    "arithmetic of REPLY": ('read <<< "$V"; echo $((REPLY))', SUBSCRIPT),
    "arithmetic of an output of echo": ('y=$(echo "$V"); echo $((y))', SUBSCRIPT),
    "arithmetic of an output of cat": ('y=$(cat <<< "$V"); echo $((y))', SUBSCRIPT),
    "arithmetic of a function's argument": ('f() { echo $(($1)); }; f "$V"', SUBSCRIPT),
    "eval of a function's arguments": ('f() { eval "$@"; }; f "$V"', CODE),
    "eval of a shifted argument": ('f() { shift; eval "$1"; }; f a "$V"', CODE),
    "a function's argument as command": ('f() { $1; }; f "$V"', "touch HIT"),
    "a function's argument in a local": ('f() { local n=$1; echo $((n)); }; f "$V"', SUBSCRIPT),
    "a reference to a function's argument": ('f() { local -n r=$1; echo $r; }; f "$V"', SUBSCRIPT),
    "an argument of set": ('set -- "$V"; [[ $1 -gt 0 ]]', SUBSCRIPT),
    "a declaration of a name in a variable": ('x="$V"; declare "$x=1"', SUBSCRIPT),
    "bash that reads a process": ('bash < <(echo "$V")', CODE),
    "bash that reads /dev/stdin": ('bash /dev/stdin <<< "$V"', CODE),
    "bash that reads a pipe by its name": ('echo "$V" | bash /dev/fd/0', CODE),
    "bash with a start file": ('bash --rcfile "$V" -ic true', "./HITTER"),
    "python of a version": ("python3.11 -c \"import os; os.system('$V')\"", CODE),
    "xargs that replaces by -i": ("echo \"$V\" | xargs -i sh -c 'echo {}'", CODE),
    "xargs that replaces by --replace": ("echo \"$V\" | xargs --replace=% sh -c 'echo %'", CODE),
    "a shell behind a group": ('{ echo "$V"; } | sh', CODE),
    "a shell behind a loop": ('for x in "$V"; do echo "$x"; done | sh', CODE),
    "a shell at the end of a pipe": ('echo "$V" | cat | tee f | sh', CODE),
    "a descriptor's name in a variable": ('N="$V"; echo a >&"$N"', CODE),
    "the last argument of the command before": (': "$V"; eval "$_"', CODE),
    "a computed shell": ('$BASH <<< "$V"', CODE),
    "a computed shell in a pipe": ('echo "$V" | $BASH', CODE),
    "a text that vanishes": ('sh -c $NONE "$V"', CODE),
    "xargs that replaces": ("echo \"$V\" | xargs -I% sh -c 'echo %'", CODE),
    "make's variables": ("printf 'all:\\n\\techo $(X)\\n' > ../m; make -f ../m X=\"$V\"", "; touch HIT"),
    "awk that reads its program": ('awk -f /dev/stdin <<E\nBEGIN { system("$V") }\nE\n', "touch HIT"),
    "tar's compressor": ('tar -I "$V" -cf /dev/null /dev/null', "sh -c 'touch HIT'"),
}


def holed(command: str, name: str) -> str:
    """The command with the placeholder in place of ``$V`` and its quotes."""
    return re.sub(r'"\$V"|\$V\b', lambda _: name, command)


@pytest.mark.parametrize("row", [*REFUSED, *LATER])
def test_it_runs_code_when_nobody_stops_it(row: str, tmp_path: Path) -> None:
    command, payload = {**REFUSED, **LATER}[row]
    program = command.replace("\n", " ").split()[0].split("/")[-1]
    if program in ("make", "python3.11", "awk", "tar") or "make" in command:
        needed = "make" if "make" in command else program
        if not any((Path(place) / needed).exists() for place in os.environ["PATH"].split(":")):
            pytest.skip(f"no {needed} here")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "HITTER").write_text("#!/bin/sh\ntouch HIT\n")
    (folder / "HITTER").chmod(0o755)
    done = run_bash(command, {"V": payload}, folder)
    assert (folder / "HIT").exists(), done.stderr


@pytest.mark.parametrize("name", ["{ITEM.v}", "{X}"])
@pytest.mark.parametrize("row", REFUSED)
def test_what_bash_itself_parses_is_refused(row: str, name: str) -> None:
    command = holed(REFUSED[row][0], name)
    with pytest.raises(ValueFault) as caught:
        rewrite_command(command, KNOWN)
    assert caught.value.fix
    with pytest.raises(ValueFault):
        rewrite_batch(command, 2, KNOWN)


@pytest.mark.parametrize("row", LATER)
def test_what_is_parsed_later_is_a_warning_and_refused_for_the_item(row: str) -> None:
    assert rewrite_command(holed(LATER[row][0], "{X}"), KNOWN).warnings
    with pytest.raises(ValueFault):
        rewrite_command(holed(LATER[row][0], "{ITEM.v}"), KNOWN)


@pytest.mark.parametrize(
    "words",
    [
        ["env", "{X}", "true"],
        ["env", "{X}=1", "true"],
        ["env", "-u", "A", "{X}", "true"],
        ["env", "--", "{X}", "true"],
        ["nohup", "env", "{X}", "true"],
        ["env", "-S", "{X}"],
        ["env", "-iS", "{X}"],
        ["env", "-vS{X}"],
        ["env", "--split-string={X}"],
        ["env", "BASH_FUNC_f%%={X}", "bash", "-c", "f"],
        ["env", "BASH_ENV={X}", "bash", "x"],
        ["sudo", "LD_PRELOAD={X}", "true"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["{ITEM.v}", "{X}"])
def test_env_takes_no_value_for_an_option_or_an_assignment(words: list[str], name: str) -> None:
    words = [word.replace("{X}", name) for word in words]
    with pytest.raises(ValueFault):
        rewrite_command(" ".join(words), KNOWN)
    with pytest.raises(ValueFault):
        check_argv(words, KNOWN)


@pytest.mark.parametrize(
    "command",
    [
        "env A={V} -u B {PLAN_PATH}/run.sh {V}",
        "env -C {V} true; env --chdir={V} true",
        'retry() { "$@" || "$@"; }; retry curl {V}',
        'f() { python3 x.py "$1"; local n=$1; echo "$n"; }; f {V}',
        "printf '%s\\n' {V} | while read -r x; do echo \"$x\"; done",
        "printf '%s\\n' {V} | xargs -n 1 sh -c 'echo \"$1\"' _",
        "n=$(wc -l < {V}); echo $((n + 1))",
        "A=(); A+=({V}); export B={V}; readonly C={V}",
        "declare -a A; A=({V}); f() { local b=$(cat {V}); }; f",
        "make -C {V} all; tar -xf {V} -C /tmp; rsync -a {V} /tmp/",
        'set -- {V}; for x in "$@"; do cp "$x" /tmp; done',
        "source ./env.sh; . {PLAN_PATH_}/env.sh; echo {V}",
        "grep -r python -e {V}",
        "{PLAN_PATH}/.venv/bin/python -m tool {V}",
        "while read -r line; do n=$((n + 1)); done < {V}; echo $n",
        "type ls; hash -r; alias; echo {V}",
    ],
)
def test_ordinary_commands_stay_allowed(command: str) -> None:
    assert (
        rewrite_command(command.replace("{V}", "{ITEM.v}").replace("{PLAN_PATH_}", "."), KNOWN).warnings == ()
    )


def test_a_python_in_the_plans_folder_is_known_for_what_it_is() -> None:
    for command in (
        "{PLAN_PATH}/.venv/bin/python -c 'print(\"{V}\")'",
        "docker exec c python3 -c 'print(\"{V}\")'",
    ):
        with pytest.raises(ValueFault, match="would parse"):
            rewrite_command(command.replace("{V}", "{ITEM.v}"), KNOWN)
