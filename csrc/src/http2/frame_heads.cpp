// Source: RFC 9113 sections 4.1, 6.2, 6.6, 6.8, 6.10.
#include "triton_fast/http2/frame_heads.hpp"

#include <algorithm>
#include <cstring>

namespace triton_fast::http2 {
namespace {

constexpr std::size_t kHead = 9;
constexpr std::uint8_t kData = 0;
constexpr std::uint8_t kHeaders = 1;
constexpr std::uint8_t kPushPromise = 5;
constexpr std::uint8_t kGoaway = 7;
constexpr std::uint8_t kContinuation = 9;
constexpr std::uint8_t kPadded = 0x8;
// What a peer may always send, whether or not it has seen our settings.
constexpr std::size_t kFrameSize = 16384;

std::uint32_t read_number(const std::uint8_t* bytes, std::size_t size) noexcept {
  std::uint32_t number = 0;
  for (std::size_t i = 0; i < size; ++i) number = number << 8 | bytes[i];
  return number;
}

}  // namespace

std::size_t FrameHeads::walk(ConstBuffer bytes) noexcept {
  std::size_t at = 0;
  while (at < bytes.size) {
    const std::size_t rest = bytes.size - at;
    if (left_ != 0) {
      const std::size_t size = std::min(left_, rest);
      at += size;
      left_ -= size;
    } else if (head_size_ == 0 && rest >= kHead) {
      if (!begin(bytes.data + at)) return at;
      at += kHead;
    } else {
      const std::size_t size = std::min(kHead - head_size_, rest);
      std::memcpy(head_ + head_size_, bytes.data + at, size);
      head_size_ += size;
      if (head_size_ == kHead) {
        head_size_ = 0;
        if (!begin(head_)) return at;
      }
      at += size;
    }
  }
  return at;
}

/// @return false if it has a fault
bool FrameHeads::begin(const std::uint8_t* head) noexcept {
  const std::size_t length = read_number(head, 3);
  const std::uint8_t type = head[3];
  const std::uint8_t flags = head[4];
  left_ = length;
  stream_id_ = static_cast<std::int32_t>(read_number(head + 5, 4) & 0x7fffffff);
  data_ = type == kData && (flags & kPadded) == 0;
  if (type == kHeaders || type == kContinuation) {
    // nghttp2 would take CONTINUATION without end. With its head, an empty one counts too.
    block_size_ = (type == kHeaders ? 0 : block_size_) + kHead + length;
    if (block_size_ > kMostHeaderBytes) fault_ = Fault::kLongBlock;
  } else if (type == kPushPromise) {
    fault_ = Fault::kPush;
  } else if (type == kGoaway && length > kFrameSize) {
    fault_ = Fault::kLongGoaway;  // nghttp2 takes the memory for all of it when it begins
  }
  return fault_ == Fault::kNone;
}

}  // namespace triton_fast::http2
