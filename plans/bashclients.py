"""Programs that take a program text as an argument or on their standard input: shells, ssh, awk, SQL clients.

bash hands them a value unharmed, but they would parse it: a value inside such a text is code. This file only
says which arguments are texts; ``bashrules`` decides what that means.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .bashforms import Word
from .bashtables import STREAMS

SHELLS = frozenset({"bash", "sh", "dash", "zsh", "ksh", "mksh", "ash", "fish", "rbash"})
_SHELL_FIX = "pass the value as an argument, as in: bash -c 'use \"$1\"' _ {NAME}"


@dataclass(frozen=True, slots=True)
class Client:
    """Where a program's texts are.

    ``texts`` are options whose argument is program text, ``files`` options that name the program's file,
    ``skips`` options with another argument and ``doubles`` those with two. ``first`` is the operand that is a
    text when no option gave one (0 the first, None never); ``rest`` says that all operands after it are texts
    too. ``script``: the first operand names the program's file and ends the options. ``stdin``: without text
    or file the program is read from standard input. ``clusters``: ``-ne`` is ``-n -e``. ``assigns``: operands that
    read ``NAME=…`` are texts.
    """

    fix: str
    texts: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    skips: frozenset[str] = frozenset()
    doubles: frozenset[str] = frozenset()
    first: int | None = None
    rest: bool = False
    script: bool = False
    stdin: bool = False
    clusters: bool = False
    assigns: bool = False


def _set(options: str) -> frozenset[str]:
    return frozenset(options.split())


_AWK_FIX = "pass the value through the environment, as in: X={NAME} awk '… ENVIRON[\"X\"] …'"
_SED_FIX = (
    "do the replacement in a program that gets the value as an argument; sed would parse it as a script"
)
_SQL_FIX = "bind the value as a parameter in a script; inside the text of a query it is SQL"
_SSH_FIX = "send the value on standard input; ssh hands its arguments to a shell on the other machine"
_JQ_FIX = "pass the value with --arg, as in: jq --arg x {NAME} '… $x …'"
_MAKE_FIX = 'pass the value through the environment and use "$$X" in the recipe, as in: X={NAME} make'
_TAR_FIX = "write that command itself: the option's value is run"
_SSH_SKIPS = "-B -b -c -D -E -e -F -I -i -J -L -l -m -O -p -Q -R -S -W -w"


def _script(texts: str, skips: str, arguments: str) -> Client:
    fix = f"pass the value as an argument and read it from the argument list ({arguments})"
    return Client(fix, texts=_set(texts), skips=_set(skips), script=True, stdin=True, clusters=True)


def _sql(texts: str, skips: str = "", *, first: int | None = None) -> Client:
    clusters = first is None
    return Client(
        _SQL_FIX,
        _set(texts),
        skips=_set(skips),
        first=first,
        rest=not clusters,
        stdin=True,
        clusters=clusters,
    )


_AWK = Client(_AWK_FIX, _set("-e --source"), _set("-f --file"), _set("-F -v -i -l --assign"), first=0)
_SED = Client(_SED_FIX, _set("-e --expression"), _set("-f --file"), _set("-l"), first=0, clusters=True)
_SSH = Client(_SSH_FIX, _set("-o"), skips=_set(_SSH_SKIPS), first=0, rest=True, stdin=True)
_REPEATER = Client(_SHELL_FIX, skips=_set("-n -j --jobs --interval"), first=0, rest=True)
_RUNNER = Client(_SHELL_FIX, _set("-c --command"), clusters=True)
_JQ = Client(
    _JQ_FIX,
    files=_set("-f --from-file"),
    skips=_set("--indent"),
    doubles=_set("--arg --argjson --slurpfile --rawfile"),
    first=0,
)

CLIENTS: dict[str, Client] = {
    **dict.fromkeys(("awk", "gawk", "mawk", "nawk"), _AWK),
    **dict.fromkeys(("sed", "gsed"), _SED),
    **dict.fromkeys(
        ("python", "python3", "pypy3"),
        _script("-c", "-W -X", "sys.argv[1]; from a here-document: python3 - {NAME} <<'EOF'"),
    ),
    "perl": _script("-e -E", "-I -M", "$ARGV[0]"),
    "ruby": _script("-e", "-I -r", "ARGV[0]"),
    "node": _script("-e --eval -p --print", "-r", "process.argv[1]"),
    "php": _script("-r", "-d", "$argv[1]"),
    "lua": _script("-e", "-l", "arg[1]"),
    **dict.fromkeys(("Rscript", "R"), _script("-e", "", "commandArgs()")),
    "julia": _script("-e -E --eval --print", "", "ARGS[1]"),
    "octave": _script("--eval", "", "argv(){1}"),
    "gnuplot": _script("-e", "", "ARG1"),
    "pwsh": _script("-c -Command", "", "$args[0]"),
    **dict.fromkeys(
        ("make", "gmake"), Client(_MAKE_FIX, _set("--eval"), skips=_set("-C -f -I -j"), assigns=True)
    ),
    "tar": Client(
        _TAR_FIX, _set("-I --use-compress-program --to-command --checkpoint-action --rsh-command -F")
    ),
    "rsync": Client(_TAR_FIX, _set("-e --rsh")),
    "jq": _JQ,
    "psql": _sql("-c --command", "-d -h -p -U -v -o -f"),
    **dict.fromkeys(("mysql", "mariadb"), _sql("-e --execute", "-h -u -P -D")),
    "sqlite3": _sql("-cmd", "-init -separator", first=1),
    "duckdb": _sql("-c -s -cmd", "-init", first=1),
    "clickhouse-client": _sql("-q --query", "-h --host --port"),
    "sqlcmd": _sql("-Q -q", "-S -U -P -d -i -o"),
    "cqlsh": _sql("-e --execute", "-u -p -f -k"),
    **dict.fromkeys(("mongosh", "mongo"), _sql("--eval")),
    **dict.fromkeys(("ssh", "autossh"), _SSH),
    **dict.fromkeys(("watch", "parallel"), _REPEATER),
    **dict.fromkeys(("su", "script", "flock"), _RUNNER),
    **dict.fromkeys(("bc", "dc", "at", "batch"), Client(_SHELL_FIX, _set("-e --expression"), stdin=True)),
}


@dataclass(slots=True)
class Texts:
    """The words of one client command that are program text, and whether it reads more on standard input."""

    name: str
    fix: str
    words: list[Word] = field(default_factory=list)
    reads_stdin: bool = False


def name_of(word: Word) -> str | None:
    """The program's name without its folder, where the word has one."""
    return (word.text.rpartition("/")[2] if word.text else word.tail) or None


