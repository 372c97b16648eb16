// The tables of gRPC's specification, and its two encodings of text.
#include "triton_fast/http2/status.hpp"

#include <algorithm>

namespace triton_fast::http2 {
namespace {

int hex_digit(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Status status_from_http(int http_status) noexcept {
  switch (http_status) {
    case 400:
      return Status::kInternal;
    case 401:
      return Status::kUnauthenticated;
    case 403:
      return Status::kPermissionDenied;
    case 404:
      return Status::kUnimplemented;
    case 429:
    case 502:
    case 503:
    case 504:
      return Status::kUnavailable;
    default:
      return Status::kUnknown;
  }
}

Status status_from_reset(std::uint32_t error_code) noexcept {
  switch (error_code) {
    case 0x7:  // REFUSED_STREAM
      return Status::kUnavailable;
    case 0x8:  // CANCEL
      return Status::kCancelled;
    case 0xb:  // ENHANCE_YOUR_CALM
      return Status::kResourceExhausted;
    case 0xc:  // INADEQUATE_SECURITY
      return Status::kPermissionDenied;
    default:
      return Status::kInternal;
  }
}

bool parse_status(std::string_view text, Status& status) noexcept {
  if (text.empty() || text.size() > 9) return false;
  std::uint32_t number = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    number = 10 * number + static_cast<std::uint32_t>(c - '0');
  }
  status = number <= 16 ? static_cast<Status>(number) : Status::kUnknown;
  return true;
}

std::string decode_message(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      const int high = hex_digit(text[i + 1]);
      const int low = hex_digit(text[i + 2]);
      if (high >= 0 && low >= 0) {
        decoded.push_back(static_cast<char>(16 * high + low));
        i += 2;
        continue;
      }
    }
    decoded.push_back(text[i]);
  }
  return decoded;
}

std::string encode_timeout(std::int64_t nanoseconds) {
  constexpr std::int64_t kLargest = 99999999;
  struct Unit {
    char letter;
    std::int64_t nanoseconds;
  };
  constexpr Unit kUnits[] = {{'n', 1},          {'u', 1000},        {'m', 1000000},
                             {'S', 1000000000}, {'M', 60000000000}, {'H', 3600000000000}};
  const std::int64_t timeout = std::max<std::int64_t>(nanoseconds, 1);
  for (const Unit& unit : kUnits) {
    const std::int64_t count = timeout / unit.nanoseconds + (timeout % unit.nanoseconds != 0);
    if (count <= kLargest) return std::to_string(count) + unit.letter;
  }
  return std::to_string(kLargest) + 'H';
}

}  // namespace triton_fast::http2
