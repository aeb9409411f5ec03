"""A room as an alert: which colour it should show, and how it gets back what people want of it. Pure.

    scene unknown --a colour is wanted--> read the scene, keep it --> paint --> look --> (another colour is wanted: paint)
    scene kept --no colour is wanted--> restore lamp by lamp --> scene unknown

The scene is kept before the first colour is sent, and until the last lamp has it back: whatever is killed in between, the
next process goes on from there and nothing of ours is ever taken for the scene.

What a lamp answers to a colour is looked at once, since many answer another one than they were sent. A lamp that shows
something else later was in a person's hand: it is left as it is, and another colour of ours is given back to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ...bus.alerting.core import Alert, State
from ...bus.alerting.rules import Severity
from .outbox import Wants

Colour = Literal["", "amber", "red"]
COLOURS: Final[tuple[Colour, ...]] = ("red", "amber")
XY: Final[Mapping[str, tuple[float, float]]] = {"red": (0.675, 0.322), "amber": (0.5614, 0.4156)}
GROUP_S: Final = 1.0  #: between two commands to a group, as the maker asks
LAMP_S: Final = 0.1  #: between two commands to lamps
NEAR: Final = 0.02  #: of colours that a lamp reads back


def wanted(alerts: Iterable[Alert], wants: Wants) -> Colour:
    """Red while something critical is raised, amber for a warning; what was acked is seen, and no light any more."""
    raised = [a for a in alerts if a.state is State.RAISED and wants(a)]
    if any(a.severity is Severity.CRITICAL for a in raised):
        return "red"
    return "amber" if any(a.severity is Severity.WARNING or a.rule == "test" for a in raised) else ""


@dataclass(frozen=True, slots=True)
class Lamp:
    """What a lamp shows; None: it has no such thing. ``mirek`` is the colour temperature."""

    on: bool
    brightness: float | None = None
    xy: tuple[float, float] | None = None
    mirek: int | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Lamp:
        """From a `light` of the bridge; odd fields are as if they were not there."""
        on = _table(fields.get("on")).get("on")
        brightness = _number(_table(fields.get("dimming")).get("brightness"))
        xy = _table(_table(fields.get("color")).get("xy"))
        x, y = _number(xy.get("x")), _number(xy.get("y"))
        mirek = _number(_table(fields.get("color_temperature")).get("mirek"))
        return cls(
            on is True,
            brightness,
            None if x is None or y is None else (x, y),
            None if mirek is None else int(mirek),
        )

    def plain(self) -> list[Any]:
        """As JSON data."""
        return [self.on, self.brightness, None if self.xy is None else list(self.xy), self.mirek]

    @classmethod
    def kept(cls, row: Any) -> Lamp:
        """From :meth:`plain`.

        Raises:
            ValueError, TypeError: it is none.
        """
        on, brightness, xy, mirek = row
        return cls(
            on is True, _number(brightness), None if xy is None else (float(xy[0]), float(xy[1])), mirek
        )

    def commands(self) -> list[dict[str, Any]]:
        """What brings a lamp back to it. One that was off gets its colour before it goes out: else it would be red when
        somebody next turns it on."""
        body = self.light()
        if self.on:
            return [{"on": {"on": True}, **body}]
        return [*([body] if body else []), {"on": {"on": False}}]

    def light(self) -> dict[str, Any]:
        """Its brightness and colour as a command that turns nothing on or off; may be empty."""
        body: dict[str, Any] = {}
        if self.brightness:
            body["dimming"] = {"brightness": self.brightness}
        if self.mirek is not None:
            body["color_temperature"] = {"mirek": self.mirek}
        elif self.xy is not None:
            body["color"] = {"xy": {"x": self.xy[0], "y": self.xy[1]}}
        return body

    def same(self, other: Lamp) -> bool:
        """Nobody would see a difference."""
        if self.on != other.on:
            return False
        bright = abs((self.brightness or 0.0) - (other.brightness or 0.0)) <= 1.0
        if self.mirek is not None or other.mirek is not None:
            return bright and self.mirek == other.mirek
        return bright and _near(self.xy, other.xy)

    def shows(self, colour: Colour, brightness: float) -> bool:
        """It shows the colour of an alert; one without colours is on."""
        if not self.on or (self.brightness is not None and abs(self.brightness - brightness) > 1.0):
            return False
        return self.xy is None or (self.mirek is None and _near(self.xy, XY[colour]))

    def is_alert(self, brightness: float) -> bool:
        """It shows the colour of some alert."""
        return any(self.shows(colour, brightness) for colour in COLOURS)


def paint_command(colour: Colour, brightness: float) -> dict[str, Any]:
    """For the whole group at once."""
    x, y = XY[colour]
    return {"on": {"on": True}, "dimming": {"brightness": brightness}, "color": {"xy": {"x": x, "y": y}}}


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done next: ``rest`` (for ``wait_s``, None: until something changes), ``read``, ``paint``, ``look`` or
    ``restore`` (of one ``lamp``)."""

    do: Literal["rest", "read", "paint", "look", "restore"]
    wait_s: float | None = None
    colour: Colour = ""
    lamp: str = ""


