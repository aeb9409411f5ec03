"""The value lexer against bash itself: evil values in every allowed place, byte-exact, and nothing runs."""

from __future__ import annotations

import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rigbus.plans.values import ValueFault, check_argv, fill, rewrite_argv, rewrite_batch, rewrite_command

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")

EVIL = [
    "",
    " ",
    "  a  b  ",
    "\t",
    "\n",
    "a\nb",
    "\na\n\n",
    "\r\n",
    "plain",
    "a b; rm -rf x",
    "--help",
    "-n",
    "-e",
    "-rf",
    "-v",
    "--",
    "-",
    "!",
    "(",
    ")",
    "=",
    "]",
    "[[",
    "{",
    "}",
    "{a,b}",
    "{1..9}",
    "*",
    "?",
    "[a-z]*",
    "/*",
    "~",
    "~root",
    "~+",
    "$",
    "$$",
    "$HOME",
    "${HOME}",
    "${HOME:-x}",
    "$@",
    "$1",
    "$?",
    "\\",
    "\\\\",
    "a\\",
    "\\n",
    "\\$HOME",
    "\\'",
    '\\"',
    "'",
    '"',
    "'\"'\"'",
    '"\'"',
    "`",
    "#",
    "# x",
    "a#b",
    ";",
    "&",
    "&&",
    "|",
    "||",
    "<",
    ">",
    ">>",
    "<<EOF",
    "EOF",
    "\nEOF\n",
    "\nEOF\ntouch HIT\n",
    "END\ntouch HIT",
    "$(touch HIT)",
    "`touch HIT`",
    "${IFS}touch${IFS}HIT",
    "$(touch HIT",
    "`touch HIT",
    "; touch HIT",
    "\ntouch HIT\n",
    "&& touch HIT",
    "|| touch HIT",
    "| touch HIT",
    "& touch HIT &",
    "'; touch HIT; '",
    "'$(touch HIT)'",
    '"; touch HIT; "',
    '"$(touch HIT)"',
    '"; touch HIT #',
    "'; touch HIT #",
    ") ; touch HIT ; (",
    "}; touch HIT; {",
    "';touch HIT;echo '",
    '";touch HIT;echo "',
    "$'\\n'touch HIT",
    "$'touch HIT'",
    '$"touch HIT"',
    "<(touch HIT)",
    ">(touch HIT)",
    "> HIT",
    ">HIT",
    "a[$(touch HIT)]",
    "a[$(touch HIT)]=1",
    "x[`touch HIT`]",
    "[$(touch HIT)0]=1",
    "([0]=$(touch HIT))",
    "($(touch HIT))",
    "-Stouch HIT",
    "-pa[$(touch HIT)0]",
    "BASH_ENV=HIT",
    "$((a[$(touch HIT)]))",
    "$[$(touch HIT)]",
    "${x[$(touch HIT)]}",
    "${x:=$(touch HIT)}",
    "${!x@P}",
    "() { :; }; touch HIT",
    "(){ touch HIT; }",
    "eval touch HIT",
    "exec touch HIT",
    "source HIT",
    "-c 'touch HIT'",
    "%s%s%n",
    "%n",
    "\\x24(touch HIT)",
    "\\044(touch HIT)",
    "{{ITEM.v}}",
    "{ITEM.v}",
    "{PLAN_PATH}",
    "${RIGBUS_V_PLAN_PATH}",
    "é",
    "日本語",
    "\u202e\u200b",
    "\u00a0",
    "\U0001f600",
    "e\u0301",
    "\x01",
    "\x02\x03\x04",
    "\x7f",
    "a\x01b\x7fc\x01\x01",
    "\x1b[31m",
    "\x1b]0;x\x07",
    "\x08\x0b\x0c",
    "\ufeff",
    "\ufffd\uffff",
    "a" * 65_536,
    "'" * 300,
    '"' * 300,
    "\\" * 301,
    "$(" * 100,
    string.punctuation,
    string.punctuation[::-1],
    "".join(map(chr, range(1, 128))),
]

