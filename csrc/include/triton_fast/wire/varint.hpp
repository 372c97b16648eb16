// Protobuf's variable-length integers and field tags, written. (Reading is incremental, and so part
// of response_reader.)
//
// Source: protobuf.dev, "Encoding".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace triton_fast::wire {

enum WireType : std::uint32_t {
  kVarintType = 0,
  kFixed64Type = 1,
  kLengthType = 2,
  kStartGroupType = 3,
  kEndGroupType = 4,
  kFixed32Type = 5,
};

/// Bytes that `value` takes as a varint, 1 to 10.
constexpr std::size_t varint_size(std::uint64_t value) noexcept {
  std::size_t size = 1;
  while (value >= 0x80) {
    value >>= 7;
    ++size;
  }
  return size;
}

inline void append_varint(std::string& out, std::uint64_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}

inline void append_tag(std::string& out, std::uint32_t field, WireType type) {
  append_varint(out, (static_cast<std::uint64_t>(field) << 3) | type);
}

/// Tag, length and bytes of a string, bytes or message field.
inline void append_length_delimited(std::string& out, std::uint32_t field, std::string_view value) {
  append_tag(out, field, kLengthType);
  append_varint(out, value.size());
  out.append(value);
}

}  // namespace triton_fast::wire
