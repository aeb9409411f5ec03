"""``config.json`` as the earlier system's scripts read it: where the share is, the brain, the workers. Pure.

It is drawn at the two places where their generations look. Theirs names a port of each worker, without which they fail; ours
have none, so it is 0. A file of somebody's own is left as it is.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .beats import Scene
from .layout import File, Row, stamped

PLACES: Final = ("config.json", "agents/config.json")
NO_CARD: Final = -1
NO_PORT: Final = 0


def shared_path(shared: str, path_map: Sequence[str] = ()) -> str:
    """The share as the Pi names it, always absolute: readers resolve a relative one against where they are started.

    ``path_map`` are pairs ``FROM=TO`` of the Pi's names and the rig's; the first that tells where the Pi has the share is
    believed, else the rig's own name of it is.
    """
    for pair in path_map:
        source, _, target = pair.partition("=")
        target = posixpath.normpath(target)
        inside = target.removeprefix(f"{shared}/") if target.startswith("/") else target
        if target == shared:
            return posixpath.normpath(source)
        source = posixpath.normpath(source)
        if not inside.startswith("/") and source.endswith(f"/{inside}"):
            return source.removesuffix(f"/{inside}") or "/"
    return shared


def config_files(workers: Iterable[Row], scene: Scene, *, shared: str, cards: bool = False) -> list[File]:
    """The files. ``workers`` are rows of :func:`.rows.worker_row`, ``shared`` is :func:`shared_path`; ``cards``: ``gpus[]``
    too, whose readers want a heartbeat below ``gpus/`` of each."""
    rows = sorted(workers, key=lambda row: str(row["id"]))
    own = [row for row in rows if row.get("role") == "brain"]
    others = [row for row in rows if row.get("role") != "brain"]
    fields: dict[str, Any] = {
        "shared_path": shared,
        "brain": {
            "name": "brain",
            "host": scene.host,
            "model": next((str(row["model"]) for row in own if row.get("model")), ""),
            "gpus": list(dict.fromkeys(card for row in own for card in _cards(row))),
        },
        "workers": [_entry(row, "gpu") for row in others],
    }
    if cards:
        fields["gpus"] = [_entry(row, "id") for row in others if _cards(row)]
    made = [stamped(path, fields, scene.at, scene.utc_offset_s, scene.seq) for path in PLACES]
    return [file._replace(yields=True) for file in made]


def _entry(row: Row, card: str) -> dict[str, Any]:
    return {
        "name": row["id"],
        "model": str(row.get("model") or ""),
        card: next(iter(_cards(row)), NO_CARD),
        "port": NO_PORT,
    }


def _cards(row: Row) -> list[int]:
    """The indexes of a worker's cards."""
    gpu = row.get("gpu")
    named = gpu.get("gpus") if isinstance(gpu, Mapping) else None
    return [int(index) for index in named or () if str(index).isdecimal()]
