"""What the library tells about itself: events, one line each, from a closed list."""

from safekafka.observe.events import Event, emit

__all__ = ["Event", "emit"]
