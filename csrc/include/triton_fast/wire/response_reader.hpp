// ResponseReader: ModelInferResponse, by itself or in a stream's envelope, parsed as its bytes
// arrive.
//
// Owns what it has parsed; borrows the destinations given with place(). One thread at a time.
// Trusts nothing: every length is held against what is left of the enclosing message before it is
// used, and memory is taken in proportion to what has arrived.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "triton_fast/span.hpp"
#include "triton_fast/wire/buffer.hpp"
#include "triton_fast/wire/datatype.hpp"

namespace triton_fast::wire {

/// One value of a map<string, InferParameter>.
struct Parameter {
  enum class Kind : std::uint8_t { kNone, kBool, kInt64, kString, kDouble, kUint64 };

  std::string key;
  Kind kind = Kind::kNone;
  std::uint64_t bits = 0;  // of the bool, the integers and the double
  std::string text;
};

/// One tensor of a response.
struct Output {
  /// Where its elements are.
  enum class Source : std::uint8_t {
    kOwned,         // in `payload`
    kPlaced,        // in the destination given with place()
    kSharedMemory,  // in the region that the request named for it
  };

  std::string name;
  std::string datatype_name;
  Datatype datatype = Datatype::kUnknown;
  std::vector<std::int64_t> shape;
  std::vector<Parameter> parameters;  // as they came: the last one of a key counts
  Source source = Source::kOwned;
  OwnedBuffer payload;
};

/// @brief Incremental parser of one ModelInferResponse, or of one ModelStreamInferResponse.
///
/// Optionally expect_envelope(), place() and expect_shared_memory(); then begin(), feed() with
/// pieces of any size, finish(), and read the results. After an exception nothing but destruction
/// is allowed.
class ResponseReader {
 public:
  ResponseReader() = default;
  // The parser points into what it has parsed.
  ResponseReader(const ResponseReader&) = delete;
  ResponseReader& operator=(const ResponseReader&) = delete;

  /// @brief Has the output `name` written to `destination`, if it is of this datatype and shape.
  ///
  /// One that is not is a TensorError from finish(), except that a BYTES output is never placed.
  /// The destination must live until the reader is destroyed; its contents are undefined if
  /// anything throws.
  void place(std::string name, Datatype datatype, std::vector<std::int64_t> shape,
             MutableBuffer destination);

  /// @brief Says that the request asked for this output in shared memory, so that no elements come.
  void expect_shared_memory(std::string name);

  /// @brief Says that the message is a stream's: ModelStreamInferResponse, or a ModelInferResponse
  /// by itself, which is what other servers than Triton send there.
  void expect_envelope() noexcept { enveloped_ = true; }

  /// @brief Announces a message of this many bytes. @throws WireError if no message may be so long
  void begin(std::uint64_t message_size);

  /// @brief Takes the next piece. @throws WireError, std::bad_alloc
  void feed(ConstBuffer piece);

  /// @brief Where a tensor's next bytes belong; empty if the next bytes are not a tensor's.
  ///
  /// Bytes that were written there are not copied when they are fed from there. Valid until the
  /// next call of anything else.
  MutableBuffer landing() noexcept;

  /// @brief Checks that the message is complete and its tensors add up. Idempotent.
  /// @throws WireError if they do not; TensorError if one does not fit its destination
  void finish();

  /// @brief About how much memory it takes beside texts and elements, which are as large as the
  /// message: small entries make records that are many times larger.
  std::size_t footprint() const noexcept;

  // Results; valid after finish().
  /// Of the envelope; empty if nothing went wrong.
  const std::string& error_message() const noexcept { return error_message_; }
  const std::string& model_name() const noexcept { return model_name_; }
  const std::string& model_version() const noexcept { return model_version_; }
  const std::string& id() const noexcept { return id_; }
  /// As they came: the last one of a key counts.
  const std::vector<Parameter>& parameters() const noexcept { return parameters_; }
  std::vector<Output>& outputs() noexcept { return outputs_; }

 private:
  enum class Message : std::uint8_t { kEnvelope, kResponse, kOutput, kContents, kEntry, kValue };
  enum class State : std::uint8_t {
    kTag,
    kVarint,
    kFixed,
    kLength,
    kSkip,
    kText,
    kRaw,
    kPackedVarint,
    kPackedFixed,
    kElement,
    kDone,
    kFailed,
  };

