// A walk over a protobuf message without its schema.
#include "triton_fast/wire/entries.hpp"

#include <cstdint>

#include "triton_fast/wire/varint.hpp"

namespace triton_fast::wire {
namespace {

// The messages of protos/ are six deep, with a map's entries. What lies deeper is an unknown field,
// which protobuf keeps as the bytes that it is.
constexpr unsigned kDeepest = 8;

/// Takes a varint off the front; false if there is none.
bool take_varint(ConstBuffer& rest, std::uint64_t& value) noexcept {
  value = 0;
  for (unsigned shift = 0; shift < 64 && rest.size != 0; shift += 7) {
    const std::uint8_t byte = *rest.data++;
    --rest.size;
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

void count(ConstBuffer rest, std::size_t most, unsigned depth, std::size_t& found) noexcept {
  std::uint64_t tag = 0;
  while (found <= most && take_varint(rest, tag) && tag >> 3 != 0) {
    std::uint64_t size = 0;
    switch (tag & 7) {
      case kVarintType:
        if (!take_varint(rest, size)) return;
        size = 0;
        break;
      case kFixed64Type:
        size = 8;
        break;
      case kFixed32Type:
        size = 4;
        break;
      case kLengthType:
        if (!take_varint(rest, size)) return;
        ++found;
        break;
      case kStartGroupType:
      case kEndGroupType:
        break;
      default:
        return;
    }
    if (size > rest.size) return;
    const auto whole = static_cast<std::size_t>(size);
    if ((tag & 7) == kLengthType && depth < kDeepest) {
      count({rest.data, whole}, most, depth + 1, found);
    }
    rest.data += whole;
    rest.size -= whole;
  }
}

}  // namespace

std::size_t count_entries(ConstBuffer message, std::size_t most) noexcept {
  std::size_t found = 0;
  count(message, most, 0, found);
  return found;
}

}  // namespace triton_fast::wire
