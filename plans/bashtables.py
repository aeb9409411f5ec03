"""The builtins, variables and programs of which bash or the program itself parses what they get.

Each line about a builtin or a variable was tried on bash; ``bashrules`` gives them their meaning.
"""

import re

ARGV = 'or use the argv form: - **argv**: ["program", "{NAME}"]'

# Builtins that evaluate their arguments, or take them for names of variables, callbacks or options of bash.
PARSING = {
    "eval": "eval runs its arguments as code; write the command itself",
    "trap": "trap runs its argument as code; put the value in a shell variable and single-quote the handler",
    ".": "the file would be chosen by the value; name the file itself and pass the value as a variable",
    "source": "the file would be chosen by the value; name the file itself and pass the value as a variable",
    "let": "let evaluates its arguments; do the sum in a program that gets the value as an argument",
    "alias": "an alias is parsed as code; use a function",
    **dict.fromkeys(
        ("read", "mapfile", "readarray", "getopts", "unset", "wait"),
        "it takes its arguments for names of variables; write the names, and give values with <<<",
    ),
    **dict.fromkeys(
        ("declare", "typeset", "local"),
        "it parses its arguments; declare the name first and assign on a line of its own, as in: X={NAME}",
    ),
    **dict.fromkeys(
        ("compgen", "complete", "compopt", "bind", "enable", "hash", "jobs", "fc", "history", "coproc"),
        "it parses its arguments; call a program with the value as an argument instead",
    ),
}
EXPORTING = frozenset({"export", "readonly"})
DECLARING = frozenset({"declare", "typeset", "local", "readonly", "export"})
# bash reads these itself and parses what they hold.
READ_BY_BASH = frozenset(
    {"PS0", "PS1", "PS2", "PS4", "ENV", "BASH_ENV", "PATH", "IFS", "PROMPT_COMMAND", "SHELLOPTS", "BASHOPTS"}
    | {"BASH_CMDS", "BASH_ALIASES", "BASH_LOADABLES_PATH"}
)
# Integers by nature: bash evaluates what is assigned to them, subscripts with $(…) included.
INTEGERS = frozenset(
    {"RANDOM", "SRANDOM", "OPTIND", "HISTCMD", "SECONDS", "LINENO", "BASHPID", "PPID", "UID", "EUID"}
    | {"EPOCHSECONDS", "EPOCHREALTIME", "COMP_CWORD", "COMP_POINT", "COMP_TYPE", "COMP_KEY"}
)
EMITTERS = frozenset({"echo", "printf", "cat"})
# Commands that hand on what they read.
PASSING = frozenset({"cat", "tee", "sort", "uniq", "head", "tail", "tac", "tr", "grep", "sed", "envsubst"})
# Commands of which an argument is often the name of a program that they do not run.
NAMING = frozenset({"grep", "egrep", "fgrep", "rg", "echo", "printf", "which", "type"})
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\+?=")

# Programs that run another: options with an argument, and operands before the command.
RUNNERS: dict[str, tuple[frozenset[str], int]] = {
    "command": (frozenset(), 0),
    "builtin": (frozenset(), 0),
    "exec": (frozenset({"-a"}), 0),
    "env": (frozenset({"-u", "--unset", "-C", "--chdir", "-S", "--split-string"}), 0),
    "nohup": (frozenset(), 0),
    "setsid": (frozenset(), 0),
    "nice": (frozenset({"-n", "--adjustment"}), 0),
    "ionice": (frozenset({"-c", "-n", "-p"}), 0),
    "stdbuf": (frozenset({"-i", "-o", "-e"}), 0),
    "timeout": (frozenset({"-s", "--signal", "-k", "--kill-after"}), 1),
    "taskset": (frozenset(), 1),
    "chrt": (frozenset(), 1),
    "time": (frozenset({"-f", "--format", "-o", "--output"}), 0),
    "sudo": (frozenset({"-u", "-g", "-h", "-p", "-C", "-D", "-R", "-T"}), 0),
    "doas": (frozenset({"-u", "-C"}), 0),
    "xargs": (frozenset({"-I", "-n", "-P", "-L", "-d", "-a", "-s", "-E"}), 0),
}
SETS_ENVIRONMENT = frozenset({"env", "sudo", "doas"})
# A word such as -S or -iS, whose argument env splits into a command of its own.
SPLITS = re.compile(r"-[A-Za-z0]*S|--split-string=?\Z|--split-string=")
# Files that are what a command is given to read.
STREAMS = re.compile(r"/dev/(?:stdin|fd/[0-9]+)|/proc/(?:self|[0-9$]+)/fd/[0-9]+")
FIND_RUNS = frozenset({"-exec", "-execdir", "-ok", "-okdir"})
