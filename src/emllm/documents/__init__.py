"""Readers: from files to plain text."""
