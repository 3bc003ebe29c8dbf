"""The `safekafka` command. `main` is its entry point; the commands themselves are in `app.py`.

typer and rich come with the extra `cli` and are imported only here and below: the library works without them.
"""

from __future__ import annotations

import sys

from safekafka.cli.interrupt import stopped_by_signals

_EXTRA = ("typer", "click", "rich", "shellingham")


def main() -> None:
    """Run the command that `sys.argv` names and leave by its exit status; 128 + the signal's number when stopped."""
    with stopped_by_signals():
        try:
            from safekafka.cli.app import app

            app()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _EXTRA:
                raise
            sys.exit(f"The safekafka command needs the package {error.name!r}: pip install 'safekafka[cli]'")
