"""``rigbus broker``: the broker alone, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from .common import config_option, process_log, settings_of, state_option, where


@click.command()
@state_option
@config_option
def broker(state: Path | None, config: Path | None) -> int:
    """Run the broker alone: it owns all durable state. The others may start before or after it."""
    from ..bus.broker.broker import Options, main
    from ..bus.core.bounds import Bounds
    from ..bus.core.escalations import Guards

    settings = settings_of(config)
    limits, escalation = settings["limits"], settings["escalation"]
    process_log("broker", settings["logs"]["level"])
    return main(
        where(state, None, config),
        Options(
            durability=settings["durability"],
            lease_s=settings["lease_s"],
            renew_s=settings["renew_s"],
            retain_tasks=settings["retention"]["tasks"],
            retain_events=settings["retention"]["events"],
            max_live=limits["live_tasks"],
            max_batch_tasks=limits["batch_tasks"],
            bounds=Bounds(sessions=limits["sessions"], facts=limits["facts"]),
            guards=Guards(
                max_per_batch=escalation["max_per_batch"],
                cooldown_s=escalation["cooldown_s"],
                per_day=escalation["per_day"],
            ),
            peer_messages=limits["peer_messages"],
            peer_bytes=limits["peer_mb"] << 20,
            inflow_bytes=limits["inflow_mb"] << 20,
            connections=limits["connections"],
            low_mb=limits["free_mb"],
            ballast_mb=limits["ballast_mb"],
        ),
    )
