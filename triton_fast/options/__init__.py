"""What a caller may set: deadlines, headers, keepalive, targets, TLS, the environment."""
