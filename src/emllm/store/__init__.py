"""The append-only log of everything read."""