def _known(name: str | None) -> str:
    """The name under which a program is known here: ``python3.11`` is python, ``bash5`` bash."""
    known = name or ""
    return known if known in CLIENTS or known in SHELLS else known.rstrip("0123456789.")


def is_shell(word: Word) -> bool:
    """Whether the word names a shell."""
    return _known(name_of(word)) in SHELLS


def is_interpreter(word: Word, option: Word) -> bool:
    """Whether the word names a script language and ``option`` gives it a program text."""
    client = CLIENTS.get(_known(name_of(word)))
    return client is not None and client.script and _split(option, client)[0] in client.texts


def texts_of(words: Sequence[Word]) -> Texts | None:
    """The program texts of the command ``words``; None when its program is not known to take any."""
    name = name_of(words[0]) if words else None
    known = _known(name)
    if known in SHELLS:
        return _shell_texts(str(name), words[1:])
    client = CLIENTS.get(known)
    return _client_texts(str(name), client, words[1:]) if client else None


def _shell_texts(name: str, arguments: Sequence[Word]) -> Texts:
    """A shell's options end at its script or at the text of -c; a value before that could be an option."""
    texts = Texts(name, _SHELL_FIX)
    command = False
    remaining = iter(arguments)
    for word in remaining:
        option = word.prefix
        if word.text in ("-o", "+o", "-O", "+O"):
            next(remaining, None)
        elif word.text in ("--rcfile", "--init-file"):
            file = next(remaining, None)
            texts.words += [file] if file is not None and not _is_script(file) else []
        elif word.text in ("-", "--"):
            continue
        elif word.text and option[0] in "-+" and len(option) > 1:
            command = command or (option[0] == "-" and option[1] != "-" and "c" in option)
            texts.reads_stdin = texts.reads_stdin or option == "-s"
        else:
            if command or not _is_script(word):
                texts.words.append(word)
            if command and word.dynamic and not word.quoted and not word.holes:
                texts.words += [*remaining][:1]  # an empty $TEXT vanishes, and the next word is the text
            texts.reads_stdin = texts.reads_stdin or (not command and bool(STREAMS.match(word.prefix)))
            return texts
    texts.reads_stdin = True
    return texts