# Each command prints one value, framed by its own text, and a NUL.
CONTEXTS = {
    "bare": r"printf '%s\0' {ITEM.v}",
    "bare, joined on both sides": r"printf '%s\0' a{ITEM.v}b",
    "beside another": r"printf '%s%s\0' {ITEM.v} {PLAN_PATH}",
    "twice in one word": r"printf '%s\0' {ITEM.v}{ITEM.v}",
    "after an equals sign": r"printf '%s\0' --x={ITEM.v}",
    "after a tilde": r"printf '%s\0' ~{ITEM.v}",
    "in a brace expansion": r"printf '%s' {,x{ITEM.v}}; printf '\0'",
    "after $": r"printf '%s\0' \$'$'{ITEM.v}",
    "double quotes": r"""printf '%s\0' "{ITEM.v}" """,
    "double quotes with other things": r"""printf '%s\0' "a \"b\" \\ \$x it's {ITEM.v}'c'" """,
    "double quotes after a variable": r"""A=1; printf '%s\0' "$A{ITEM.v}${A}$" """,
    "single quotes": r"printf '%s\0' '{ITEM.v}'",
    "single quotes with other things": r"""printf '%s\0' 'a\"$x`b{ITEM.v}\'"c" """,
    "single quotes after a backslash": r"printf '%s\0' 'a\{ITEM.v}'",
    "substitution": r"""printf '%s\0' "$(printf '%s.' {ITEM.v})" """,
    "substitution in quotes in quotes": r"""printf '%s\0' "$(printf '%s.' "$(printf '%s.' "{ITEM.v}")")" """,
    "substitution with a case": r"""printf '%s\0' "$(case x in (x) printf '%s.' '{ITEM.v}';; esac)" """,
    "substitution with a comment": "printf '%s\\0' \"$(printf '%s.' {ITEM.v} # it's \"\n)\"",
    "process substitution": r"cat <(printf '%s' {ITEM.v}); printf '\0'",
    "redirected process substitution": r"cat < <(printf '%s' '{ITEM.v}'); printf '\0'",
    "here-document": "cat <<EOF\n{ITEM.v}\nEOF\nprintf '\\0'",
    "here-document with quotes": "cat <<EOF\n\"it's\\\\ \\$x {ITEM.v}\"\nEOF\nprintf '\\0'",
    "here-document with tabs": "cat <<-EOF\n\t{ITEM.v}\n\tEOF\nprintf '\\0'",
    "here-document with a joined line": "cat <<EOF\na\\\nEOF{ITEM.v}\nEO\\\nF\nprintf '\\0'",
    "substitution in a here-document": "cat <<EOF\n$(printf '%s.' {ITEM.v} \"{ITEM.v}\" '{ITEM.v}')\nEOF\nprintf '\\0'",
    "two here-documents": "cat <<A - <<B\n'\nA\n{ITEM.v}\nB\nprintf '\\0'",
    "after a quoted here-document": "cat <<'EOF' >/dev/null\n'\"$(\nEOF\nprintf '%s\\0' {ITEM.v}",
    "here-document in a substitution": "printf '%s\\0' \"$(cat <<EOF\n{ITEM.v}.\nEOF\n)\"",
    "here-string": r"cat <<< {ITEM.v}; printf '\0'",
    "assignment": r"""X={ITEM.v}; printf '%s\0' "$X" """,
    "assignment for one command": r"""X={ITEM.v} Y=1 awk 'BEGIN { printf "%s%c", ENVIRON["X"], 0 }' """,
    "export": r"""export X={ITEM.v}; printf '%s\0' "$X" """,
    "env": r"""env -- X={ITEM.v} awk 'BEGIN { printf "%s%c", ENVIRON["X"], 0 }' """,
    "array": r"""X=(a {ITEM.v} [5]={ITEM.v}); X+=({ITEM.v}); printf '%s\0' "${X[1]}${X[5]}${X[6]}" """,
    "array element": r"""X[3]={ITEM.v}; printf '%s\0' "${X[3]}" """,
    "for": r"""for x in {ITEM.v}; do printf '%s\0' "$x"; done""",
    "case": r"""case {ITEM.v} in "{ITEM.v}") printf '%s\0' {ITEM.v} ;; *) echo no ;; esac""",
    "case pattern": r"""X={ITEM.v}; case $X in {ITEM.v}) printf '%s\0' {ITEM.v} ;; *) echo no ;; esac""",
    "test": r"""if [ {ITEM.v} = "{ITEM.v}" ] && [ x != x{ITEM.v}y ]; then printf '%s\0' {ITEM.v}; fi""",
    "function": r"""f() { printf '%s\0' "$1" ; }; f {ITEM.v}""",
    "function's body": r"""function f { printf '%s\0' {ITEM.v}; }; f""",
    "subshell and group": r"""( { printf '%s\0' {ITEM.v}; } )""",
    "pipe": r"printf '%s' {ITEM.v} | cat; printf '\0'",
    "while": r"while true; do printf '%s\0' {ITEM.v}; break; done",
    "set": r"""set -- {ITEM.v}; printf '%s\0' "$1" """,
    "after arithmetic": r"""i=$((1 + (2 << 1))); ((i++)); [[ $i -gt 1 && 'a' == a* ]]; printf '%s\0' {ITEM.v}""",
    "after a comment": "echo >/dev/null # don't \"\nprintf '%s\\0' {ITEM.v}",
    "after a continued line": "printf \\\n '%s\\0' \\\n {ITEM.v}",
    "a shell's argument": r"""bash -c 'printf "%s\0" "$1"' _ {ITEM.v}""",
    "an argument of a wrapped command": r"timeout 20 env -u X printf '%s\0' {ITEM.v}",
    "until": r"until printf '%s\0' {ITEM.v}; do :; done",
    "elif and else": r"if false; then :; elif printf '%s' {ITEM.v}; then printf '\0'; else echo no; fi",
    "select": r"""select x in {ITEM.v} b; do printf '%s\0' "$x"; break; done <<< 1 2>/dev/null""",
    "case with two clauses": r"""case b in a) : {ITEM.v} ;; (b) printf '%s\0' "{ITEM.v}" ;; esac""",
    "pipe of both streams": r"printf '%s' {ITEM.v} |& cat; printf '\0'",
    "timed": r"TIMEFORMAT=; { time -p printf '%s\0' {ITEM.v} ; } 2>/dev/null",
    "here-string in quotes": r"""cat <<< "<{ITEM.v}>"; printf '\0'""",
    "here-string on another descriptor": r"""exec 3<<< {ITEM.v}; cat <&3; printf '\0'""",
    "here-document before a comment": "cat <<EOF # it's a \"\n{ITEM.v}\nEOF\nprintf '\\0'",
    "here-document in a condition": "if true; then cat <<EOF; fi\n{ITEM.v}\nEOF\nprintf '\\0'",
    "here-document in a function": "f() { cat <<EOF\n{ITEM.v}\nEOF\n}\nf; printf '\\0'",
    "here-document in a here-document's substitution": (
        "cat <<EOF\n$(cat <<END\n{ITEM.v}.\nEND\n)\nEOF\nprintf '\\0'"
    ),
    "function in a substitution": r"""printf '%s\0' "$(f() { printf '%s.' {ITEM.v}; }; f)" """,
    "output of a process substitution": r"printf '%s' {ITEM.v} > >(cat; printf '\0'); wait $!",
    "array of lines": r"""mapfile -d '' A < <(printf '%s\0' {ITEM.v}); printf '%s\0' "${A[0]}" """,
    "associative array": r"""unset A; declare -A A; A=([k]={ITEM.v}); A+=([l]={ITEM.v}); printf '%s\0' "${A[k]}" """,
    "assignment that appends": r"""X=; X+={ITEM.v}; X+="{ITEM.v}"; printf '%s\0' "$X" """,
    "assignment of an output": r"""X=$(printf '%s.' '{ITEM.v}'); printf '%s\0' "$X" """,
    "local in a function": r"""f() { local X; X={ITEM.v}; printf '%s\0' "$X"; }; f""",
    "readonly in a subshell": r"""( readonly X={ITEM.v}; printf '%s\0' "$X" )""",
    "negated": r"""! [ {ITEM.v} != '{ITEM.v}' ] && printf '%s\0' {ITEM.v}""",
    "beside $ and a comment's sign": r"""printf '%s\0' \#{ITEM.v}"#"{ITEM.v}'#'""",
    "in the background": r"printf '%s\0' {ITEM.v} & wait $!",
    "an argument by way of xargs": r"""printf '%s\0' {ITEM.v} | xargs -0 -n 1 bash -c 'printf "%s\0" "$1"' _""",
    "escaped braces beside it": r"printf '%s\0' {{ITEM.v}}'{{ITEM.v}}'{ITEM.v}",
}


