"""Tensors in memory that the server has mapped."""
