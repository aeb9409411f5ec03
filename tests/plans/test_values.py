"""Values are data: what the lexer rewrites, what it refuses with which fix, and what it leaves alone."""

from __future__ import annotations

import math
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.plans.values import (
    MAX_ARGUMENT_BYTES,
    MAX_VALUE_BYTES,
    VARIABLE,
    Slot,
    ValueFault,
    check_argv,
    encode_value,
    env_name,
    fill,
    list_env_name,
    lookup,
    rewrite_argv,
    rewrite_batch,
    rewrite_command,
    unresolved_in,
    variables_in,
)

KNOWN = {"X", "Y", "PLAN_PATH", "L", "name"}.__contains__
X = '"${RIGBUS_V_X}"'
IN = "${RIGBUS_V_X}"
ID = '"${RIGBUS_V_ITEM_id}"'


def rewritten(command: str) -> str:
    return rewrite_command(command, KNOWN).command


def fault(command: str) -> ValueFault:
    with pytest.raises(ValueFault) as caught:
        rewrite_command(command, KNOWN)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("command", "safe"),
    [
        ("echo {X}", f"echo {X}"),
        ("echo a{X}b{X}", f"echo a{X}b{X}"),
        ('echo "a{X}b"', f'echo "a{IN}b"'),
        ("echo 'a{X}b'", f"echo 'a'{X}'b'"),
        ("echo {ITEM.id} {ITEM}", f'echo {ID} "${{RIGBUS_V_ITEM}}"'),
        ("echo $(cat {X}) \"$(cat {X} '{X}')\"", f"echo $(cat {X}) \"$(cat {X} ''{X}'')\""),
        ("diff <(sort {X}) >(cat {X})", f"diff <(sort {X}) >(cat {X})"),
        ("cat <<E\n{X} \"{X}\" '{X}' $(cat {X})\nE\n", f"cat <<E\n{IN} \"{IN}\" '{IN}' $(cat {X})\nE\n"),
        ("cat > {X} 2>>{X}.log < '{X}'", f"cat > {X} 2>>{X}.log < ''{X}''"),
        ("A={X} B+={X} run", f"A={X} B+={X} run"),
        ("A=(1 {X})", f"A=(1 {X})"),
        ("case {X} in {X}|'{X}') a;; esac", f"case {X} in {X}|''{X}'') a;; esac"),
        ('python3 "{PLAN_PATH}/s.py" {ITEM.id}', f'python3 "${{RIGBUS_V_PLAN_PATH}}/s.py" {ID}'),
        ("{PLAN_PATH}/run.sh {ITEM.id}", f'"${{RIGBUS_V_PLAN_PATH}}"/run.sh {ID}'),
        ("""curl -d '{"a":{"b":{X}}}' u""", f"""curl -d '{{"a":{{"b":'{X}'}}}}' u"""),
        ("echo ${X} {X}", f"echo ${{X}} {X}"),
        ("awk '{print $1, ${X}}' {X}", f"awk '{{print $1, ${{X}}}}' {X}"),
        ("echo {a,b} {print} {X}", f"echo {{a,b}} {{print}} {X}"),
        ("echo a # it's {X}\necho {X}", f"echo a # it's {{X}}\necho {X}"),
        ("echo \\\\{X}", f"echo \\\\{X}"),
    ],
)
def test_a_placeholder_becomes_an_expansion_quoted_for_its_place(command: str, safe: str) -> None:
    assert rewritten(command) == safe


@pytest.mark.parametrize(
    ("command", "literal"),
    [
        ("echo {{X}}", "echo {X}"),
        ("echo '{{ITEM.id}}' \"{{X}}\"", "echo '{ITEM.id}' \"{X}\""),
        ("echo {{MISSING}}", "echo {MISSING}"),
        ("echo {{{X}}}", "echo {{X}}"),
        ("echo {{X}} {X}", f"echo {{X}} {X}"),
        ("eval {{X}}", "eval {X}"),
    ],
)
def test_doubled_braces_are_text(command: str, literal: str) -> None:
    assert rewritten(command) == literal


