"""Releases to a hub or a folder: cards, bundles."""
