"""Whether the rig lives, by the files that it renews. Pure: `now` is monotonic, `wall` Unix seconds.

A clock that is wrong must not kill a rig, so its silence is measured on our own: from when we last saw its files change. The
files' own times only tell that the two clocks disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...bus.alerting.core import Condition, Observation
from ...bus.alerting.rules import READERS

MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Signs:
    """One reading of the folder. ``newest`` is when the rig last said how it is (Unix seconds by its files, None: never),
    ``limit_s`` for how long that may be believed, ``mark`` changes whenever a file was renewed."""

    stopped: bool
    newest: float | None
    limit_s: float
    mark: str


class DeadMan:
    """See the module."""

    def __init__(
        self, grace_s: float, mount_grace_s: float, kept: Mapping[str, Any] | None, now: float, wall: float
    ) -> None:
        """``kept`` is what :meth:`plain` gave before, so that a restart does not make a dead rig young again."""
        self._grace_s, self._mount_grace_s = grace_s, mount_grace_s
        kept = kept or {}
        mark, moved = kept.get("mark"), kept.get("moved_at")
        self._mark = mark if isinstance(mark, str) else ""
        self._moved_at = now
        if isinstance(moved, int | float) and not isinstance(moved, bool):
            self._moved_at = now - max(0.0, wall - moved)
        away = kept.get("away_since")
        self._away_since = (
            now - max(0.0, wall - away) if isinstance(away, float) else None
        )  # the wall clock, over a restart
        self._looked = self._heard = False

    def plain(self, now: float, wall: float) -> dict[str, Any]:
        """What has to be kept."""
        out: dict[str, Any] = {"mark": self._mark, "moved_at": round(wall - (now - self._moved_at), 1)}
        if self._away_since is not None:
            out["away_since"] = round(wall - (now - self._away_since), 1)
        return out

    def see(self, signs: Signs | None, now: float, wall: float) -> Observation:
        """One reading; None: there is no share at that place, or it does not answer."""
        if signs is None:
            self._away_since = now if self._away_since is None else self._away_since
            # Of the rig nothing is known while the folder is away: neither that it lives nor that it is dead.
            away = now - self._away_since >= self._mount_grace_s
            return Observation(
                (Condition("mount-away"),) if away else (), frozenset({"mount-away"} if away else ())
            )
        self._away_since = None
        if signs.mark != self._mark:
            self._mark, self._moved_at = signs.mark, now
            self._heard = self._looked  # what the first look finds may be as old as it likes
        self._looked = True
        found = self._judge(signs, now, wall)
        return Observation(tuple(found), READERS)

    def _judge(self, signs: Signs, now: float, wall: float) -> list[Condition]:
        if signs.newest is None or signs.stopped:
            return []  # no rig has written here yet, or it was stopped in order
        silent_s = now - self._moved_at
        if silent_s > signs.limit_s + self._grace_s:
            title = "the rig has not renewed its files: it is dead, or its machine is"
            return [Condition("rig-silent", "", title, {"last_sign_at": signs.newest})]
        apart_s = signs.newest - wall
        if self._heard and silent_s < signs.limit_s and abs(apart_s) > signs.limit_s + MINUTE_S:
            minutes = round(abs(apart_s) / MINUTE_S)
            title = (
                f"the rig's clock is about {minutes} min {'ahead of' if apart_s > 0 else 'behind'} this one"
            )
            return [Condition("clocks-apart", "", title, {"minutes": minutes})]
        return []
