// gRPC status codes, and what becomes one of them when a peer sends none.
//
// Source: gRPC, "gRPC over HTTP2" (PROTOCOL-HTTP2.md), "HTTP to gRPC Status Code Mapping",
// "statuscodes.md"; RFC 9113 section 7 (error codes).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace triton_fast::http2 {

enum class Status : std::uint8_t {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

/// The status that an HTTP answer without grpc-status stands for.
Status status_from_http(int http_status) noexcept;

/// The status that a stream reset with an HTTP/2 error code stands for.
Status status_from_reset(std::uint32_t error_code) noexcept;

/// @brief Reads a grpc-status value. @return false if it is not a number.
bool parse_status(std::string_view text, Status& status) noexcept;

/// @brief Undoes the percent-encoding of a grpc-message; what is no escape is kept as it is.
std::string decode_message(std::string_view text);

/// @brief Writes a timeout as grpc-timeout wants it: at most eight digits and a unit, rounded up.
std::string encode_timeout(std::int64_t nanoseconds);

}  // namespace triton_fast::http2