  struct Frame {
    Message message;
    std::uint64_t end;  // position of the first byte after it
  };

  struct Destination {
    std::string name;
    Datatype datatype;
    std::vector<std::int64_t> shape;
    MutableBuffer memory;
    bool filled;
  };

  /// Elements of the output being read that came in InferTensorContents, by the field they came in.
  struct Contents {
    std::uint32_t field = 0;  // 0: none yet
    std::size_t count = 0;
    OwnedBuffer elements;  // as the field's own type; bytes_contents as a BYTES payload
  };

  Message message() const noexcept { return frames_[depth_ - 1].message; }
  std::uint64_t frame_end() const noexcept { return frames_[depth_ - 1].end; }

  bool take_varint(const std::uint8_t*& p, const std::uint8_t* end);
  bool take_fixed(const std::uint8_t*& p, const std::uint8_t* end);
  bool take_packed(const std::uint8_t*& p, const std::uint8_t* end);
  void on_tag();
  void on_varint();
  void on_fixed();
  void on_length();
  void begin_envelope_field(std::uint64_t size);
  void begin_bare_field(std::uint64_t size);
  void read_held();
  void begin_response_field(std::uint64_t size);
  void begin_output_field(std::uint64_t size);
  void begin_contents_field(std::uint64_t size);
  void begin_entry_field(std::uint64_t size);
  void begin_value_field(std::uint64_t size);
  void on_group_tag();
  void begin_token(State state);
  void begin_parameter(std::uint64_t size);
  void begin_element(std::uint64_t size);
  void end_token();
  void push(Message message, std::uint64_t size);
  void end_message();
  void begin_text(std::string& target, std::uint64_t size);
  void end_text();
  void begin_raw(std::uint64_t size);
  void grow_raw(std::size_t size);
  void end_raw();
  void begin_contents(std::uint32_t field);
  void add_content(std::uint64_t bits);
  void end_output();
  void settle_contents(Output& output);
  void settle_raw(Output& output, std::size_t index);
  std::uint64_t check_shape(const Output& output) const;
  void check_payload(const Output& output, ConstBuffer payload);
  Destination* destination_of(const Output& output) noexcept;
  bool in_shared_memory(const Output& output) const noexcept;

  std::string field_name() const;
  std::string output_label(std::size_t index) const;
  [[noreturn]] void fail(const std::string& what);

  // Parser.
  State state_ = State::kFailed;  // until begin()
  bool complete_ = false;         // finish() has found everything to be right
  std::array<Frame, 6> frames_{};
  std::size_t depth_ = 0;
  std::uint64_t position_ = 0;  // bytes consumed
  std::uint64_t value_ = 0;     // varint or fixed value being gathered
  unsigned shift_ = 0;          // bits gathered of it
  unsigned fixed_size_ = 0;     // bytes of the fixed value being gathered
  std::uint32_t field_ = 0;
  std::uint32_t wire_type_ = 0;
  std::uint64_t token_end_ = 0;  // position of the first byte after a length-delimited field
  std::size_t at_hand_ = 0;      // bytes left in the piece being fed
  std::string* text_ = nullptr;
  std::vector<std::uint32_t> groups_;

  // What is being read.
  bool enveloped_ = false;
  bool responded_ = false;  // the envelope's response was begun
  std::string held_;  // a field 2 after a field 1, until what follows says which message's it is
  Parameter entry_;
  Contents contents_;
  std::vector<Contents> output_contents_;  // one for each output
  OwnedBuffer raw_;
  std::uint8_t* raw_target_ = nullptr;  // in a destination; null: raw_ grows

  // Results.
  std::string error_message_;
  std::string model_name_;
  std::string model_version_;
  std::string id_;
  std::vector<Parameter> parameters_;
  std::size_t parameter_count_ = 0;  // the outputs' too
  std::vector<Output> outputs_;
  struct Raw {
    OwnedBuffer elements;
    Destination* placed = nullptr;
  };
  std::vector<Raw> raws_;

  std::vector<Destination> destinations_;
  std::vector<std::string> shared_memory_;
};

}  // namespace triton_fast::wire
