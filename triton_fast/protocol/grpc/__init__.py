"""The gRPC protocol: protobuf messages."""
