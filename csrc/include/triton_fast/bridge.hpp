// Where wire and http2 meet: sinks for the messages that a channel receives. Nothing else knows
// both.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

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
  MutableBuffer landing() noexcept override { return reader_->landing(); }

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

/// Has a stream's messages parsed as they arrive, and keeps them until they are taken. One thread
/// receives, and any may take.
class QueueSink final : public http2::MessageSink {
 public:
  void begin(std::uint64_t size) override {
    current_ = std::make_unique<wire::ResponseReader>();
    current_->expect_envelope();
    current_->begin(size);
    size_ = size;
  }
  void feed(ConstBuffer piece) override { current_->feed(piece); }
  void finish() override {
    current_->finish();
    // Texts and elements, and the records of what may be two bytes each in the message.
    const std::uint64_t taken = size_ + current_->footprint();
    const std::lock_guard<std::mutex> lock(mutex_);
    messages_.push_back({std::move(current_), taken});
    byte_size_ += taken;
    count_.store(messages_.size());
  }
  MutableBuffer landing() noexcept override {
    return current_ == nullptr ? MutableBuffer{} : current_->landing();
  }
  bool ready() const noexcept override { return count_.load() != 0; }
  bool full() const noexcept override { return byte_size_.load() > kMost; }

  /// @brief Returns the oldest message, complete, with its ownership; null if there is none.
  wire::ResponseReader* take() noexcept {
    if (!ready()) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (messages_.empty()) return nullptr;
    wire::ResponseReader* const message = messages_.front().reader.release();
    byte_size_ -= messages_.front().size;
    messages_.pop_front();
    count_.store(messages_.size());
    return message;
  }

 private:
  // What may come while a message is sent that the server does not take before its own were read.
  static constexpr std::uint64_t kMost = std::uint64_t{64} << 20;

  struct Message {
    std::unique_ptr<wire::ResponseReader> reader;
    std::uint64_t size;  // in memory, about
  };

  std::unique_ptr<wire::ResponseReader> current_;
  std::uint64_t size_ = 0;
  std::mutex mutex_;  // of the messages
  std::deque<Message> messages_;
  std::atomic<std::size_t> count_{0};
  std::atomic<std::uint64_t> byte_size_{0};
};

/// @brief Throws what the sink threw, if it did.
inline void rethrow(const http2::Outcome& outcome) {
  if (outcome.exception != nullptr) std::rethrow_exception(outcome.exception);
}

}  // namespace triton_fast
