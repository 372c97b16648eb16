// FrameHeads: a walk over the heads of the peer's frames, one step ahead of nghttp2.
//
// It knows where the payload of a DATA frame goes on, so that a tensor can be received in its
// place, and stops at the frames that nghttp2 would take memory or time for without end. Owns the
// head at hand as far as it has come, and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

#include "triton_fast/span.hpp"

namespace triton_fast::http2 {

/// Most bytes of headers in one answer, decoded, and of one header block as it is sent. Twice the
/// longest list that the peer is told to send: an answer has two.
inline constexpr std::size_t kMostHeaderBytes = std::size_t{128} << 10;

class FrameHeads {
 public:
  /// Why walk() stopped.
  enum class Fault { kNone, kPush, kLongGoaway, kLongBlock };

  /// @brief Walks over bytes that have come.
  /// @return how many of them are nghttp2's: all, or those before a frame with a fault()
  std::size_t walk(ConstBuffer bytes) noexcept;

  Fault fault() const noexcept { return fault_; }

  /// The stream of the frame that was begun last.
  std::int32_t stream_id() const noexcept { return stream_id_; }

  /// @brief How many bytes are to come of the DATA frame at hand: nothing but the data of
  /// stream_id(), without padding. 0 if it is no such frame.
  std::size_t data_left() const noexcept { return data_ ? left_ : 0; }

 private:
  bool begin(const std::uint8_t* head) noexcept;

  std::uint8_t head_[9] = {};
  std::size_t head_size_ = 0;
  std::size_t left_ = 0;  // of the payload of the frame at hand
  bool data_ = false;     // it is DATA without padding
  std::int32_t stream_id_ = 0;
  std::size_t block_size_ = 0;  // of the header block at hand, with the heads of its frames
  Fault fault_ = Fault::kNone;
};

}  // namespace triton_fast::http2