@pytest.mark.parametrize(
    "command",
    [
        "",
        "echo ${HOME} ${X} $X",
        "awk '{print}' f; awk '{ print $1 }' f",
        "docker ps --format '{{range .A}}{{.B}}{{end}}'",
        "echo {a,b} {1..3} {} {{}} {MISSING} {print}",
        "find . -exec cat {} +",
        "echo `date` $((1+2)) $[1] ${A:-{B}} $'a\\'b' [[ x ]]",
        "cat <<'EOF'\n{name2}\nEOF",
        "echo \"unfinished 'quote",
        "((((",
        "tail \\",
        "\0\x01",
    ],
)
def test_a_command_without_placeholders_is_not_touched(command: str) -> None:
    assert rewrite_command(command, KNOWN).command == command


@given(st.text(alphabet=st.sampled_from("{}$'\"`\\()<>|&;#[]=!~* \n\tabEOF_.0")))
def test_text_that_nobody_knows_is_never_touched(command: str) -> None:
    assert rewrite_command(command, lambda name: False).command == command or "{{" in command


@pytest.mark.parametrize(
    ("command", "what", "fix"),
    [
        ("cat <<'E'\n{X}\nE", "delimiter is quoted", "python3 - {X} <<'EOF'"),
        ('cat <<"E"\n{X}\nE', "delimiter is quoted", "as an argument"),
        ("cat <<\\E\n{X}\nE", "delimiter is quoted", "as an argument"),
        ("cat <<{X}\nE\n", "delimiter", "EOF"),
        ("echo $(({X} + 1))", "inside arithmetic", "program that gets the value"),
        ('echo "$((1 + {X}))"', "inside arithmetic", "program that gets the value"),
        ("echo $[{X}]", "inside arithmetic", "program"),
        ("(( {X} > 1 )) && run", "inside arithmetic", "program"),
        ("for ((i=0; i<{X}; i++)); do run; done", "inside arithmetic", "program"),
        ("let a={X}", "an argument of let", "do the sum"),
        ("[[ {X} == a ]]", "[[", "[ {X} = yes ]"),
        ("if [[ -n '{X}' ]]; then a; fi", "[[", "["),
        ("A[{X}]=1", "subscript", "script"),
        ("A=([{X}]=1)", "subscript", "script"),
        ("echo ${A[{X}]}", "inside ${", "X={X}"),
        ("echo ${A:-{X}}", "inside ${", "X={X}"),
        ('echo "${A#"{X}"}"', "inside ${", "X={X}"),
        ("echo `cat {X}`", "backticks", "$(command {X})"),
        ('echo "`cat {X}`"', "backticks", "$(command {X})"),
        ("echo $'{X}'", "$'…'", "close the quotes"),
        ('echo $"{X}"', '$"…"', "without the dollar"),
        ("echo \\{X}", "backslash", "remove the backslash"),
        ('echo "\\{X}"', "backslash", "{{X}}"),
        ("cat <<E\n\\{X}\nE", "backslash", "remove"),
        ("for {X} in a; do b; done", "loop variable", "name itself"),
        ("{X}() { a; }", "function", "name itself"),
        ("function {X} { a; }", "function", "name itself"),
        ("eval run {X}", "an argument of eval", "write the command"),
        ('eval "$(echo {X})"', "an argument of eval", "write the command"),
        ("\\ev'a'l {X}", "an argument of eval", "write the command"),
        ("command -p eval {X}", "an argument of eval", "write the command"),
        ("builtin eval {X}", "an argument of eval", "write the command"),
        ("time -p eval {X}", "an argument of eval", "write the command"),
        ("! A=1 eval {X}", "an argument of eval", "write the command"),
        ("if true; then eval {X}; fi", "an argument of eval", "write the command"),
        ("a && { eval {X}; }", "an argument of eval", "write the command"),
        ("case a in a) eval {X};; esac", "an argument of eval", "write the command"),
        ("f() { eval {X}; }", "an argument of eval", "write the command"),
        ("echo $(eval {X})", "an argument of eval", "write the command"),
        ("cat <<E\n$(eval {X})\nE", "an argument of eval", "write the command"),
        (">f eval {X}", "an argument of eval", "write the command"),
        ("trap 'rm {X}' EXIT", "an argument of trap", "shell variable"),
        (". {PLAN_PATH}/env", "an argument of .", "file itself"),
        ("source {PLAN_PATH}/env", "an argument of source", "file itself"),
        ("read {X}", "an argument of read", "<<<"),
        ("declare A={X}", "an argument of declare", "line of its own"),
        ("typeset A={X}", "an argument of typeset", "line of its own"),
        ("f() { local a={X}; }", "an argument of local", "line of its own"),
        ("unset {X}", "an argument of unset", "names"),
        ("mapfile {X}", "an argument of mapfile", "names"),
        ("alias a={X}", "an argument of alias", "function"),
        ("compgen -W {X}", "an argument of compgen", "program"),
        ("printf -v A %s {X}", "printf -v", "X={X}"),
        ("printf -v {X} a", "printf -v", "X={X}"),
        ("printf {X} a", "printf's format", "'%s\\n' {X}"),
        ('printf "a {X}\\n"', "printf's format", "'%s\\n' {X}"),
        ('printf "$F" {X}', "format that could assign", "'%s\\n' {X}"),
        ("printf 'a%n' {X}", "format that could assign", "'%s\\n' {X}"),
        ("test -v {X}", "[ -v", "operator"),
        ("[ -v {X} ]", "[ -v", "operator"),
        ("[ -v A -a {X} = b ]", "[ -v", "operator"),
        ("[ {X} {Y} ]", "beside another", "operator"),
        ("[ $OP {X} ]", "beside another", "operator"),
        ("test ! {X} {Y}", "beside another", "operator"),
        ("PATH={X}:$PATH run", "an assignment to PATH", "full path"),
        ("export PATH={X}", "an assignment to PATH", "full path"),
        ("env PATH={X} run", "an assignment to PATH", "full path"),
        ("PS4={X}", "an assignment to PS4", "full path"),
        ("ENV={X} sh a", "an assignment to ENV", "full path"),
        ("BASH_ENV='{X}' bash a", "an assignment to BASH_ENV", "full path"),
        ("IFS={X}", "an assignment to IFS", "full path"),
        ("LD_PRELOAD={X} a", "an assignment to LD_PRELOAD", "full path"),
        ("PA\\\nTH={X}", "an assignment to PATH", "full path"),
        ("RANDOM={X}", "an assignment to RANDOM", "another name"),
        ("for OPTIND in {X}; do a; done", "an assignment to OPTIND", "another name"),
        ("declare -i n; n={X}", "an assignment to n", "another name"),
        ("declare -n n=m; n={X}", "an assignment to n", "another name"),
        ("export {X}", "chooses the variable", "export NAME={X}"),
        ("export {X}=1", "chooses the variable", "export NAME={X}"),
        ("{ITEM.cmd} a", "chooses the command", "command's name"),
        ("./{ITEM.cmd}", "chooses the command", "command's name"),
        ("a | {ITEM}", "chooses the command", "command's name"),
        ("nohup {ITEM.cmd}", "chooses the command", "command's name"),
        ("timeout 5 {ITEM.cmd}", "chooses the command", "command's name"),
        ("env A=1 -u B {ITEM.cmd}", "chooses the command", "command's name"),
        ("exec {ITEM}", "chooses the command", "command's name"),
        ("find . -exec {ITEM.cmd} \\;", "chooses the command", "command's name"),
        ("$CMD {X}", "name is computed", "argv"),
        ("e{v,}al {X}", "name is computed", "argv"),
    ],
)
def test_a_place_where_bash_parses_the_value_is_refused_with_the_fix(
    command: str, what: str, fix: str
) -> None:
    caught = fault(command)
    assert what in caught.what
    assert fix in caught.fix


