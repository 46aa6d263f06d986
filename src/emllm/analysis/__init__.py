"""Pictures and pages of what was read."""
