"""What can be asked of a server about itself and its models."""