@pytest.mark.parametrize(
    "command",
    [
        "echo 'a {X}",
        'echo "a {X}',
        "echo `a {X}",
        "echo $(a {X}",
        "echo ${a {X}",
        "echo {X})",
        "(echo {X}",
        "echo {X} \\",
        "echo a(b) {X}",
        "shopt -s extglob; ls @(a|b) {X}",
        "coproc cat {X}",
        "cat <<E\n{X}",
        "cat <<E\n{X}\n E\n",
        "cat <<E\nfoo\\\nE\n{X}",
        "echo $(cat <<E\n{X}\nE)",
        "case a in b {X}) c;; esac",
        "case a in b) {X}",
        "((a) {X}",
        "$((echo a) | cat) {X}",
        'echo "${A:-it\'s}" {X}',
        "A=(a {X}",
        "[[ a {X}",
        "echo {X};;",
        "echo > ; echo {X}",
        "cat <<E 'a\nb'\n{X}\nE\n",
        "${ echo a; } {X}",
        "echo $\\\n{X}",
        "$(" * 200 + "{X}" + ")" * 200,
        "echo {X}\0",
    ],
)
def test_what_the_lexer_does_not_understand_is_refused(command: str) -> None:
    fault(command)


def test_a_fault_knows_its_line_and_offset() -> None:
    caught = fault("echo a\necho b\n  eval {X}")
    assert (caught.line, caught.offset) == (3, 21)
    assert str(caught) == f"{caught.what}; {caught.fix}"


