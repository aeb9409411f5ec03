"""``@handler`` and ``@on``: what a method promises, read once from its signature.

The signature is the schema. A handler with annotated parameters gets one pydantic model, built when the worker
starts; a handler without annotations is checked by name only and pydantic is not even imported.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..bus.errors import BadFrame, DefinitionError
from ..bus.wire import unpack

F = TypeVar("F", bound=Callable[..., Any])
_HANDLER = "__rigbus_handler__"
_ON = "__rigbus_on__"
_RESERVED = frozenset({"shell", "expand", "join", "execute_plan"})
_NAMED = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@dataclass(frozen=True, slots=True)
class HandlerOptions:
    """The arguments of :func:`handler`."""

    type: str
    cls: str
    isolated: bool
    timeout_s: float | None
    needs: tuple[str, ...]
    slots: int | None


def handler(
    type: str,
    *,
    cls: str = "cpu",
    isolated: bool = False,
    timeout_s: float | None = None,
    needs: Sequence[str] = (),
    slots: int | None = None,
) -> Callable[[F], F]:
    """Make a method the handler of task ``type``. Its parameters are the payload's fields.

    ``cls``: the task class it serves. ``isolated``: run it in a spawned child that can be killed. ``timeout_s``:
    from start to end, where the task names none (1800 s if neither does). ``needs``: capabilities that this agent
    has (a task with one of them goes only to agents that have it). ``slots``: the agent gets at least so many.
    """
    if not type or len(type) > 64 or not all(c.isalnum() or c in "._-" for c in type):
        raise TypeError(f"@handler({type!r}): a task type is 1 to 64 letters, digits, '.', '_' or '-'")
    if type in _RESERVED:
        raise TypeError(f"@handler({type!r}): the rig itself has this type; choose another name")
    if timeout_s is not None and timeout_s <= 0:
        raise TypeError(f"@handler({type!r}): timeout_s must be above 0")

    def mark(f: F) -> F:
        setattr(f, _HANDLER, HandlerOptions(type, cls, isolated, timeout_s, tuple(needs), slots))
        return f

    return mark


def on(*patterns: str) -> Callable[[F], F]:
    """Call the method with each event whose topic matches one of ``patterns``, as ``task.*.dead`` (PROTOCOL §6)."""
    if not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise TypeError('@on needs topics, as @on("task.*.dead")')

    def mark(f: F) -> F:
        setattr(f, _ON, (*getattr(f, _ON, ()), *patterns))
        return f

    return mark


Bind = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Spec:
    """One handler of an agent class. ``bind`` turns an unpacked payload into keyword arguments.

    ``bind`` raises DefinitionError naming the field that is wrong.
    """

    type: str
    method: str
    options: HandlerOptions
    is_async: bool
    bind: Bind

    def arguments(self, payload: bytes) -> dict[str, Any]:
        """The keyword arguments of a packed payload; an empty one has no fields.

        Raises:
            DefinitionError: not msgpack, no map, a missing, unknown or wrong field (named).
        """
        try:
            value = unpack(payload) if payload else {}
        except BadFrame as e:
            raise DefinitionError(f"{self.type}: the payload is unreadable: {e}") from None
        return self.bind(value if value is not None else {})


def specs_of(cls: type) -> dict[str, Spec]:
    """The handlers of a class by task type; a method that overrides a handler keeps its mark only if it repeats it.

    Raises:
        TypeError: two methods serve one type, or a signature cannot be a schema.
    """
    found: dict[str, Spec] = {}
    for name in dir(cls):
        f = inspect.getattr_static(cls, name)
        options = getattr(f, _HANDLER, None)
        if not isinstance(options, HandlerOptions):
            continue
        if options.type in found:
            raise TypeError(
                f"{cls.__name__}: {found[options.type].method} and {name} both handle {options.type!r}"
            )
        is_async = inspect.iscoroutinefunction(f)
        found[options.type] = Spec(options.type, name, options, is_async, _bind(cls, name, f, options.type))
    return found


def events_of(cls: type) -> dict[str, tuple[str, ...]]:
    """The ``@on`` methods of a class: method name -> patterns."""
    members = ((name, inspect.getattr_static(cls, name)) for name in dir(cls))
    return {name: getattr(f, _ON) for name, f in members if callable(f) and hasattr(f, _ON)}


def _bind(cls: type, name: str, f: Callable[..., Any], type_: str) -> Bind:
    parameters = list(inspect.signature(f).parameters.values())[1:]  # without self
    for p in parameters:
        if p.kind not in _NAMED and p.kind is not inspect.Parameter.VAR_KEYWORD:
            raise TypeError(
                f"{cls.__name__}.{name}: parameter {p.name!r} cannot be a payload field; give it a name of its own"
            )
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in _NAMED]
    try:
        hints = typing.get_type_hints(f, include_extras=True)
    except NameError as e:
        raise TypeError(
            f"{cls.__name__}.{name}: its annotations cannot be read ({e}); import the name"
        ) from None
    if all(hints.get(p.name, Any) is Any for p in named):
        return _bind_by_name(type_, named, open_ended)
    return _bind_by_model(type_, named, hints, open_ended)


def _map(type_: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DefinitionError(f"{type_}: the payload is a {type(value).__name__}; send a map of its fields")
    return value


def _bind_by_name(type_: str, named: list[inspect.Parameter], open_ended: bool) -> Bind:
    known = {p.name for p in named}
    required = [p.name for p in named if p.default is inspect.Parameter.empty]

    def bind(value: Any) -> dict[str, Any]:
        fields = _map(type_, value)
        for name in required:
            if name not in fields:
                raise DefinitionError(f'{type_}: field "{name}" is missing; it takes {_listed(known)}')
        if not open_ended:
            for name in fields:
                if name not in known:
                    raise DefinitionError(f'{type_}: unknown field "{name}"; it takes {_listed(known)}')
        return dict(fields)

    return bind


def _bind_by_model(
    type_: str, named: list[inspect.Parameter], hints: Mapping[str, Any], open_ended: bool
) -> Bind:
    from pydantic import ConfigDict, Field, ValidationError, create_model

    # Fields are f0, f1… with the parameter's name as alias: a parameter may be called `schema` or `_x`.
    fields: dict[str, Any] = {}
    names: list[str] = []
    for i, p in enumerate(named):
        names.append(p.name)
        required = p.default is inspect.Parameter.empty
        default: Any = Field(alias=p.name) if required else Field(default=p.default, alias=p.name)
        fields[f"f{i}"] = (hints.get(p.name, Any), default)
    config = ConfigDict(extra="allow" if open_ended else "forbid", arbitrary_types_allowed=True)
    model = create_model(f"payload of {type_}", __config__=config, **fields)
    validate = model.model_validate
    pairs = [(f"f{i}", name) for i, name in enumerate(names)]

    def bind(value: Any) -> dict[str, Any]:
        try:
            m = validate(_map(type_, value))
        except ValidationError as e:
            first = e.errors(include_url=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "payload"
            more = f" (and {e.error_count() - 1} more)" if e.error_count() > 1 else ""
            shown = "" if first["type"] == "missing" else f", got {_short(first['input'])}"
            raise DefinitionError(
                f'{type_}: field "{field}": {first["msg"]}{shown}{more}; it takes {_listed(names)}'
            ) from None
        d = m.__dict__
        arguments = {name: d[field] for field, name in pairs}
        if open_ended and m.__pydantic_extra__:
            arguments.update(m.__pydantic_extra__)
        return arguments

    return bind


def _listed(names: typing.Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no fields"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
