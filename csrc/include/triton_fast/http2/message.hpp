// What travels: a call as a channel hands it over, and what came of it.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "triton_fast/http2/status.hpp"
#include "triton_fast/span.hpp"

namespace triton_fast::http2 {

/// @brief Takes the response's message as it arrives.
///
/// May throw; the call then ends with that exception.
class MessageSink {
 public:
  virtual ~MessageSink() = default;
  virtual void begin(std::uint64_t size) = 0;
  virtual void feed(ConstBuffer piece) = 0;
  virtual void finish() = 0;
  /// @brief Where the message's next bytes belong, as far as that is known; empty if it is not.
  ///
  /// They may be written there before they are fed from there, which spares a copy. Valid until the
  /// next call of anything else.
  virtual MutableBuffer landing() noexcept { return {}; }
  /// Whether there is a message that somebody should take now, before more are read. For streams.
  virtual bool ready() const noexcept { return false; }
  /// Whether no more should be read until some were taken.
  virtual bool full() const noexcept { return false; }
};

/// A call. The segments' memory is borrowed until the call is over.
struct CallSpec {
  std::string path;
  std::vector<std::pair<std::string, std::string>> metadata;  // as on the wire
  std::string encoding;                                       // of the message; empty: as it is
  std::vector<ConstBuffer> segments;
  std::uint64_t message_size = 0;
  // Any number of messages each way: there are no segments, and each message is sent by itself.
  bool streaming = false;
};

/// What came of a call.
struct Outcome {
  Status status = Status::kUnknown;
  std::string message;
  bool compressed = false;       // the sink was given a compressed message
  std::string encoding;          // grpc-encoding of the response
  bool safe_to_retry = false;    // the server cannot have acted on it: safe to send again
  std::exception_ptr exception;  // thrown by the sink
};

}  // namespace triton_fast::http2