@pytest.mark.parametrize(
    "command",
    [
        "[ {X} = {Y} ] && [ ! -f {X} ] && test -n {X}",
        "[ {X} -eq 3 ] || [ -d {X}/a -a -e {Y} ]",
        "read -r a b <<< {X}",
        "while read -r l; do echo {X}; done < {Y}",
        "local a=$(cat {X})",
        "export A={X} B=1; readonly C={X}",
        "printf '%s %d' {X} {Y}; printf -- '%s' {X}",
        "declare -i n=0; m={X}; n=$((n+1))",
        "trap 'rm x' EXIT; eval 'a'; echo {X}",
        "[[ a == b* && $c =~ ^(a|b)$ ]] && echo {X}",
        "A[i+1]=2; B=([0]=a [1]={X}); echo ${A[0]} ${#B[@]} ${A%.*} {X}",
        "for i in 1 2; do ((i++)); done; for ((;;)); do echo {X}; done",
        "x=`date`; echo $'a\\'b' $\"c\" {X}",
        "cat <<'E' - <<-F\n'{y\nE\n\t{X}\n\tF\n",
        "select a in {X}; do b; done; until a; do b; done",
        "exec 3>{X}; exec {fd}<{X}; echo a >&3 2>&1 &>f",
        "command -v {X} >/dev/null",
        "(a; b) | { c; } && ! d & e {X}",
        "if a; then b; elif c; then d {X}; else e; fi >{X}",
        "bash {PLAN_PATH}/a.sh {ITEM.id}; python3 -u {PLAN_PATH}/a.py {ITEM.id}; python3 -m mod {ITEM.id}",
        "bash -c 'echo \"$1\"' _ {ITEM.id}; bash -eu ./a.sh {ITEM}",
        "X={ITEM.id} awk '{ print ENVIRON[\"X\"] }' f; awk -v a={ITEM.id} '{ print a }' {ITEM.f}",
        "jq --arg x {ITEM.id} '.[$x]' {ITEM.f}; sed -n 5p {ITEM.f}; sed -e s/a/b/ {ITEM.f}",
        "perl -ne 'print' {ITEM.f}; psql -v x={ITEM.id} -f q.sql; sqlite3 {ITEM.db} 'select 1'",
        "python3 - {ITEM.id} <<'E'\nimport sys\nE",
        "printf '%s\\n' {ITEM.id} | ssh -i {X} host cat",
        'ITEMS={ITEM.f}; echo ${ITEMS%.*} "${ITEMS:-x}" $(wc -l < "$ITEMS")',
        "N=$(wc -l < {ITEM.f}); echo $((N + 1))",
        "D={ITEM.dir}; [[ $D == a ]] && echo b",
    ],
)
def test_ordinary_commands_pass_without_a_warning(command: str) -> None:
    assert rewrite_command(command, KNOWN).warnings == ()


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ('bash -c "echo {V}"', "bash would parse"),
        ("sh -ec 'echo {V}'", "sh would parse"),
        ("timeout 5 bash -c 'echo {V}'", "bash would parse"),
        ("xargs -I% sh -c 'echo {V} %'", "sh would parse"),
        ("docker exec c sh -c 'echo {V}'", "sh would parse"),
        ("find . -exec bash -c 'echo {V}' \\;", "bash would parse"),
        ("bash {V}", "bash would parse"),
        ("bash <<E\necho {V}\nE", "standard input"),
        ("bash <<< 'echo {V}'", "standard input"),
        ("echo 'echo {V}' | sh", "standard input"),
        ("cat <<E | bash -s\n{V}\nE", "standard input"),
        ("ssh host 'ls {V}'", "ssh would parse"),
        ("ssh {V} uptime", "ssh would parse"),
        ("ssh -p 22 host ls {V}", "ssh would parse"),
        ("awk '/{V}/ { print }' f", "awk would parse"),
        ('gawk -F: "{V}" f', "gawk would parse"),
        ("sed 's/a/{V}/' f", "sed would parse"),
        ("sed -n -e '/{V}/p' f", "sed would parse"),
        ("perl -pe 's/{V}//' f", "perl would parse"),
        ("python3 -c 'print(\"{V}\")'", "python3 would parse"),
        ("python3 <<E\nprint('{V}')\nE", "standard input"),
        ("node -e '{V}'", "node would parse"),
        ("jq '.{V}' f", "jq would parse"),
        ("psql db -Atc \"select '{V}'\"", "psql would parse"),
        ("mysql --execute='{V}'", "mysql would parse"),
        ("sqlite3 a.db 'select {V}'", "sqlite3 would parse"),
        ("watch ls {V}", "watch would parse"),
        ("su - u -c 'ls {V}'", "su would parse"),
        ("N={V}; echo $((N + 1))", "reaches arithmetic"),
        ("N={V}; ((N > 1)) && a", "reaches arithmetic"),
        ("N={V}; M=$N; [[ $M -gt 1 ]]", "reaches test"),
        ("N={V}; A[N]=1", "reaches subscript"),
        ("N={V}; echo ${A[N]} ${A:N}", "reaches parameter"),
        ("N={V}; echo ${!N}", "reaches parameter"),
        ("N={V}; echo ${N@P}", "reaches parameter"),
        ('N={V}; eval "$N"', "reaches eval"),
        ('N={V}; bash -c "$N"', "program text"),
        ("N={V}; $N a", "names a command"),
        ("for N in {V}; do let $N; done", "reaches let"),
        ("read N <<< {V}; echo $((N))", "reaches arithmetic"),
        ("N={V}; [ -v $N ]", "reaches [ -v"),
        ("N={V}; PATH=$N", "an assignment to PATH"),
    ],
)
def test_a_text_that_a_program_parses_later_is_a_warning_and_a_fault_for_items(
    command: str, what: str
) -> None:
    warnings = rewrite_command(command.replace("{V}", "{X}"), KNOWN).warnings
    assert any(what in warning and warning.startswith("line ") for warning in warnings)
    assert what in fault(command.replace("{V}", "{ITEM.a}")).what


