"""Programs that the crash and cluster tests start as processes of their own, to be killed.

Each keeps a ledger file of its own, independent of the library: what it names there was accepted or handled.
"""
