"""The command export --to skyserve: a served run on several machines."""

from __future__ import annotations

from pathlib import Path

from .output import emit, say, warn
from .running import open_run


def command(target: str, runs_dir: Path, is_json: bool) -> int:
    """Write the service, and say what starts it."""
    from ..stages.skyserve import hand_over_service

    written = hand_over_service(open_run(target, runs_dir))
    if is_json:
        emit(written)
        return 0
    replicas = f"{written['min_replicas']} to {written['max_replicas']} machines"
    kind = "spot, the first on demand" if written["is_on_spot"] else "on demand"
    say(f"{written['service']}: {replicas} with one {written['gpu']} ({kind}), {', '.join(written['clouds'])}")
    say(f"each takes {written['target_qps_per_replica']:.3g} requests a second ({written['rates']} rates)")
    for note in written["notes"]:
        warn(f"note: {note}")
    say("set SHOESTRING_API_KEY and SHOESTRING_ADMIN_KEY to two keys of 20 characters or more: every machine has them")
    say(f"start it with: {written['command']}")
    return 0