def test_a_value_of_the_plan_may_name_the_command_with_a_warning() -> None:
    assert "names the command" in rewrite_command("{X} {ITEM.id}", KNOWN).warnings[0]
    assert rewrite_command("{X}", KNOWN).warnings == ()


@given(
    st.lists(
        st.sampled_from(
            [
                "{X}",
                "{ITEM.a}",
                *"'\"`$(){}[]<>|&;#\\= \n",
                "<<E\n",
                "\nE\n",
                "$((",
                "[[ ",
                "case ",
                " in ",
                "a",
            ]
        ),
        max_size=30,
    )
)
def test_no_command_fails_in_any_other_way_than_a_fault(parts: list[str]) -> None:
    command = "".join(parts)
    caught = None
    try:
        rewrite_command(command, KNOWN, {"X": 2})
        rewrite_batch(command, 2, KNOWN)
    except ValueFault as fault:
        caught = fault
    assert caught is None or (caught.fix and 0 <= caught.offset <= len(command) and caught.line >= 1)
    assert all(VARIABLE.match(command, one.offset) for one in variables_in(command))


def test_names_and_slots_come_once_each_in_order() -> None:
    result = rewrite_command("a {Y} {ITEM.id} {X} {Y} # {name}", KNOWN)
    assert result.variables == ("Y", "ITEM.id", "X")
    assert result.slots == (
        Slot("RIGBUS_V_Y", "Y"),
        Slot("RIGBUS_V_ITEM_id", "ITEM.id"),
        Slot("RIGBUS_V_X", "X"),
    )


