// HeaderBlocks: header lists of any size, for nghttp2, which refuses a value of more than 64 KiB.
//
// The peer's bytes go through here on their way to nghttp2. Long values are taken out of a header
// block and a mark is left in the place of each; everything else passes as it came. Header blocks
// without end stop here too, and frames that no gRPC server sends and nghttp2 would take memory
// for. Owns the block that is being gathered and the values taken out of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "triton_fast/error.hpp"
#include "triton_fast/span.hpp"

namespace triton_fast::http2 {

/// Most bytes of headers in one answer. Servers put whole tracebacks in grpc-message.
inline constexpr std::size_t kMostHeaderBytes = std::size_t{16} << 20;

/// The peer's frames are such that there is no going on.
class HeaderBlockError : public Error {
 public:
  HeaderBlockError(const std::string& message, std::int32_t stream_id, bool too_large)
      : Error(message), stream_id_(stream_id), too_large_(too_large) {}
  std::int32_t stream_id() const noexcept { return stream_id_; }
  bool too_large() const noexcept { return too_large_; }

 private:
  std::int32_t stream_id_;
  bool too_large_;
};

class HeaderBlocks {
 public:
  /// @brief Takes the front off `bytes` and says what nghttp2 is to be given for it.
  ///
  /// Call it until it returns an empty piece; `bytes` is empty then. A piece is valid until the
  /// next call.
  /// @throws HeaderBlockError
  ConstBuffer next(ConstBuffer& bytes);

  /// @brief How many bytes are to come of the DATA frame at hand, and whose: nothing but the
  /// stream's data, without padding. 0 if it is no such frame.
  std::size_t data_left(std::int32_t& stream_id) const noexcept {
    stream_id = data_stream_id_;
    return gathering_ || data_stream_id_ == 0 ? 0 : left_;
  }

  /// @brief The value that a mark in the piece returned last stands for; nullptr if it is no mark.
  const std::string* taken_out(std::string_view mark) const noexcept;

 private:
  std::size_t passing(ConstBuffer bytes);
  bool passes(const std::uint8_t* head);
  void pass(const std::uint8_t* head);
  void begin_frame(const std::uint8_t* head);
  void end_frame();
  void rewrite();
  void emit(std::string_view block);

  bool first_ = true;
  bool foreign_ = false;       // the peer does not speak HTTP/2; nghttp2 will say so
  std::uint8_t head_[9] = {};  // of a frame, as far as it has come
  std::size_t head_size_ = 0;
  std::size_t left_ = 0;             // of the payload of the frame at hand
  std::int32_t data_stream_id_ = 0;  // if that is a DATA frame without padding
  // The block that is being gathered.
  bool gathering_ = false;
  std::int32_t stream_id_ = 0;
  std::uint8_t first_flags_ = 0;
  std::uint8_t flags_ = 0;  // of the frame at hand
  std::size_t frames_ = 0;
  std::string block_;
  // What became of it.
  std::string rewritten_;
  std::vector<std::string> values_;
};

/// @brief Undoes HPACK's Huffman code. @return false if it is broken, or longer than `most` bytes
bool decode_huffman(std::string_view encoded, std::size_t most, std::string& decoded);

}  // namespace triton_fast::http2