def expected(context: str, value: str) -> str:
    """What the command of the context prints before the NUL."""
    v = value
    framed = {
        "bare, joined on both sides": f"a{v}b",
        "beside another": f"{v}/the plan's $HOME",
        "twice in one word": v + v,
        "after an equals sign": f"--x={v}",
        "after a tilde": f"~{v}",
        "in a brace expansion": f"x{v}",
        "after $": f"$${v}",
        "double quotes with other things": f"a \"b\" \\ $x it's {v}'c'",
        "double quotes after a variable": f"1{v}1$",
        "single quotes with other things": f'a\\"$x`b{v}\\c',
        "single quotes after a backslash": f"a\\{v}",
        "substitution": f"{v}.",
        "substitution in quotes in quotes": f"{v}..",
        "substitution with a case": f"{v}.",
        "substitution with a comment": f"{v}.",
        "here-document": f"{v}\n",
        "here-document with quotes": f'"it\'s\\ $x {v}"\n',
        "here-document with tabs": f"{v}\n",
        "here-document with a joined line": f"aEOF{v}\n",
        "substitution in a here-document": f"{v}.{v}.{v}.\n",
        "two here-documents": f"{v}\n",
        "here-document in a substitution": f"{v}.",
        "here-string": f"{v}\n",
        "array": v * 3,
        "here-string in quotes": f"<{v}>\n",
        "here-string on another descriptor": f"{v}\n",
        "here-document before a comment": f"{v}\n",
        "here-document in a condition": f"{v}\n",
        "here-document in a function": f"{v}\n",
        "here-document in a here-document's substitution": f"{v}.\n",
        "function in a substitution": f"{v}.",
        "assignment that appends": v * 2,
        "assignment of an output": f"{v}.",
        "beside $ and a comment's sign": f"#{v}#{v}#",
        "escaped braces beside it": f"{{ITEM.v}}{{ITEM.v}}{v}",
    }
    return framed.get(context, v)


