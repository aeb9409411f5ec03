"""DESIGN §5, "Values are data", row by row: what is rewritten and how, and what is refused with which fix."""

from __future__ import annotations

import pytest

from rigbus.plans.values import (
    MAX_VALUE_BYTES,
    ValueFault,
    check_argv,
    encode_value,
    fill,
    rewrite_argv,
    rewrite_batch,
    rewrite_command,
)

KNOWN = {"X", "L"}.__contains__
V = "${RIGBUS_V_X}"

REWRITTEN = {
    'bare → "${V}"': ("run {X}", f'run "{V}"'),
    'in "…" → ${V}': ('run "a {X}"', f'run "a {V}"'),
    "in an unquoted heredoc → ${V}": ("cat <<E\na {X}\nE\n", f"cat <<E\na {V}\nE\n"),
    "in '…' → close, \"${V}\", reopen": ("run 'a {X} b'", f"run 'a '\"{V}\"' b'"),
    "$(…) recursively": ("run \"$(a $(b '{X}'))\"", f"run \"$(a $(b ''\"{V}\"''))\""),
    "comments included": ("run # it's {X}\nrun {X}", f'run # it\'s {{X}}\nrun "{V}"'),
    "$'…' included": ("run $'\\'' {X}", f"run $'\\'' \"{V}\""),
    "here-documents included": ("cat <<'E'\n'\nE\nrun {X}", f"cat <<'E'\n'\nE\nrun \"{V}\""),
    "unrelated braces are untouched": (
        "echo ${HOME} {a,b} {X}; awk '{print}'",
        f"echo ${{HOME}} {{a,b}} \"{V}\"; awk '{{print}}'",
    ),
    "{{ escapes": ("echo {{X}} {X}", f'echo {{X}} "{V}"'),
}


@pytest.mark.parametrize("row", REWRITTEN)
def test_a_value_is_put_in_as_an_expansion(row: str) -> None:
    command, safe = REWRITTEN[row]
    assert rewrite_command(command, KNOWN).command == safe


REFUSED = {
    "quoted-delimiter heredoc": ("cat <<'E'\n{V}\nE\n", "<<'EOF'"),
    "arithmetic $((": ("echo $(( {V} ))", "a program that gets the value as an argument"),
    "arithmetic ((": ("(( {V} ))", "a program that gets the value as an argument"),
    "arithmetic let": ("let a={V}", "a program that gets the value as an argument"),
    "[[ … ]]": ("[[ {V} == a ]]", "use [ … ] or case instead"),
    "subscripts": ("A[{V}]=1", "use a script"),
    "${…} operators": ("echo ${A:-{V}}", "; then use ${X…}"),
    "backticks": ("echo `run {V}`", "write $(command {V})"),
    "$'…'": ("echo $'{V}'", "close the quotes around it"),
    "any argument of eval": ("eval run {V}", "write the command itself"),
    "any argument of trap": ("trap 'rm {V}' EXIT", "single-quote the handler"),
    "any argument of .": (". ./{V}", "name the file itself"),
    "any argument of source": ("source ./{V}", "name the file itself"),
    "any argument of read": ("read {V}", "give values with <<<"),
    "any argument of declare": ("declare A={V}", "assign on a line of its own"),
    "any argument of typeset": ("typeset A={V}", "assign on a line of its own"),
    "any argument of local": ("f() { local A={V}; }; f", "assign on a line of its own"),
    "any argument of unset": ("unset {V}", "write the names"),
    "printf -v": ("printf -v A %s {V}", "write X={V}"),
    "test -v": ("test -v {V}", "[ -n {V} ]"),
    "[ -v": ("[ -v {V} ]", "[ -n {V} ]"),
    "an assignment to PS4": ("PS4={V}; run", "pass the value as an argument"),
    "an assignment to ENV": ("ENV={V} sh x", "pass the value as an argument"),
    "an assignment to BASH_ENV": ("BASH_ENV={V} bash x", "pass the value as an argument"),
    "an assignment to PATH": ("PATH={V} run", "full path"),
    "an assignment to IFS": ("IFS={V}", "pass the value as an argument"),
    "an assignment to LD_*": ("LD_LIBRARY_PATH={V} run", "pass the value as an argument"),
    "{ITEM} in command position": ("{ITEM.v} a", "write the command's name"),
    "whatever the lexer does not understand": ("coproc run {V}", "use a pipe"),
    "a value ends in a backslash's place": ("echo \\{V}", "remove the backslash"),
}


@pytest.mark.parametrize("kind", ["{ITEM.v}", "{X}"])
@pytest.mark.parametrize("row", REFUSED)
def test_a_place_where_bash_would_parse_the_value_is_refused_with_its_fix(row: str, kind: str) -> None:
    command, fix = REFUSED[row]
    with pytest.raises(ValueFault) as caught:
        rewrite_command(command.replace("{V}", kind), KNOWN)
    assert fix.replace("{V}", kind) in caught.value.fix
    assert caught.value.line >= 1


LATER = {
    "N={X}; $((N))": "N={V}; echo $((N))",
    "-c": "bash -c 'run {V}'",
    "ssh": "ssh host 'run {V}'",
    "awk": "awk '/{V}/' f",
    "sql": "sqlite3 a.db \"select '{V}'\"",
}


@pytest.mark.parametrize("row", LATER)
def test_what_a_command_does_with_it_later_is_a_warning_and_an_error_for_the_item(row: str) -> None:
    (warning,) = rewrite_command(LATER[row].replace("{V}", "{X}"), KNOWN).warnings
    assert warning.startswith("line 1: {X}: ")
    with pytest.raises(ValueFault):
        rewrite_command(LATER[row].replace("{V}", "{ITEM.v}"), KNOWN)


def test_the_safe_form_is_argv() -> None:
    argv = ["python3", "{P}/x.py", "{ITEM.id}"]
    assert check_argv(argv, {"P"}.__contains__) == ()
    assert rewrite_argv(argv, {"P": "/p", "ITEM.id": "$(x) '"}) == ["python3", "/p/x.py", "$(x) '"]


@pytest.mark.parametrize(
    ("value", "text"),
    [({"a": [1]}, '{"a":[1]}'), ([1, "b"], '[1,"b"]'), (True, "True"), (False, "False")],
    ids=["dict = compact JSON", "list = compact JSON", "booleans True", "booleans False"],
)
def test_values_have_one_spelling(value: object, text: str) -> None:
    assert encode_value(value) == text


@pytest.mark.parametrize(
    "value", ["x" * (MAX_VALUE_BYTES + 1), "a\0b"], ids=["one value ≤ 64 KiB", "without NUL"]
)
def test_a_value_that_no_environment_holds_is_refused(value: str) -> None:
    with pytest.raises(ValueFault):
        encode_value(value)


def test_batch_lines_and_lists_have_names_of_their_own() -> None:
    batch = rewrite_batch("run {ITEM.id}", 2, KNOWN)
    assert [slot.env for slot in batch.slots] == ["RIGBUS_V_0_ITEM_id", "RIGBUS_V_1_ITEM_id"]
    listed = rewrite_command("run {L}", KNOWN, {"L": 2})
    assert fill(listed.slots, {"L": ["a b", "c"]}) == {"RIGBUS_L_L_0": "a b", "RIGBUS_L_L_1": "c"}
