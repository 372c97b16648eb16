"""The faces that people import, and the server behind each."""
