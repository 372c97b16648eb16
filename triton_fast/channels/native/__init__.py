"""HTTP/2 on sockets of our own."""
