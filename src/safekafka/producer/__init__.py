"""Sending records: every one that is accepted ends in exactly one known outcome."""
