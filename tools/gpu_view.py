"""What ``rigbus gpu`` shows, and the few words about a card that other verbs have. Pure; rows are telemetry's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..agents.gpu.cards import rows_in
from . import render

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

Row = Mapping[str, Any]

HEAD: Final = ("GPU", "NAME", "TEMP", "UTIL", "VRAM", "POWER", "FAN", "CLOCK", "THROTTLE", "RUNS")
_ALWAYS: Final = 4
_SPARED: Final = ("FAN", "CLOCK")  #: in a narrow terminal
_TASKS: Final = 3
#: Colours of a temperature at this many degrees below the warning.
_WARM_C: Final = 8


# -- which task heats a card -----------------------------------------------------------------------------------------


def with_tasks(
    cards: Sequence[Row],
    workers: Sequence[Row],
    running: Mapping[str, Sequence[Row]],
    worker_of: Callable[[int], str | None],
) -> list[dict[str, Any]]:
    """The cards with ``workers`` and ``tasks``: whose they are, and what loads them now.

    ``workers`` are rows of a status, ``running`` a worker's tasks ``{id, name, elapsed_s}``. Where a process on some card
    is proven to be a worker's (``worker_of``: pid -> worker, None for somebody else's), only such proof counts, on every
    card: a task that only reads its files heats none. Otherwise the tasks of each worker that may use the card.
    """
    allowed: dict[str, list[str]] = {}
    for worker in workers:
        for row in rows_in(worker.get("gpu")):
            allowed.setdefault(_key(row), []).append(str(worker["id"]))
    proven = [
        list(dict.fromkeys(w for pid in card.get("pids") or () if (w := worker_of(pid)) is not None))
        for card in cards
    ]
    out = []
    for card, by_process in zip(cards, proven, strict=True):
        owners = by_process or allowed.get(_key(card), [])
        loading = by_process if any(proven) else owners
        tasks = [{**task, "worker": name} for name in loading for task in running.get(name, ())]
        out.append({**card, "workers": owners, "tasks": tasks})
    return out


def _key(card: Row) -> str:
    """By what a card is known: its UUID; its index where it has none."""
    return str(card.get("uuid") or f"index {card.get('index')}")


def cards_of(workers: Sequence[Row]) -> list[dict[str, Any]]:
    """The cards that workers report, each once, by index: what is known where this machine has none itself."""
    found: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for card in rows_in(worker.get("gpu")):
            if isinstance(card.get("index"), int):
                row = {
                    key: value
                    for key, value in card.items()
                    if key not in ("cards", "source", "age_s", "stale")
                }
                found.setdefault(_key(card), row)
    return sorted(found.values(), key=lambda card: card["index"])


# -- words -----------------------------------------------------------------------------------------------------------


def degrees(card: Row) -> str:
    """``71 °C``."""
    return _with(card.get("temperature_c"), "{:.0f} °C")


def vram(card: Row) -> str:
    """``5.1/6.0 GiB``; ``5.1 GiB`` where the card does not tell how much it has."""
    used, total = card.get("vram_used_mb"), card.get("vram_total_mb")
    if used is None:
        return ""
    return f"{used / 1024:.1f}/{total / 1024:.1f} GiB" if total else f"{used / 1024:.1f} GiB"


def power(card: Row) -> str:
    """``118/120 W``."""
    used, limit = card.get("power_w"), card.get("power_limit_w")
    if used is None:
        return ""
    return f"{used:.0f}/{limit:.0f} W" if limit else f"{used:.0f} W"


def why_slow(card: Row) -> str:
    """The reasons of a lowered clock, or why the card says nothing."""
    return str(card["error"]) if card.get("error") else ", ".join(map(str, card.get("throttle") or ()))


def short(field: Any) -> str:
    """A worker's cards in a few words: ``71 °C 98% 5.1/6.0 GiB``; of several the hottest, the busiest and the sum."""
    cards = rows_in(field)
    if not cards:
        return ""
    if any(card.get("error") for card in cards) and all("temperature_c" not in card for card in cards):
        return "no readings"
    heat = max((c["temperature_c"] for c in cards if c.get("temperature_c") is not None), default=None)
    load = max((c["utilization_pct"] for c in cards if c.get("utilization_pct") is not None), default=None)
    memory = {
        key: sum(c.get(key) or 0 for c in cards) if any(c.get(key) is not None for c in cards) else None
        for key in ("vram_used_mb", "vram_total_mb")
    }
    words = [f"{len(cards)} cards" if len(cards) > 1 else ""]
    words += [_with(heat, "{:.0f} °C"), _with(load, "{:.0f}%"), vram(memory)]
    if field.get("stale"):
        words.append(f"({render.duration(field.get('age_s'))} old)")
    return " ".join(word for word in words if word)


def runs(card: Row) -> str:
    """``worker-1: extract_12 34 s``; the worker alone when it runs nothing."""
    tasks = card.get("tasks") or ()
    shown = [
        f"{task.get('name') or task.get('id')}"
        + (f" {render.duration(task['elapsed_s'])}" if task.get("elapsed_s") is not None else "")
        for task in tasks[:_TASKS]
    ]
    more = f", {len(tasks) - _TASKS} more" if len(tasks) > _TASKS else ""
    names = ", ".join(dict.fromkeys(str(task["worker"]) for task in tasks)) or ", ".join(
        card.get("workers") or ()
    )
    return f"{names}: {', '.join(shown)}{more}" if tasks else names


