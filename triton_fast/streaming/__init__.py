"""Streams and sequences."""