def run_bash(script: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    assert BASH is not None
    clean = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "LC_ALL": "C.UTF-8"}
    raw = {name.encode(): value.encode() for name, value in (clean | environment).items()}
    return subprocess.run(
        [BASH, "-c", script],
        env=raw,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        timeout=30,
        check=False,
    )


def test_there_are_at_least_a_hundred_different_evil_values() -> None:
    assert len(set(EVIL)) == len(EVIL) >= 100


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_evil_value_arrives_unchanged_and_nothing_runs(context: str, tmp_path: Path) -> None:
    batch = rewrite_batch(CONTEXTS[context], len(EVIL), {"PLAN_PATH"}.__contains__)
    environment = fill(batch.slots, {"PLAN_PATH": "/the plan's $HOME"}, [{"v": value} for value in EVIL])
    done = run_bash(batch.command, environment, tmp_path)

    assert done.stderr == b""
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
    printed = done.stdout.split(b"\0")
    wanted = [expected(context, value).encode() for value in EVIL]
    assert printed.pop() == b""
    assert len(printed) == len(wanted)
    for value, got, want in zip(EVIL, printed, wanted, strict=True):
        assert got == want, value[:80]


def test_a_redirection_writes_the_file_that_the_value_names(tmp_path: Path) -> None:
    names = [
        value for value in EVIL if value not in ("", "/*") and "/" not in value and len(value.encode()) < 256
    ]
    batch = rewrite_batch("printf x > ./{ITEM.v}; printf y >> './{ITEM.v}'", len(names), lambda name: False)
    done = run_bash(batch.command, fill(batch.slots, {}, [{"v": name} for name in names]), tmp_path)

    assert done.stderr == b""
    written = {os.fsencode(path.name) for path in tmp_path.iterdir()}
    assert written == {name.encode() for name in names if name not in (".", "..")}