# -- lists ---------------------------------------------------------------------------------------


def test_a_list_as_a_bare_word_is_several_words_and_json_elsewhere() -> None:
    result = rewrite_command('run {L} "{L}" --x={L} > {L}', KNOWN, {"L": 2})
    words = '"${RIGBUS_L_L_0}" "${RIGBUS_L_L_1}"'
    whole = "${RIGBUS_V_L}"
    assert result.command == f'run {words} "{whole}" --x="{whole}" > "{whole}"'
    assert fill(result.slots, {"L": ["a b", {"c": 1}]}) == {
        "RIGBUS_L_L_0": "a b",
        "RIGBUS_L_L_1": '{"c":1}',
        "RIGBUS_V_L": '["a b",{"c":1}]',
    }


def test_an_empty_list_is_no_word_but_never_the_command() -> None:
    assert rewrite_command("run {L} a", KNOWN, {"L": 0}).command == "run  a"
    with pytest.raises(ValueFault, match="empty list"):
        rewrite_command("{L} eval a", KNOWN, {"L": 0})
    with pytest.raises(ValueFault, match="eval"):
        rewrite_command("command {L} eval {X}", KNOWN, {"L": 0})
    with pytest.raises(ValueFault, match="beside another"):
        rewrite_command("[ {L} ]", KNOWN, {"L": 2})


def test_a_list_that_changed_since_is_a_fault() -> None:
    slots = rewrite_command("run {L}", KNOWN, {"L": 2}).slots
    for value in (["a"], "text", None):
        with pytest.raises(ValueFault, match="not the list"):
            fill(slots, {"L": value})


# -- batches -------------------------------------------------------------------------------------


def test_a_batch_is_one_group_an_item_with_its_own_variables() -> None:
    batch = rewrite_batch("run {X} '{ITEM.id}'", 2, KNOWN)
    assert batch.command == (
        "set -e\nrun \"${RIGBUS_V_X}\" ''\"${RIGBUS_V_0_ITEM_id}\"''\n"
        "case $? in 0) ;; *) exit $? ;; esac\n"
        "run \"${RIGBUS_V_X}\" ''\"${RIGBUS_V_1_ITEM_id}\"''\n"
    )
    assert fill(batch.slots, {"X": "x"}, [{"id": 1}, {"id": 2}]) == {
        "RIGBUS_V_X": "x",
        "RIGBUS_V_0_ITEM_id": "1",
        "RIGBUS_V_1_ITEM_id": "2",
    }


def test_a_batch_ends_with_the_first_item_that_fails_also_in_the_midst_of_a_list() -> None:
    batch = rewrite_batch("test {ITEM} != 2 && echo {ITEM}", 3, KNOWN)
    env = {**os.environ, **fill(batch.slots, {}, [1, 2, 3])}
    done = subprocess.run(["bash", "-c", batch.command], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "1\n")


