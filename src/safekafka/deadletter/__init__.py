"""Messages that could not be handled: kept whole in a topic of their own, with the reason."""