def test_a_list_becomes_one_word_an_element(tmp_path: Path) -> None:
    values = ["a b", "", "$(touch HIT)", "-n"]
    command = r"""printf '[%s]' {L}; printf '|%s' x{L} "{L}"; for x in {L}; do printf '<%s>' "$x"; done; A=({L})
        printf '%s' ${#A[@]}"""
    rewritten = rewrite_command(command, {"L"}.__contains__, {"L": len(values)})
    done = run_bash(rewritten.command, fill(rewritten.slots, {"L": values}), tmp_path)

    as_json = '["a b","","$(touch HIT)","-n"]'
    words = "[a b][][$(touch HIT)][-n]"
    assert done.stdout.decode() == f"{words}|x{as_json}|{as_json}<a b><><$(touch HIT)><-n>4"
    assert list(tmp_path.iterdir()) == []


def test_every_evil_value_of_a_list_is_one_word(tmp_path: Path) -> None:
    command = (
        r"""printf '%s\0' {L}; for x in {L}; do printf '%s\0' "$x"; done; A=({L}); printf '%s\0' "${A[@]}" """
    )
    values = [value for value in EVIL if len(value) < 1000]
    rewritten = rewrite_command(command, {"L"}.__contains__, {"L": len(values)})
    done = run_bash(rewritten.command, fill(rewritten.slots, {"L": values}), tmp_path)

    assert done.stdout.split(b"\0") == [*[value.encode() for value in values] * 3, b""]
    assert list(tmp_path.iterdir()) == []


def test_every_evil_value_reaches_an_argv_unchanged(tmp_path: Path) -> None:
    script = "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    values = {f"V{number}": value for number, value in enumerate(EVIL)}
    template = [*(f"{{{name}}}" for name in values), *(f"--x={{{name}}}y" for name in values), "{L}"]
    assert check_argv(["python3", "-c", script, *template], values.__contains__) == ()
    argv = rewrite_argv(template, {**values, "L": EVIL})
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], cwd=tmp_path, capture_output=True, timeout=30, check=False
    )

    assert done.stderr == b""
    wanted = [*EVIL, *(f"--x={value}y" for value in EVIL), *EVIL]
    assert done.stdout.split(b"\0") == [value.encode() for value in wanted]
    assert list(tmp_path.iterdir()) == []


def test_a_batch_stops_at_its_first_failure(tmp_path: Path) -> None:
    batch = rewrite_batch("printf '%s,' {ITEM}; test {ITEM} != 2", 3, lambda name: False)
    done = run_bash(batch.command, fill(batch.slots, {}, [1, 2, 3]), tmp_path)

    assert (done.returncode, done.stdout) == (1, b"1,2,")


