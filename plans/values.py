"""Values are data: how the values of a plan reach its commands.

A ``{NAME}`` of a shell command is never replaced by text. It becomes the expansion of an environment
variable, quoted for the place where it stands, and the value travels in the environment:

    cp {SRC}/a.txt "out/{ITEM.id}"    becomes    cp "${RIGBUS_V_SRC}"/a.txt "out/${RIGBUS_V_ITEM_id}"

So no bash expansion parses a value where it is put in. A place where quotes cannot keep that promise is
refused with the fix. Everything here is pure: text and values in, text and an environment out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .bashforms import Context, Lexed, NotUnderstood, Placement, Region, Word
from .bashlex import lex
from .bashrules import judge, judge_argv
from .environment import MAX_VALUE_BYTES, Slot, encode_value, env_name, fill, list_env_name, lookup
from .placeholders import Hole, ValueFault, find_holes, is_item, line_of
from .variables import VARIABLE

__all__ = [
    "MAX_ARGUMENT_BYTES",
    "MAX_VALUE_BYTES",
    "VARIABLE",
    "Found",
    "Rewritten",
    "Slot",
    "ValueFault",
    "check_argv",
    "encode_value",
    "env_name",
    "fill",
    "list_env_name",
    "lookup",
    "rewrite_argv",
    "rewrite_batch",
    "rewrite_command",
    "unresolved_in",
    "variables_in",
]

# Linux refuses a single argument of 128 KiB or more (MAX_ARG_STRLEN), its final NUL included.
MAX_ARGUMENT_BYTES: Final = 128 * 1024 - 1

_NO_LISTS: Final[Mapping[str, int]] = {}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A command that is safe to run with the environment that ``fill(slots, …)`` makes.

    ``variables`` are the dotted names used, each once in order of appearance; ``warnings`` are for people,
    each with its line and fix.
    """

    command: str
    variables: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A name in braces: where it stands (character offset, line from 1) and how bash reads that place.

    ``context`` is ``bare``, ``single quotes``, ``double quotes``, ``here-document``, ``comment``, ``refused``
    (bash would parse a value there) or ``unknown`` (the lexer could not follow so far).
    """

    name: str
    offset: int
    line: int
    context: str


def rewrite_command(
    command: str, known: Callable[[str], bool], lists: Mapping[str, int] = _NO_LISTS
) -> Rewritten:
    """Makes a shell command take its values from the environment.

    ``known`` says whether a dotted name has a value; ``{ITEM…}`` always counts. Other braces stay as they
    are, and a command without placeholders comes back unchanged. ``lists`` has the number of elements of each
    list-valued name: such a name as a bare word of its own becomes one word an element, elsewhere its JSON.

    Raises:
        ValueFault: a placeholder where bash would parse its value, or a command that is not understood.
    """
    holes = find_holes(command, known)
    if not any(hole.filled for hole in holes):
        return Rewritten(_escaped(command, holes))
    lexed, warnings = _judged(command, holes, lists)
    return _render(command, holes, lexed, warnings, lists, None)


#: Between two items: `a && b` with a failing `a` does not end a script under ``set -e``.
_NEXT_ITEM: Final = "\ncase $? in 0) ;; *) exit $? ;; esac\n"


def rewrite_batch(
    command: str, n_items: int, known: Callable[[str], bool], lists: Mapping[str, int] = _NO_LISTS
) -> Rewritten:
    """One script for ``n_items`` foreach items: ``set -e``, then the command once an item, each with its own
    variables ``RIGBUS_V_<n>_<NAME>`` (n from 0) for ``{ITEM…}``. The first item that fails ends it.

    Raises:
        ValueFault: as ``rewrite_command``; also ``n_items`` below 1.
    """
    if n_items < 1:
        raise ValueFault(f"a batch of {n_items} items", "use a batch_size of 1 or more")
    holes = find_holes(command, known)
    if any(hole.filled for hole in holes):
        lexed, warnings = _judged(command, holes, lists)
        groups = [_render(command, holes, lexed, warnings, lists, index) for index in range(n_items)]
    else:
        if (len(command) - len(command.rstrip("\\"))) % 2:
            raise ValueFault(
                "a command that ends in a backslash", "remove the backslash", offset=len(command) - 1
            )
        groups = [Rewritten(_escaped(command, holes))] * n_items
    slots = {slot: None for group in groups for slot in group.slots}
    script = f"set -e\n{_NEXT_ITEM.join(group.command for group in groups)}\n"
    return Rewritten(script, groups[0].variables, groups[0].warnings, tuple(slots))


def _judged(command: str, holes: Sequence[Hole], lists: Mapping[str, int]) -> tuple[Lexed, tuple[str, ...]]:
    if "\0" in command:
        at = command.index("\0")
        raise ValueFault("a NUL character in the command", "remove it", offset=at, line=line_of(command, at))
    lexed = lex(command, holes)
    return lexed, judge(command, lexed, lists)


def _escaped(command: str, holes: Sequence[Hole]) -> str:
    return _edited(command, [(hole, hole.text) for hole in holes if not hole.filled])


def _edited(command: str, edits: Sequence[tuple[Hole, str]]) -> str:
    parts: list[str] = []
    at = 0
    for hole, text in sorted(edits, key=lambda edit: edit[0].start):
        parts += [command[at : hole.start], text]
        at = hole.end
    return "".join([*parts, command[at:]])


def _render(
    command: str,
    holes: Sequence[Hole],
    lexed: Lexed,
    warnings: tuple[str, ...],
    lists: Mapping[str, int],
    item: int | None,
) -> Rewritten:
    edits = [(hole, hole.text) for hole in holes if not hole.filled]
    slots: dict[Slot, None] = {}
    names: dict[str, None] = {}
    for placement in sorted(lexed.placements, key=lambda placement: placement.hole.start):
        name = placement.hole.name
        names[name] = None
        own = _slots(placement, lists, item if is_item(name) else None)
        slots.update(dict.fromkeys(own))
        edits.append((placement.hole, _expansion(placement.context, own)))
    return Rewritten(_edited(command, edits), tuple(names), warnings, tuple(slots))


def _slots(placement: Placement, lists: Mapping[str, int], item: int | None) -> list[Slot]:
    name = placement.hole.name
    if placement.whole and name in lists:
        return [Slot(list_env_name(name, n, item=item), name, item, n) for n in range(lists[name])]
    return [Slot(env_name(name, item=item), name, item)]


def _expansion(context: Context, slots: Sequence[Slot]) -> str:
    quoted = " ".join(f'"${{{slot.env}}}"' for slot in slots)
    if context is Context.BARE:
        return quoted
    return f"'{quoted}'" if context is Context.SINGLE else quoted[1:-1]


def rewrite_argv(argv: Sequence[str], values: Mapping[str, str | Sequence[str]]) -> list[str]:
    """The words of the argv form with their values put in as plain text: no shell reads them.

    ``values`` holds text by dotted name. A list as a whole element becomes one word an element of the list,
    inside an element its compact JSON.

    Raises:
        ValueFault: a word that the system cannot pass: a NUL in it, half a surrogate pair, or 128 KiB.
    """
    words: list[str] = []
    for element in argv:
        holes = [
            hole
            for hole in find_holes(element, values.__contains__)
            if not hole.filled or hole.name in values
        ]
        whole = (
            values.get(holes[0].name)
            if len(holes) == 1 and holes[0].filled and holes[0].text == element
            else None
        )
        if whole is not None and not isinstance(whole, str):
            words += [encode_value(part) for part in whole]
            continue
        words.append(_edited(element, [(hole, _plain(hole, values)) for hole in holes]))
    for word in words:
        _check_argument(word)
    return words


def _plain(hole: Hole, values: Mapping[str, str | Sequence[str]]) -> str:
    if not hole.filled:
        return hole.text
    value = values[hole.name]
    return encode_value(value if isinstance(value, str) else list(value))


def _check_argument(word: str) -> None:
    if "\0" in word:
        raise ValueFault("an argument with a NUL character, which no program can get", "remove it")
    try:
        size = len(word.encode())
    except UnicodeEncodeError:
        raise ValueFault(
            "an argument with half a surrogate pair, which is no text", "write it as plain text"
        ) from None
    if size > MAX_ARGUMENT_BYTES:
        what = f"an argument of {size} bytes; one has at most {MAX_ARGUMENT_BYTES}"
        raise ValueFault(what, "write the value to a file and pass the path")


def check_argv(argv: Sequence[str], known: Callable[[str], bool]) -> tuple[str, ...]:
    """Warnings for the argv form: no shell of ours reads it, but ``["bash", "-c", "… {X}"]`` starts one.

    Raises:
        ValueFault: ``{ITEM…}`` inside such a text, or as the program's name.
    """
    words = []
    for element in argv:
        word = Word(0, len(element))
        at = 0
        for hole in find_holes(element, known):
            word.literal(element[at : hole.start], quoted=True)
            word.hole(hole, quoted=True)
            at = hole.end
        word.literal(element[at:], quoted=True)
        word.covers = word.holes
        words.append(word)
    return judge_argv(words)


def variables_in(command: str) -> tuple[Found, ...]:
    """Every single-braced name of a command, except the shell's own ``${NAME}``, in order of appearance.

    Nobody is asked whether a name is known: this is for the check that does. It never fails; where the lexer
    loses its way the rest has the context ``unknown``.
    """
    holes = [hole for hole in find_holes(command, lambda name: True) if hole.filled]
    lexed = Lexed()
    try:
        lex(command, holes, lexed)
    except NotUnderstood:
        pass
    contexts = {placement.hole: str(placement.context) for placement in lexed.placements}
    comments = [region for region in lexed.regions if region.kind == "comment"]
    return tuple(
        Found(
            hole.name,
            hole.start,
            line_of(command, hole.start),
            contexts.get(hole) or _outside(hole, comments),
        )
        for hole in holes
    )


def _outside(hole: Hole, comments: Sequence[Region]) -> str:
    inside = any(region.start <= hole.start < region.end for region in comments)
    return str(Context.COMMENT) if inside else "unknown"


def unresolved_in(command: str, known: Callable[[str], bool]) -> tuple[Found, ...]:
    """The names that were meant as variables and that nobody knows; ``{ITEM…}`` is not among them.

    Braces are other people's syntax too. A name in capitals is taken for a variable everywhere but in a
    comment. One with lower-case letters counts only where no other language is likely: bare or in double
    quotes, not in single quotes or a here-document (``awk '{print}'``, a Python f-string).
    """
    found = []
    for one in variables_in(command):
        if is_item(one.name) or known(one.name) or one.context == Context.COMMENT:
            continue
        if one.name == one.name.upper() or one.context in (Context.BARE, Context.DOUBLE):
            found.append(one)
    return tuple(found)
