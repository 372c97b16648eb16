// Where wire and http2 meet: sinks for the messages that a channel receives. Nothing else knows
// both.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "triton_fast/error.hpp"
#include "triton_fast/http2/message.hpp"
#include "triton_fast/wire/buffer.hpp"
#include "triton_fast/wire/request_writer.hpp"
#include "triton_fast/wire/response_reader.hpp"

namespace triton_fast {

/// Has a ModelInferResponse parsed as it arrives. Borrows the reader.
class ReaderSink final : public http2::MessageSink {
 public:
  explicit ReaderSink(wire::ResponseReader* reader) : reader_(reader) {}
  void begin(std::uint64_t size) override { reader_->begin(size); }
  void feed(ConstBuffer piece) override { reader_->feed(piece); }
  void finish() override { reader_->finish(); }

 private:
  wire::ResponseReader* reader_;
};

/// Gathers any message in one piece: management calls, and what is to be decompressed.
class BufferSink final : public http2::MessageSink {
 public:
  void begin(std::uint64_t size) override {
    if (size > kMost) {
      throw WireError("the answer is " + std::to_string(size) + " bytes long; protobuf allows " +
                      std::to_string(kMost));
    }
    buffer_.clear();
    // The announced size is a stranger's word; beyond this, memory is taken as bytes arrive.
    buffer_.reserve(static_cast<std::size_t>(std::min<std::uint64_t>(size, kEager)) + 1);
  }
  void feed(ConstBuffer piece) override { buffer_.append(piece.data, piece.size); }
  void finish() override { complete_ = true; }

  bool complete() const noexcept { return complete_; }
  const wire::OwnedBuffer& buffer() const noexcept { return buffer_; }

 private:
  static constexpr std::uint64_t kMost = 0x7fffffff;
  static constexpr std::uint64_t kEager = std::uint64_t{16} << 20;

  wire::OwnedBuffer buffer_;
  bool complete_ = false;
};

/// @brief Throws what the sink threw, if it did.
inline void rethrow(const http2::Outcome& outcome) {
  if (outcome.exception != nullptr) std::rethrow_exception(outcome.exception);
}

}  // namespace triton_fast