# Bash evaluates these however well the value is quoted; the test shows that a refusal is not fuss.
EVALUATED = [
    'RANDOM="$V"',
    'OPTIND="$V"',
    'for RANDOM in "$V"; do :; done',
    'declare -i N; N="$V"',
    '[ -v "$V" ]',
    'A=-v; [ "$A" "$V" ]',
    'printf -v "$V" x',
    'read "$V" <<< x',
    'let N="$V"',
    '[[ "$V" -eq 1 ]]',
    "echo $(( V ))",
    "X[$V]=1",
    'eval "$V=1"',
    'declare "$V=1"',
    'compgen -W "$V" >/dev/null',
]


@pytest.mark.parametrize("command", EVALUATED)
def test_what_bash_evaluates_in_spite_of_quotes_is_refused(command: str, tmp_path: Path) -> None:
    done = run_bash(command, {"V": "a[$(touch HIT)0]"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["HIT"], done.stderr

    with pytest.raises(ValueFault):
        rewrite_command(re.sub(r'"\$V"|\$V|\bV\b', "{ITEM.v}", command), lambda name: False)


FRAGMENTS = [
    *["{ITEM.v}"] * 12,
    *" \n;|&()<>$'\"`\\#{}[]=!~*",
    *[
        "  ",
        "\t",
        "\\\n",
        "&&",
        "||",
        ";;",
        "$(",
        "$((",
        "))",
        "((",
        "${",
        "<(",
        "<<<",
        "<<EOF\n",
        "\nEOF\n",
        "<<-'E'\n",
    ],
    *["\nE\n", "[[ ", " ]]", "[ ", " ]", "$'", '$"', "${A:-", "${A[", "A=", "A+=(", "A[", "B=", "$A", "$B"],
    *[
        "echo ",
        "printf %s ",
        "true ",
        "if ",
        "then ",
        "fi ",
        "for x in ",
        "do ",
        "done ",
        "case ",
        "esac ",
        " in ",
    ],
    *[
        "x) ",
        "f() ",
        "{ ",
        "} ",
        "! ",
        "time ",
        "eval ",
        "test ",
        "-v ",
        "read A ",
        "a",
        "export ",
        "declare -i ",
        "set ",
    ],
    *["command ", "local ", "function g ", "return ", "RANDOM=", "B=1 ", "let ", "unset ", "env ", ": "],
    *[
        "readonly -a A=",
        "declare -a A=",
        "declare A=",
        "A=()",
        "readonly ",
        "source ",
        ". ",
        "/dev/stdin ",
        "hash -p ",
    ],
    *[
        "select x in ",
        "mapfile A ",
        "<<< ",
        "| ",
        "|& ",
        "-S ",
        "xargs -I% ",
        "sh -c ",
        "'echo %' ",
        "shift;",
        "$1 ",
    ],
    *[
        "shopt -s expand_aliases\nalias e=eval\n",
        "\ne ",
        "$_ ",
        "BASH_ALIASES[e]=eval\n",
        "{ read n; ",
        "while read n; ",
    ],
]
PAYLOADS = [
    "a[$(touch HIT)0]",
    "$(touch HIT)",
    "`touch HIT`",
    "'; touch HIT; '",
    '"; touch HIT; "',
    "; touch HIT;",
    "\ntouch HIT\n",
    "\nEOF\ntouch HIT\n",
    ")\ntouch HIT\n(",
    "}; touch HIT; {",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(FRAGMENTS), min_size=2, max_size=24), payload=st.sampled_from(PAYLOADS))
def test_a_random_command_never_runs_its_value(parts: list[str], payload: str, tmp_path: Path) -> None:
    try:
        rewritten = rewrite_command("".join(parts), lambda name: False)
    except ValueFault:
        return
    environment = fill(rewritten.slots, {}, [{"v": payload}])
    run_bash(rewritten.command, environment, tmp_path)
    assert not (tmp_path / "HIT").exists()