def cells(card: Row) -> tuple[str, ...]:
    """The columns of :data:`HEAD`."""
    return (
        str(card.get("index")),
        str(card.get("name") or ""),
        degrees(card),
        _with(card.get("utilization_pct"), "{:.0f}%"),
        vram(card),
        power(card),
        _with(card.get("fan_pct"), "{:.0f}%"),
        _with(card.get("clock_mhz"), "{:.0f} MHz"),
        why_slow(card),
        runs(card),
    )


def table(sample: Row) -> list[str]:
    """A sample as a table; columns that no card fills are left out, but for the first four."""
    rows = [cells(card) for card in sample["cards"]]
    kept = _filled(rows)
    lines = render.table([HEAD[i] for i in kept], [[row[i] for i in kept] for row in rows])
    return [*lines, *([stale_line(sample)] if sample.get("stale") else [])]


def _filled(rows: Sequence[Sequence[str]]) -> list[int]:
    """The columns to show: the first four, and those that some card fills."""
    return [i for i in range(len(HEAD)) if i < _ALWAYS or any(row[i] for row in rows)]


def lines(sample: Row) -> list[str]:
    """A sample as lines for a pipe, one a card: ``10:51:02 gpu-0 71 °C 98% 5.1/6.0 GiB 118/120 W power cap``."""
    at = render.clock(sample["at"])[-8:]
    out = []
    for card in sample["cards"]:
        number, _, *readings, why, what = cells(card)
        words = [
            f"{at} gpu-{number}",
            *readings,
            why,
            what and f"· {what}",
            "(stale)" if sample.get("stale") else "",
        ]
        out.append(render.clean(" ".join(word for word in words if word)))
    return out


def stale_line(sample: Row) -> str:
    """That the driver has gone silent."""
    return f"stale: read at {render.clock(sample['at'])}; the driver has not answered since"


# -- a picture -------------------------------------------------------------------------------------------------------


def picture(sample: Row, warn_c: float) -> Group:
    """A sample for a terminal. Data is Text, never markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    rows = [cells(card) for card in sample["cards"]]
    spared = _SPARED if render.width() < render.WIDEST else ()
    kept = [i for i in _filled(rows) if HEAD[i] not in spared]
    for i in kept:
        last = HEAD[i] in ("THROTTLE", "RUNS", "NAME")
        shown.add_column(HEAD[i], justify="left" if last else "right", overflow="ellipsis", no_wrap=True)
    for card, row in zip(sample["cards"], rows, strict=True):
        shown.add_row(*(_styled(HEAD[i], row[i], card, warn_c) for i in kept))
    head = Text(f"{render.clock(sample['at'])}  {sample['host']}, {sample['source']}", style="dim")
    stale = [Text(stale_line(sample), style="red")] if sample.get("stale") else []
    return Group(head, shown, *stale)


def _styled(column: str, text: str, card: Row, warn_c: float) -> Text:
    from rich.text import Text

    heat = card.get("temperature_c")
    style = ""
    if column == "TEMP" and heat is not None:
        style = "red" if heat > warn_c else "yellow" if heat > warn_c - _WARM_C else "green"
    elif column == "THROTTLE":
        style = "red" if card.get("error") else "yellow"
    return Text(render.clean(text), style=style)


# -- a log's summary -------------------------------------------------------------------------------------------------


def summary_lines(found: Row) -> list[str]:
    """``rigbus.gpu.summary/1`` for people."""
    head = (
        "GPU",
        "NAME",
        "TIME",
        "TEMP",
        "UTIL",
        "VRAM GiB",
        "POWER W",
        "ENERGY",
        f"> {found['warn_c']:g} °C",
        "THROTTLED",
    )
    rows = []
    for card in found["cards"]:
        share = card["throttled_share"]
        reasons = ", ".join(f"{reason} {part:.0%}" for reason, part in card["throttled"].items() if part)
        throttled = "" if share is None else f"{share:.0%}" + (f" ({reasons})" if reasons else "")
        rows.append(
            (
                card["index"],
                card["name"],
                render.duration(card["covered_s"]),
                _span(card["temperature_c"]),
                _span(card["utilization_pct"], unit="%"),
                _span(card["vram_used_mb"], 1 / 1024, digits=1),
                _span(card["power_w"]),
                _with(card["energy_wh"], "{:.1f} Wh"),
                render.duration(card["above_warn_s"]),
                throttled + (f", {card['errors']} without readings" if card["errors"] else ""),
            )
        )
    out = [*render.table(head, rows), "TEMP, UTIL, VRAM and POWER are min/median/max"]
    if found["skipped"]:
        number = found["skipped"]
        out.append("1 line was no sample" if number == 1 else f"{number} lines were no samples")
    return out


def _span(spread: Any, factor: float = 1, unit: str = "", digits: int = 0) -> str:
    if spread is None:
        return ""
    return "/".join(f"{spread[key] * factor:.{digits}f}" for key in ("min", "median", "max")) + unit


def _with(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) else ""
