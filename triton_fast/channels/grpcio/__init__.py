"""The grpcio package as a channel."""