class Room:
    """The state of one room. ``now`` is monotonic seconds; :meth:`plain` has to be durable before the next step."""

    def __init__(self, kept: Mapping[str, Any] | None, now: float) -> None:
        self.scene: dict[str, Lamp] | None = None  #: what people want of each lamp
        self.shown: Colour = ""
        self.ours: dict[str, Lamp] | None = (
            None  #: what each lamp answered to our last colour; None: not known
        )
        self.left: list[str] | None = (
            None  #: lamps that have not got their scene back yet; None: nothing is given back
        )
        self._group_at = now + GROUP_S  # a process before this one may have sent a command just now
        self._lamp_at = now
        if kept:
            self._load(kept)

    def plain(self) -> dict[str, Any]:
        """What has to be kept."""
        return {
            "scene": _plain(self.scene),
            "shown": self.shown,
            "ours": _plain(self.ours),
            "left": self.left,
        }

    def next(self, colour: Colour, now: float) -> Step:
        """On the way to ``colour``."""
        if not colour:
            return self._back(now)
        self.left = None
        if self.scene is None:
            return Step("read", colour=colour)
        if self.shown == colour and self.ours is not None:
            return Step("rest")
        if now < self._group_at:
            return Step("rest", self._group_at - now)
        return Step("look" if self.shown == colour else "paint", colour=colour)

    def _back(self, now: float) -> Step:
        if self.scene is None:
            return Step("rest")
        if self.left is None:
            self.left, self.shown = sorted(self.scene), ""
        if not self.left:
            self._forget()
            return Step("rest")
        if now < self._lamp_at:
            return Step("rest", self._lamp_at - now)
        return Step("restore", lamp=self.left[0])

    def read(self, scene: Mapping[str, Lamp]) -> None:
        """What the lamps showed before us."""
        self.scene = dict(scene)

    def sending(self, shown: Mapping[str, Lamp], brightness: float, now: float) -> None:
        """A command to the group is to go out: it counts, whether it arrives or not. ``shown`` is what the lamps show before
        it; what a person has made of one meanwhile is what it gets back."""
        scene = self.scene if self.scene is not None else {}
        for id_, lamp in shown.items():
            if not lamp.is_alert(brightness) and (id_ not in scene or not self._is_ours(id_, lamp)):
                scene[id_] = lamp
        self.scene, self.ours, self._group_at = scene, None, now + GROUP_S

    def painted(self, colour: Colour) -> None:
        """The group shows it."""
        self.shown = colour

    def looked(self, shown: Mapping[str, Lamp]) -> None:
        """What the lamps answered to the colour."""
        self.ours = dict(shown)

    def owes(self, lamp: str, shown: Lamp, brightness: float) -> list[dict[str, Any]]:
        """The commands that give a lamp its scene back; none where it has it, or a person has had it in his hand."""
        scene = (self.scene or {}).get(lamp)
        if scene is None or shown.same(scene):
            return []
        if shown.is_alert(brightness) or self._is_ours(lamp, shown):
            return scene.commands()
        lit = replace(shown, on=True)
        if lit.is_alert(brightness) or self._is_ours(lamp, lit):
            # Somebody has only switched it off: it stays so, but should not be red when it is next turned on.
            return [scene.light()] if scene.light() else []
        return []

    def _is_ours(self, lamp: str, shown: Lamp) -> bool:
        """It shows what it answered to our colour, or nobody knows what that was."""
        if self.ours is None:
            return True
        answered = self.ours.get(lamp)
        return answered is not None and shown.same(answered)

    def restored(self, lamp: str, now: float) -> None:
        """It has its scene back, or is not there any more."""
        self.left = [other for other in self.left or () if other != lamp]
        self._lamp_at = now + LAMP_S
        if not self.left:
            self._forget()

    def _forget(self) -> None:
        self.scene, self.left, self.shown, self.ours = None, None, "", None

    def _load(self, kept: Mapping[str, Any]) -> None:
        self.scene = _lamps(kept.get("scene"))
        if self.scene is None:
            return  # none, or damaged: better no scene than a wrong one
        self.ours = _lamps(kept.get("ours"))
        shown, left = kept.get("shown"), kept.get("left")
        self.shown = "red" if shown == "red" else "amber" if shown == "amber" else ""
        self.left = [x for x in left if x in self.scene] if isinstance(left, list) else None


def _plain(lamps: Mapping[str, Lamp] | None) -> dict[str, list[Any]] | None:
    return None if lamps is None else {id_: lamp.plain() for id_, lamp in lamps.items()}


def _lamps(value: Any) -> dict[str, Lamp] | None:
    try:
        return {str(k): Lamp.kept(v) for k, v in value.items()} if isinstance(value, Mapping) else None
    except (ValueError, TypeError):
        return None


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _near(a: tuple[float, float] | None, b: tuple[float, float] | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a[0] - b[0]) <= NEAR and abs(a[1] - b[1]) <= NEAR