def _is_script(word: Word) -> bool:
    """Whether the word can only be the name of a file: it has a fixed start, or is a fixed file in a folder
    that is not part of the foreach item."""
    if word.prefix:
        return not word.prefix.startswith(("-", "+"))
    return word.slash and not any(hole.name.startswith("ITEM") for hole in word.covers)


def _client_texts(name: str, client: Client, arguments: Sequence[Word]) -> Texts:
    texts = Texts(name, client.fix)
    operands = 0
    given = streams = False
    for word, option, argument in _options(arguments, client):
        if option in client.texts:
            given = True
            texts.words.append(argument or word)
        elif option in client.files:
            given = True
            file = argument.text if argument else option.join(word.prefix.split(option)[1:])
            streams = streams or file == "-" or bool(STREAMS.match(file or ""))
        elif word.text == "-":
            texts.reads_stdin = client.stdin
        elif not option and client.script:
            texts.words += [] if given or texts.reads_stdin or _is_script(word) else [word]
            texts.reads_stdin = texts.reads_stdin or (not given and bool(STREAMS.match(word.prefix)))
            return texts
        elif not option and client.assigns:
            texts.words += [word] if "=" in word.prefix else []
        elif not option:
            texts.words += [word] if _is_text(client, operands, given=given) else []
            operands += 1
    # ssh with a command and an SQL client with a query hand their standard input on as data.
    asked = given or (client.rest and operands > 1)
    texts.reads_stdin = streams or (client.stdin and (texts.reads_stdin or not asked))
    return texts


def _is_text(client: Client, operand: int, *, given: bool) -> bool:
    if client.first is None or (given and not client.rest):
        return False
    return operand == client.first or (client.rest and operand > client.first)


def _options(arguments: Sequence[Word], client: Client) -> Iterator[tuple[Word, str, Word | None]]:
    """Each argument with its option name (empty for an operand) and the word that the option takes."""
    remaining = iter(arguments)
    literal = False
    for word in remaining:
        if literal or not word.prefix.startswith("-") or word.text == "-":
            yield word, "", None
            literal = literal or client.rest
        elif word.text == "--":
            literal = True
        else:
            option, attached = _split(word, client)
            if option in client.doubles:
                next(remaining, None)
            takes = option in client.texts | client.files | client.skips | client.doubles
            yield word, option, (next(remaining, None) if takes and not attached else None)


def _split(word: Word, client: Client) -> tuple[str, bool]:
    """The option's name and whether its argument is in the same word: ``--query=…``, ``-e…``, ``-ne``."""
    name, equals, _ = word.prefix.partition("=")
    if name.startswith("--") or name in client.texts | client.files | client.skips | client.doubles:
        return name, bool(equals) or word.dynamic
    for option in sorted(client.texts):
        # An attached text such as -e'…', or a cluster of letters such as perl's -ne.
        if len(option) == 2 and (name.startswith(option) or (client.clusters and option[1] in name[1:])):
            return option, word.dynamic or not name.endswith(option[1])
    return word.prefix, True