def test_a_batch_keeps_its_groups_apart() -> None:
    assert rewrite_batch("run # {{ITEM}}", 2, KNOWN).command == (
        "set -e\nrun # {ITEM}\ncase $? in 0) ;; *) exit $? ;; esac\nrun # {ITEM}\n"
    )
    for command, items in (("run \\", 2), ("run {ITEM} \\", 2), ("run", 0)):
        with pytest.raises(ValueFault):
            rewrite_batch(command, items, KNOWN)


# -- the environment -----------------------------------------------------------------------------


def test_common_names_stay_readable_in_the_environment() -> None:
    assert env_name("PLAN_PATH") == "RIGBUS_V_PLAN_PATH"
    assert env_name("ITEM") == "RIGBUS_V_ITEM"
    assert env_name("ITEM.id") == "RIGBUS_V_ITEM_id"
    assert env_name("ITEM.file_name") == "RIGBUS_V_ITEM_file_name"
    assert env_name("ITEM.id", item=3) == "RIGBUS_V_3_ITEM_id"


segments = st.text(alphabet="aI_TEMu05", min_size=1, max_size=5)
names = st.one_of(
    st.builds(".".join, st.lists(segments, min_size=1, max_size=4)),
    st.builds(lambda parts: ".".join(["ITEM", *parts]), st.lists(segments, max_size=3)),
    st.builds(lambda part: f"ITEM_{part}", segments),
).filter(lambda name: VARIABLE.fullmatch("{" + name + "}") is not None)
keys = st.tuples(names, st.one_of(st.none(), st.integers(0, 12)), st.one_of(st.none(), st.integers(0, 12)))


@given(keys, keys)
def test_two_names_never_share_an_environment_variable(
    one: tuple[str, int | None, int | None], other: tuple[str, int | None, int | None]
) -> None:
    def variable(key: tuple[str, int | None, int | None]) -> str:
        name, item, element = key
        return env_name(name, item=item) if element is None else list_env_name(name, element, item=item)

    assert (variable(one) == variable(other)) == (one == other)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a b", "a b"),
        (True, "True"),
        (False, "False"),
        (None, ""),
        (0, "0"),
        (1.5, "1.5"),
        (10**20, "1" + "0" * 20),
        ({"a": [1, True, None, "é"]}, '{"a":[1,true,null,"é"]}'),
        ([], "[]"),
        ("x" * MAX_VALUE_BYTES, "x" * MAX_VALUE_BYTES),
    ],
)
def test_a_value_becomes_text(value: object, text: str) -> None:
    assert encode_value(value) == text


def circular() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


