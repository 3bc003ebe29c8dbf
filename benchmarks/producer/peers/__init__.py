"""One small class per contestant: how its own documentation says to send many records and to wait for all of them."""
