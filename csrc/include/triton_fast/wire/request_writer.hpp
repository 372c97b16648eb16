// RequestWriter: one ModelInferRequest as a gather list.
//
// Owns the header bytes; borrows the payloads. One thread at a time; finished lists may be read by
// any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "triton_fast/span.hpp"

namespace triton_fast::wire {

/// Protobuf parses no message longer than this.
inline constexpr std::size_t kMaxMessageSize = 0x7fffffff;

/// Field numbers of ModelInferRequest and of its inputs and requested outputs (protos/).
enum RequestField : std::uint32_t {
  kRequestModelName = 1,
  kRequestModelVersion = 2,
  kRequestId = 3,
  kRequestParameters = 4,
  kRequestInputs = 5,
  kRequestOutputs = 6,
  kRequestRawInputContents = 7,
};
inline constexpr std::uint32_t kInputParameters = 4;
inline constexpr std::uint32_t kRequestedOutputParameters = 2;

// One entry of a map<string, InferParameter> field, appended to an encoded message.
void append_parameter_bool(std::string& out, std::uint32_t field, std::string_view key, bool value);
void append_parameter_int64(std::string& out, std::uint32_t field, std::string_view key,
                            std::int64_t value);
void append_parameter_string(std::string& out, std::uint32_t field, std::string_view key,
                             std::string_view value);
void append_parameter_double(std::string& out, std::uint32_t field, std::string_view key,
                             double value);
void append_parameter_uint64(std::string& out, std::uint32_t field, std::string_view key,
                             std::uint64_t value);

/// Appends the name of a model and, unless it is empty, its version.
void append_model(std::string& out, std::string_view name, std::string_view version);

/// Appends a requested output; `parameters` are encoded entries.
void append_requested_output(std::string& out, std::string_view name, std::string_view parameters);

/// @brief Builds the gather list of one request.
///
/// begin(), add_input() for each tensor, seal(); then segments() and render() as often as wanted.
/// The payloads must stay where they are and unchanged for as long as those are used.
class RequestWriter {
 public:
  RequestWriter() = default;
  // The segments point into the object.
  RequestWriter(const RequestWriter&) = delete;
  RequestWriter& operator=(const RequestWriter&) = delete;

  /// @brief Starts a message. `fixed` are fields encoded beforehand (append_model and the like).
  void begin(std::string_view fixed, std::string_view request_id);

  /// @brief Adds a tensor whose bytes travel in raw_input_contents.
  /// @throws TensorError if the message would be longer than protobuf allows, naming the tensor;
  /// the request is then what it was before
  void add_input(std::string_view name, std::string_view datatype, const std::int64_t* shape,
                 std::size_t rank, std::string_view parameters, ConstBuffer payload);

  /// @brief Adds a tensor that lies in shared memory, as its parameters say.
  void add_input_without_payload(std::string_view name, std::string_view datatype,
                                 const std::int64_t* shape, std::size_t rank,
                                 std::string_view parameters);

  /// @brief Ends the message and lays out the gather list.
  /// @throws TensorError if the message is longer than protobuf allows
  void seal();

  /// Bytes of the whole message; valid after seal().
  std::size_t byte_size() const noexcept { return byte_size_; }

  /// Pieces in order; valid after seal(), while this object and the payloads live.
  const std::vector<ConstBuffer>& segments() const noexcept { return segments_; }

  /// @brief Copies the message to `out`, which has room for byte_size() bytes.
  void render(std::uint8_t* out) const noexcept;

 private:
  struct Payload {
    std::size_t header_end;  // of the bytes in raw_header_ that come before it
    ConstBuffer bytes;
  };

  std::string header_;      // everything before the first raw_input_contents
  std::string raw_header_;  // tag and length of each raw_input_contents, one after the other
  std::vector<Payload> payloads_;
  std::vector<ConstBuffer> segments_;
  std::size_t payload_size_ = 0;
  std::size_t byte_size_ = 0;
};

}  // namespace triton_fast::wire
