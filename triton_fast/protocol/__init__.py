"""What an operation is and what it looks like on the wire."""
