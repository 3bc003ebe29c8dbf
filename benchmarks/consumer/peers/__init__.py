"""One small class per contestant: how its own documentation says to handle records and to commit what was handled."""