def deep() -> list[object]:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    "value",
    [
        "x" * (MAX_VALUE_BYTES + 1),
        "é" * (MAX_VALUE_BYTES // 2 + 1),
        "a\0b",
        "\ud800",
        {"a": "\udfff"},
        {"a": math.nan},
        [math.inf],
        b"bytes",
        {1, 2},
        {("a",): 1},
        10**5000,
        object(),
        circular(),
        deep(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_cannot_be_passed_is_a_fault(value: object) -> None:
    with pytest.raises(ValueFault) as caught:
        encode_value(value)
    assert caught.value.fix
    assert len(str(caught.value)) < 300


def test_lookup_walks_objects_and_lists() -> None:
    item = {"id": 7, "a": {"b": ["x", {"c": None}]}, "0": "zero"}
    assert lookup(item, "") is item
    assert lookup(item, "id") == 7
    assert lookup(item, "a.b.0") == "x"
    assert lookup(item, "a.b.1.c") is None
    assert lookup(item, "0") == "zero"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x", "{ITEM.x}: ITEM has no x; its fields are: a, id"),
        ("a.x", "{ITEM.a.x}: ITEM.a has no x; it is a list of 1 elements, numbered from 0"),
        ("a.1", "{ITEM.a.1}: ITEM.a has no 1; it is a list of 1 elements, numbered from 0"),
        ("a.0.z", "{ITEM.a.0.z}: ITEM.a.0 has no z; it is an empty object"),
        ("id.z", "{ITEM.id.z}: ITEM.id has no z; it is a text; write {ITEM.id}"),
    ],
)
def test_a_missing_field_is_named_with_those_that_are_there(path: str, message: str) -> None:
    with pytest.raises(ValueFault) as caught:
        lookup({"id": "7", "a": [{}]}, path)
    assert str(caught.value) == message


def test_a_slot_without_a_value_is_a_fault_that_names_it() -> None:
    with pytest.raises(ValueFault, match="--set X="):
        fill([Slot("RIGBUS_V_X", "X")], {})
    with pytest.raises(ValueFault, match="foreach"):
        fill([Slot("RIGBUS_V_ITEM", "ITEM")], {})
    with pytest.raises(ValueFault, match="a value with a NUL"):
        fill([Slot("RIGBUS_V_X", "X")], {"X": "\0"})
    assert fill([Slot("E", "X.a")], {"X": {"a": 1}}) == {"E": "1"}


# -- the argv form -------------------------------------------------------------------------------


def test_argv_words_get_their_values_as_plain_text() -> None:
    values = {"X": "$(a) '\"", "ITEM.id": "", "L": ["a b", ""]}
    argv = ["p", "{X}", "a{X}/{ITEM.id}b", "{{X}}", "${X}", "{MISSING}", "{L}", "x{L}", "{ITEM}"]
    assert rewrite_argv(argv, values) == [
        *["p", "$(a) '\"", "a$(a) '\"/b", "{X}", "${X}", "{MISSING}"],
        *["a b", "", 'x["a b",""]', "{ITEM}"],
    ]


@pytest.mark.parametrize("word", ["a\0b", "\ud800", "{X}{X}", "x" * (MAX_ARGUMENT_BYTES + 1)])
def test_an_argument_that_no_program_can_get_is_a_fault(word: str) -> None:
    with pytest.raises(ValueFault):
        rewrite_argv([word], {"X": "x" * MAX_VALUE_BYTES})


def test_argv_that_starts_a_shell_is_checked_like_a_command() -> None:
    assert check_argv(["python3", "{PLAN_PATH}/x.py", "{ITEM.id}"], KNOWN) == ()
    assert check_argv(["bash", "-c", 'echo "$1"', "_", "{ITEM.id}"], KNOWN) == ()
    assert "bash would parse" in check_argv(["bash", "-c", "echo {X}"], KNOWN)[0]
    for argv in (
        ["bash", "-c", "echo {ITEM.id}"],
        ["{ITEM.id}"],
        ["env", "{ITEM.id}"],
        ["ssh", "h", "{ITEM.id}"],
    ):
        with pytest.raises(ValueFault):
            check_argv(argv, KNOWN)


# -- names in a command --------------------------------------------------------------------------


def test_every_name_in_braces_is_found_with_its_place() -> None:
    command = "a {A} \"{B}\" '{C.d}' ${E} {{F}} # {G}\ncat <<E\n{H}\nE\necho $(({I})) '{J}"
    assert [(one.name, one.line, one.context) for one in variables_in(command)] == [
        ("A", 1, "bare"),
        ("B", 1, "double quotes"),
        ("C.d", 1, "single quotes"),
        ("G", 1, "comment"),
        ("H", 3, "here-document"),
        ("I", 5, "refused"),
        ("J", 5, "unknown"),
    ]
    assert all(command[one.offset :].startswith("{" + one.name + "}") for one in variables_in(command))


def test_a_name_that_was_meant_as_a_variable_is_unresolved() -> None:
    def names(command: str) -> list[str]:
        return [one.name for one in unresolved_in(command, KNOWN)]

    assert names("echo {MISSING} '{MISSING2}' {target} \"{target2}\" {X} {ITEM.id}") == [
        *["MISSING", "MISSING2", "target", "target2"]
    ]
    assert names("awk '{print}' f # {NOTE}") == []
    assert names("python3 - <<E\nprint(f'{x}')\nE\necho ${HOME} {a,b} {{MISSING}}") == []
