"""The client settings that a command is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer


def settings_from(config: Path | None, bootstrap: str | None) -> dict[str, Any]:
    settings: Any = {}
    if config is not None:
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise typer.BadParameter(f"--config {config}: not JSON: {error}") from error
        if not isinstance(settings, dict) or not isinstance(settings.get("bootstrap.servers", ""), str):
            raise typer.BadParameter(f"--config {config}: give a JSON object of settings.")
    return settings if bootstrap is None else {**settings, "bootstrap.servers": bootstrap}
