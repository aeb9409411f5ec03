"""The base of what is published: models that readers of another version can bear."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Open(BaseModel):
    """Readers must bear fields that they do not know: a newer rig adds some."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)
