// The state machine that reads ModelInferResponse, and the checks that make tensors of it.
#include "triton_fast/wire/response_reader.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "triton_fast/error.hpp"
#include "triton_fast/wire/request_writer.hpp"  // kMaxMessageSize
#include "triton_fast/wire/strings.hpp"
#include "triton_fast/wire/varint.hpp"

namespace triton_fast::wire {
namespace {

// Field numbers; protos/inference.proto has their meaning.
namespace envelope {
enum : std::uint32_t { kErrorMessage = 1, kInferResponse };
}
namespace response {
enum : std::uint32_t { kModelName = 1, kModelVersion, kId, kParameters, kOutputs, kRawContents };
}
namespace output {
enum : std::uint32_t { kName = 1, kDatatype, kShape, kParameters, kContents };
}
namespace contents {
enum : std::uint32_t { kBool = 1, kInt, kInt64, kUint, kUint64, kFp32, kFp64, kBytes };
}
namespace entry {
enum : std::uint32_t { kKey = 1, kValue };
}
namespace value {
enum : std::uint32_t { kBool = 1, kInt64, kString, kDouble, kUint64 };
}

// numpy 1 stops at 32 dimensions, and so do we.
constexpr std::size_t kMaxRank = 32;
// Outputs, and raw contents: far more than any model has, and few enough that a hostile message of
// two-byte entries cannot make us take a hundred times its size.
constexpr std::size_t kMaxEntries = 4096;
// Parameters of the response and of all its outputs together: a few for each output, or thousands
// of the response's. With a limit for each, outputs and parameters multiply: 33 MB made 1.3 GiB.
constexpr std::size_t kMaxParameters = 16384;
// protobuf's own limit for nesting, of messages and groups together.
constexpr std::size_t kMaxDepth = 100;
// What a bare response's version may have where one is told from an envelope.
constexpr std::size_t kLongestVersion = 256;
// Memory that is taken on the word of a length alone. What lies past it is taken as bytes arrive.
constexpr std::size_t kEagerSize = std::size_t{32} << 20;

/// Bytes of one element as the given field of InferTensorContents holds it; 0 for bytes_contents.
constexpr std::size_t content_size(std::uint32_t field) noexcept {
  switch (field) {
    case contents::kBool:
      return 1;
    case contents::kInt:
    case contents::kUint:
    case contents::kFp32:
      return 4;
    case contents::kInt64:
    case contents::kUint64:
    case contents::kFp64:
      return 8;
    default:
      return 0;
  }
}

constexpr bool is_varint_content(std::uint32_t field) noexcept {
  return field >= contents::kBool && field <= contents::kUint64;
}

/// The field of InferTensorContents that carries a datatype; 0 when none does.
constexpr std::uint32_t content_field(Datatype datatype) noexcept {
  switch (datatype) {
    case Datatype::kBool:
      return contents::kBool;
    case Datatype::kInt8:
    case Datatype::kInt16:
    case Datatype::kInt32:
      return contents::kInt;
    case Datatype::kInt64:
      return contents::kInt64;
    case Datatype::kUint8:
    case Datatype::kUint16:
    case Datatype::kUint32:
      return contents::kUint;
    case Datatype::kUint64:
      return contents::kUint64;
    case Datatype::kFp32:
      return contents::kFp32;
    case Datatype::kFp64:
      return contents::kFp64;
    case Datatype::kBytes:
      return contents::kBytes;
    default:
      return 0;
  }
}

const char* content_name(std::uint32_t field) noexcept {
  static constexpr const char* kNames[] = {"bool_contents", "int_contents",    "int64_contents",
                                           "uint_contents", "uint64_contents", "fp32_contents",
                                           "fp64_contents", "bytes_contents"};
  return field >= 1 && field <= 8 ? kNames[field - 1] : "contents";
}

/// Elements of a shape; false if no array can have it: a dimension is negative, or the bytes do not
/// fit a signed number. Zeros count as ones in that, as they do in numpy, which has no array of
/// shape [0, 1 << 62, 4] either.
bool element_count(const std::vector<std::int64_t>& shape, std::size_t size,
                   std::uint64_t& count) noexcept {
  std::uint64_t room = static_cast<std::uint64_t>(INT64_MAX) / size;
  bool empty = false;
  count = 1;
  for (const std::int64_t dimension : shape) {
    if (dimension < 0) return false;
    if (dimension == 0) {
      empty = true;
      continue;
    }
    room /= static_cast<std::uint64_t>(dimension);
    if (room == 0) return false;
    count *= static_cast<std::uint64_t>(dimension);
  }
  if (empty) count = 0;
  return true;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

std::string too_many(const char* what, std::size_t most) {
  return std::string("has more than ") + std::to_string(most) + " " + what;
}

/// Text from the peer made fit for an error message: short, and UTF-8 (it was checked on arrival).
std::string quoted(const std::string& text) {
  constexpr std::size_t kLongest = 80;
  if (text.size() <= kLongest) return "'" + text + "'";
  std::size_t end = kLongest;
  while (end > 0 && (static_cast<std::uint8_t>(text[end]) & 0xc0) == 0x80) --end;
  return "'" + text.substr(0, end) + "…'";
}

template <typename Narrow, typename Wide>
bool narrow(const OwnedBuffer& from, std::size_t count, OwnedBuffer& to) {
  to.reserve(std::max<std::size_t>(count * sizeof(Narrow), 1));
  for (std::size_t i = 0; i < count; ++i) {
    Wide wide;
    std::memcpy(&wide, from.data() + i * sizeof wide, sizeof wide);
    const auto small = static_cast<Narrow>(wide);
    if (static_cast<Wide>(small) != wide) return false;
    std::memcpy(to.data() + i * sizeof small, &small, sizeof small);
  }
  to.set_size(count * sizeof(Narrow));
  return true;
}

}  // namespace

void ResponseReader::place(std::string name, Datatype datatype, std::vector<std::int64_t> shape,
                           MutableBuffer destination) {
  destinations_.push_back({std::move(name), datatype, std::move(shape), destination, false});
}

void ResponseReader::expect_shared_memory(std::string name) {
  shared_memory_.push_back(std::move(name));
}

void ResponseReader::begin(std::uint64_t message_size) {
  if (message_size > kMaxMessageSize) {
    throw WireError(field_name() + ": " + std::to_string(message_size) +
                    " bytes announced; protobuf allows " + std::to_string(kMaxMessageSize));
  }
  frames_[0] = {enveloped_ ? Message::kEnvelope : Message::kResponse, message_size};
  depth_ = 1;
  state_ = message_size == 0 ? State::kDone : State::kTag;
}

void ResponseReader::feed(ConstBuffer piece) {
  const std::uint8_t* p = piece.data;
  const std::uint8_t* const end = p + piece.size;
  while (p != end) {
    switch (state_) {
      case State::kTag:
        if (take_varint(p, end)) on_tag();
        break;
      case State::kVarint:
      case State::kPackedVarint:
        if (take_varint(p, end)) on_varint();
        break;
      case State::kPackedFixed:
        if (take_packed(p, end)) break;
        [[fallthrough]];
      case State::kFixed:
        if (take_fixed(p, end)) on_fixed();
        break;
      case State::kLength:
        if (take_varint(p, end)) {
          at_hand_ = static_cast<std::size_t>(end - p);
          on_length();
        }
        break;
      case State::kSkip:
      case State::kText:
      case State::kRaw:
      case State::kElement: {
        const auto size = static_cast<std::size_t>(
            std::min<std::uint64_t>(token_end_ - position_, static_cast<std::uint64_t>(end - p)));
        if (state_ == State::kText) {
          text_->append(reinterpret_cast<const char*>(p), size);
        } else if (state_ == State::kElement) {
          contents_.elements.append(p, size);
        } else if (state_ == State::kRaw) {
          if (raw_target_ != nullptr) {
            if (raw_target_ != p) std::memcpy(raw_target_, p, size);  // see landing()
            raw_target_ += size;
          } else {
            grow_raw(size);
            raw_.append(p, size);
          }
        }
        p += size;
        position_ += size;
        if (position_ == token_end_) {
          if (state_ == State::kText) end_text();
          if (state_ == State::kRaw) end_raw();
          end_token();
        }
        break;
      }
      case State::kDone:
        fail("goes on after the " + std::to_string(position_) + " bytes that were announced");
      case State::kFailed:
        throw WireError("ModelInferResponse: the reader failed before, or was never begun");
    }
  }
}

MutableBuffer ResponseReader::landing() noexcept {
  if (state_ != State::kRaw) return {};
  const auto left = static_cast<std::size_t>(token_end_ - position_);
  if (raw_target_ != nullptr) return {raw_target_, left};
  return {raw_.data() + raw_.size(), std::min(raw_.capacity() - raw_.size(), left)};
}

bool ResponseReader::take_varint(const std::uint8_t*& p, const std::uint8_t* end) {
  const std::uint64_t limit =
      state_ == State::kPackedVarint || state_ == State::kPackedFixed ? token_end_ : frame_end();
  while (p != end) {
    const std::uint8_t byte = *p++;
    ++position_;
    // The tenth byte has one bit to give; protobuf drops what lies above it, and so do we.
    value_ |= static_cast<std::uint64_t>(byte & 0x7f) << shift_;
    if (byte < 0x80) {
      shift_ = 0;
      return true;
    }
    if (position_ == limit) fail("ends in the middle of a varint");
    shift_ += 7;
    if (state_ == State::kTag && shift_ > 28) fail("has a tag of more than five bytes");
    if (shift_ > 63) fail("has a varint of more than ten bytes");
  }
  return false;
}

bool ResponseReader::take_fixed(const std::uint8_t*& p, const std::uint8_t* end) {
  while (p != end) {
    value_ |= static_cast<std::uint64_t>(*p++) << shift_;
    ++position_;
    shift_ += 8;
    if (shift_ == 8 * fixed_size_) {
      shift_ = 0;
      return true;
    }
  }
  return false;
}

bool ResponseReader::take_packed(const std::uint8_t*& p, const std::uint8_t* end) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  // Whole numbers lie in the message as they will lie in memory.
  if (shift_ != 0) return false;
  auto size = static_cast<std::size_t>(
      std::min<std::uint64_t>(token_end_ - position_, static_cast<std::uint64_t>(end - p)));
  size -= size % fixed_size_;
  if (size == 0) return false;
  contents_.elements.append(p, size);
  contents_.count += size / fixed_size_;
  p += size;
  position_ += size;
  if (position_ == token_end_) end_token();
  return true;
#else
  static_cast<void>(p), static_cast<void>(end);
  return false;
#endif
}

void ResponseReader::on_tag() {
  const std::uint64_t tag = std::exchange(value_, 0);
  field_ = static_cast<std::uint32_t>(tag >> 3);
  wire_type_ = static_cast<std::uint32_t>(tag & 7);
  if (tag > 0xffffffff || field_ == 0) fail("has a tag that protobuf does not allow");
  switch (wire_type_) {
    case kVarintType:
      state_ = State::kVarint;
      break;
    case kFixed64Type:
    case kFixed32Type:
      fixed_size_ = wire_type_ == kFixed64Type ? 8 : 4;
      if (frame_end() - position_ < fixed_size_) fail("ends in the middle of a number");
      state_ = State::kFixed;
      break;
    case kLengthType:
      state_ = State::kLength;
      break;
    case kStartGroupType:
    case kEndGroupType:
      on_group_tag();
      end_token();
      return;
    default:
      fail("has a field of wire type " + std::to_string(wire_type_) + ", which there is none of");
  }
  if (position_ == frame_end()) fail("ends after a tag");
}

void ResponseReader::on_group_tag() {
  if (wire_type_ == kStartGroupType) {
    if (groups_.size() + depth_ - 1 == kMaxDepth) fail("nests groups too deeply");
    groups_.push_back(field_);
    return;
  }
  if (groups_.empty() || groups_.back() != field_) fail("ends a group that it did not begin");
  groups_.pop_back();
}

void ResponseReader::on_varint() {
  const std::uint64_t value = std::exchange(value_, 0);
  if (state_ == State::kPackedVarint) {
    add_content(value);
    if (position_ == token_end_) end_token();
    return;
  }
  if (groups_.empty()) {
    switch (message()) {
      case Message::kOutput:
        if (field_ == output::kShape) add_content(value);
        break;
      case Message::kContents:
        if (is_varint_content(field_)) {
          begin_contents(field_);
          add_content(value);
        }
        break;
      case Message::kValue:
        if (field_ == value::kBool || field_ == value::kInt64 || field_ == value::kUint64) {
          entry_.kind = field_ == value::kBool    ? Parameter::Kind::kBool
                        : field_ == value::kInt64 ? Parameter::Kind::kInt64
                                                  : Parameter::Kind::kUint64;
          entry_.bits = field_ == value::kBool ? static_cast<std::uint64_t>(value != 0) : value;
          entry_.text.clear();
        }
        break;
      default:
        break;
    }
  }
  end_token();
}

void ResponseReader::on_fixed() {
  const std::uint64_t value = std::exchange(value_, 0);
  if (state_ == State::kPackedFixed) {
    add_content(value);
    if (position_ == token_end_) end_token();
    return;
  }
  if (groups_.empty()) {
    if (message() == Message::kContents && ((field_ == contents::kFp32 && fixed_size_ == 4) ||
                                            (field_ == contents::kFp64 && fixed_size_ == 8))) {
      begin_contents(field_);
      add_content(value);
    } else if (message() == Message::kValue && field_ == value::kDouble && fixed_size_ == 8) {
      entry_.kind = Parameter::Kind::kDouble;
      entry_.bits = value;
      entry_.text.clear();
    }
  }
  end_token();
}

void ResponseReader::on_length() {
  const std::uint64_t size = std::exchange(value_, 0);
  if (size > frame_end() - position_) {
    fail("says that it has " + std::to_string(size) + " bytes where " +
         std::to_string(frame_end() - position_) + " are left");
  }
  token_end_ = position_ + size;
  if (!groups_.empty()) return begin_token(State::kSkip);
  switch (message()) {
    case Message::kEnvelope:
      return begin_envelope_field(size);
    case Message::kResponse:
      return begin_response_field(size);
    case Message::kOutput:
      return begin_output_field(size);
    case Message::kContents:
      return begin_contents_field(size);
    case Message::kEntry:
      return begin_entry_field(size);
    case Message::kValue:
      return begin_value_field(size);
  }
}

void ResponseReader::begin_envelope_field(std::uint64_t size) {
  switch (field_) {
    case envelope::kErrorMessage:
      return begin_text(error_message_, size);
    case envelope::kInferResponse:
      if (!responded_ && !error_message_.empty() && size != 0 && size <= kLongestVersion) {
        if (held_.empty()) return begin_text(held_, size);
      }
      if (!held_.empty()) read_held();  // it comes twice, and goes on with the same message
      responded_ = responded_ || size != 0;
      return push(Message::kResponse, size);
    default:
      return begin_bare_field(size);
  }
}

/// A field that the envelope has not. MLServer and others, whose service returns a stream of
/// ModelInferResponse, send no envelope: what came as the error was the model's name.
void ResponseReader::begin_bare_field(std::uint64_t size) {
  if (responded_ || field_ < response::kId || field_ > response::kRawContents) {
    return begin_token(State::kSkip);
  }
  enveloped_ = false;
  frames_[0].message = Message::kResponse;
  model_name_ = std::exchange(error_message_, {});
  model_version_ = std::exchange(held_, {});
  if (!is_utf8(
          {reinterpret_cast<const std::uint8_t*>(model_version_.data()), model_version_.size()})) {
    field_ = response::kModelVersion;
    fail("is not UTF-8");
  }
  begin_response_field(size);
}

/// Nothing has shown that what was held is a version: it is the envelope's response.
void ResponseReader::read_held() {
  const std::string held = std::exchange(held_, {});
  responded_ = true;
  position_ -= held.size();  // as if they were still to come
  frames_[depth_++] = {Message::kResponse, position_ + held.size()};
  state_ = State::kTag;
  feed({reinterpret_cast<const std::uint8_t*>(held.data()), held.size()});
}

void ResponseReader::begin_response_field(std::uint64_t size) {
  switch (field_) {
    case response::kModelName:
      return begin_text(model_name_, size);
    case response::kModelVersion:
      return begin_text(model_version_, size);
    case response::kId:
      return begin_text(id_, size);
    case response::kParameters:
      return begin_parameter(size);
    case response::kOutputs:
      if (outputs_.size() == kMaxEntries) fail(too_many("entries", kMaxEntries));
      outputs_.emplace_back();
      contents_ = Contents{};
      return push(Message::kOutput, size);
    case response::kRawContents:
      return begin_raw(size);
    default:
      return begin_token(State::kSkip);
  }
}

void ResponseReader::begin_output_field(std::uint64_t size) {
  switch (field_) {
    case output::kName:
      return begin_text(outputs_.back().name, size);
    case output::kDatatype:
      return begin_text(outputs_.back().datatype_name, size);
    case output::kShape:
      return begin_token(State::kPackedVarint);
    case output::kParameters:
      return begin_parameter(size);
    case output::kContents:
      return push(Message::kContents, size);
    default:
      return begin_token(State::kSkip);
  }
}

void ResponseReader::begin_contents_field(std::uint64_t size) {
  if (field_ == contents::kBytes) return begin_element(size);
  if (field_ < contents::kBool || field_ > contents::kFp64) return begin_token(State::kSkip);
  if (size != 0) begin_contents(field_);
  if (is_varint_content(field_)) return begin_token(State::kPackedVarint);
  fixed_size_ = static_cast<unsigned>(content_size(field_));
  if (size % fixed_size_ != 0) {
    fail("has " + std::to_string(size) + " bytes, not a multiple of " +
         std::to_string(fixed_size_));
  }
  begin_token(State::kPackedFixed);
}

void ResponseReader::begin_entry_field(std::uint64_t size) {
  switch (field_) {
    case entry::kKey:
      return begin_text(entry_.key, size);
    case entry::kValue:
      return push(Message::kValue, size);
    default:
      return begin_token(State::kSkip);
  }
}

void ResponseReader::begin_value_field(std::uint64_t size) {
  if (field_ != value::kString) return begin_token(State::kSkip);
  entry_.kind = Parameter::Kind::kString;
  entry_.bits = 0;
  begin_text(entry_.text, size);
}

/// What is up to token_end_ is to be taken in this state; at once if it is nothing.
void ResponseReader::begin_token(State state) {
  state_ = state;
  if (position_ == token_end_) end_token();
}

void ResponseReader::begin_parameter(std::uint64_t size) {
  entry_ = Parameter{};
  push(Message::kEntry, size);
}

void ResponseReader::begin_element(std::uint64_t size) {
  begin_contents(field_);
  // As it is in the payload of a BYTES tensor: after its length, in four bytes.
  const std::uint8_t prefix[4] = {
      static_cast<std::uint8_t>(size), static_cast<std::uint8_t>(size >> 8),
      static_cast<std::uint8_t>(size >> 16), static_cast<std::uint8_t>(size >> 24)};
  contents_.elements.append(prefix, sizeof prefix);
  ++contents_.count;
  begin_token(State::kElement);
}

void ResponseReader::push(Message message, std::uint64_t size) {
  // The schema is six deep, and groups do not open frames, so this cannot run over.
  frames_[depth_++] = {message, position_ + size};
  end_token();
}

void ResponseReader::end_token() {
  state_ = State::kTag;
  field_ = 0;  // what goes wrong from here on is not that field's fault
  while (position_ == frame_end()) {
    if (!groups_.empty()) fail("ends inside a group");
    if (depth_ == 1) {
      state_ = State::kDone;
      if (!held_.empty()) read_held();
      return;
    }
    end_message();
  }
}

void ResponseReader::end_message() {
  const Message ended = message();
  --depth_;
  if (ended == Message::kOutput) {
    end_output();
  } else if (ended == Message::kEntry) {
    std::vector<Parameter>& parameters =
        message() == Message::kOutput ? outputs_.back().parameters : parameters_;
    if (parameter_count_ == kMaxParameters) {
      field_ = response::kParameters;  // an output's have the same number
      fail(too_many("entries, those of the response and of all outputs together", kMaxParameters));
    }
    ++parameter_count_;
    // Not looked up among the others: that would take time with the square of their number.
    parameters.push_back(std::move(entry_));
  }
}

void ResponseReader::begin_text(std::string& target, std::uint64_t size) {
  target.clear();
  text_ = &target;
  state_ = State::kText;
  if (size == 0) end_token();
}

void ResponseReader::end_text() {
  if (text_ == &held_) return;  // it may be a message
  if (!is_utf8({reinterpret_cast<const std::uint8_t*>(text_->data()), text_->size()})) {
    // Not to be quoted: messages are UTF-8.
    text_->clear();
    fail("is not UTF-8");
  }
}

void ResponseReader::begin_raw(std::uint64_t size) {
  state_ = State::kRaw;
  raw_.clear();
  raw_target_ = nullptr;
  if (raws_.size() == kMaxEntries) fail(too_many("entries", kMaxEntries));
  raws_.emplace_back();
  const std::size_t index = raws_.size() - 1;
  if (index < outputs_.size()) {
    const Output& output = outputs_[index];
    Destination* const destination = destination_of(output);
    if (destination != nullptr && size == destination->memory.size && !destination->filled &&
        destination->datatype == output.datatype && destination->shape == output.shape &&
        output.datatype != Datatype::kBytes) {
      destination->filled = true;
      raws_.back().placed = destination;
      raw_target_ = destination->memory.data;
    }
  }
  if (raw_target_ == nullptr && size != 0) {
    const auto whole = static_cast<std::size_t>(size);
    raw_.reserve(whole <= at_hand_ ? whole : std::min(whole, kEagerSize));  // see grow_raw()
  }
  if (size == 0) {
    end_raw();
    end_token();
  }
}

void ResponseReader::grow_raw(std::size_t size) {
  const std::size_t needed = raw_.size() + size;
  if (needed <= raw_.capacity()) return;
  const auto rest = static_cast<std::size_t>(token_end_ - position_);
  raw_.reserve(std::max(needed, std::min(raw_.size() + rest, 2 * raw_.capacity())));
}

void ResponseReader::end_raw() {
  if (raws_.back().placed == nullptr) raws_.back().elements = std::move(raw_);
}

void ResponseReader::begin_contents(std::uint32_t field) {
  if (contents_.field == 0) contents_.field = field;
  if (contents_.field != field) {
    fail(std::string("follows ") + content_name(contents_.field) +
         ", and a tensor's elements are in one field only");
  }
}

void ResponseReader::add_content(std::uint64_t bits) {
  if (message() == Message::kOutput) {
    if (outputs_.back().shape.size() == kMaxRank) {
      fail("has more than " + std::to_string(kMaxRank) + " dimensions");
    }
    outputs_.back().shape.push_back(static_cast<std::int64_t>(bits));
    return;
  }
  ++contents_.count;
  const std::size_t size = content_size(field_);
  if (size == 1) {
    const std::uint8_t element = bits != 0 ? 1 : 0;
    contents_.elements.append(&element, 1);
  } else if (size == 4) {
    const auto element = static_cast<std::uint32_t>(bits);  // int32 comes sign-extended to 64 bits
    contents_.elements.append(&element, 4);
  } else {
    contents_.elements.append(&bits, 8);
  }
}

void ResponseReader::end_output() {
  Output& output = outputs_.back();
  output.datatype = datatype_from_name(output.datatype_name);
  output_contents_.push_back(std::move(contents_));
  contents_ = Contents{};
}

ResponseReader::Destination* ResponseReader::destination_of(const Output& output) noexcept {
  for (Destination& destination : destinations_) {
    if (destination.name == output.name) return &destination;
  }
  return nullptr;
}

bool ResponseReader::in_shared_memory(const Output& output) const noexcept {
  return std::find(shared_memory_.begin(), shared_memory_.end(), output.name) !=
         shared_memory_.end();
}

std::size_t ResponseReader::footprint() const noexcept {
  return sizeof *this + outputs_.capacity() * sizeof(Output) +
         output_contents_.capacity() * sizeof(Contents) + raws_.capacity() * sizeof(Raw) +
         parameter_count_ * 2 * sizeof(Parameter);  // a list that grows doubles
}

void ResponseReader::finish() {
  if (complete_ && state_ == State::kDone) return;
  if (state_ == State::kFailed) {
    throw WireError("ModelInferResponse: the reader failed before, or was never begun");
  }
  if (state_ != State::kDone) {
    fail("ends after " + std::to_string(position_) + " of " + std::to_string(frames_[0].end) +
         " bytes");
  }
  state_ = State::kFailed;  // until everything is found to be right
  if (!raws_.empty() && raws_.size() != outputs_.size()) {
    throw WireError("ModelInferResponse.raw_output_contents has " + std::to_string(raws_.size()) +
                    " entries for " + std::to_string(outputs_.size()) + " outputs");
  }
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    Output& output = outputs_[i];
    for (std::size_t k = 0; k < i; ++k) {
      if (outputs_[k].name == output.name) {
        throw WireError(output_label(i) + ".name is that of outputs[" + std::to_string(k) +
                        "] too");
      }
    }
    if (output.datatype == Datatype::kUnknown) {
      throw WireError(output_label(i) + ".datatype is " + quoted(output.datatype_name) +
                      ", which this client does not know");
    }
    if (raws_.empty()) {
      settle_contents(output);
    } else {
      if (output_contents_[i].field != 0) {
        throw WireError(output_label(i) +
                        " has contents although the response has raw_output_contents");
      }
      settle_raw(output, i);
    }
  }
  state_ = State::kDone;
  complete_ = true;
}

void ResponseReader::settle_raw(Output& output, std::size_t index) {
  Raw& raw = raws_[index];
  if (raw.placed != nullptr) {
    output.source = Output::Source::kPlaced;
    check_payload(output, {raw.placed->memory.data, raw.placed->memory.size});
    return;
  }
  output.payload = std::move(raw.elements);
  if (output.payload.size() == 0 && in_shared_memory(output)) {
    output.source = Output::Source::kSharedMemory;
    check_shape(output);
    return;
  }
  check_payload(output, {output.payload.data(), output.payload.size()});
}

void ResponseReader::settle_contents(Output& output) {
  const std::size_t index = static_cast<std::size_t>(&output - outputs_.data());
  Contents& from = output_contents_[index];
  if (from.field == 0) {
    if (in_shared_memory(output)) {
      output.source = Output::Source::kSharedMemory;
      check_shape(output);
      return;
    }
    check_payload(output, {});
    return;
  }
  if (from.field != content_field(output.datatype)) {
    throw WireError(output_label(index) + ".contents holds " + content_name(from.field) +
                    ", which is not where " + output.datatype_name + " goes");
  }
  bool fits = true;
  switch (output.datatype) {
    case Datatype::kInt8:
      fits = narrow<std::int8_t, std::int32_t>(from.elements, from.count, output.payload);
      break;
    case Datatype::kInt16:
      fits = narrow<std::int16_t, std::int32_t>(from.elements, from.count, output.payload);
      break;
    case Datatype::kUint8:
      fits = narrow<std::uint8_t, std::uint32_t>(from.elements, from.count, output.payload);
      break;
    case Datatype::kUint16:
      fits = narrow<std::uint16_t, std::uint32_t>(from.elements, from.count, output.payload);
      break;
    default:
      output.payload = std::move(from.elements);
  }
  if (!fits) {
    throw WireError(output_label(index) + ".contents." + content_name(from.field) +
                    " has a number outside the range of " + output.datatype_name);
  }
  check_payload(output, {output.payload.data(), output.payload.size()});
}

std::uint64_t ResponseReader::check_shape(const Output& output) const {
  std::uint64_t elements = 0;
  const std::size_t size = element_size(output.datatype);
  if (!element_count(output.shape, size != 0 ? size : sizeof(void*), elements)) {
    throw WireError(output_label(static_cast<std::size_t>(&output - outputs_.data())) +
                    ".shape is " + shape_text(output.shape) + ", which no tensor can have");
  }
  return elements;
}

void ResponseReader::check_payload(const Output& output, ConstBuffer payload) {
  const std::size_t index = static_cast<std::size_t>(&output - outputs_.data());
  const std::uint64_t expected = check_shape(output);
  if (output.datatype == Datatype::kBytes) {
    std::size_t count = 0;
    if (!count_elements(payload, count)) {
      throw WireError(output_label(index) + ": the " + std::to_string(payload.size) +
                      " bytes of its BYTES elements end in the middle of element " +
                      std::to_string(count));
    }
    if (count != expected) {
      throw WireError(output_label(index) + ": BYTES " + shape_text(output.shape) + " has " +
                      std::to_string(expected) + " elements, and " + std::to_string(count) +
                      " came");
    }
  } else {
    const std::size_t size = element_size(output.datatype);
    if (expected * size != payload.size) {
      throw WireError(output_label(index) + ": " + output.datatype_name + " " +
                      shape_text(output.shape) + " does not take the " +
                      std::to_string(payload.size) + " bytes that came");
    }
  }
  // The answer is sound; does it fit where the caller wants it?
  Destination* const destination = destination_of(output);
  if (destination == nullptr || output.source == Output::Source::kPlaced) return;
  const bool is_alike =
      destination->datatype == output.datatype && destination->shape == output.shape;
  if (is_alike && output.datatype == Datatype::kBytes) return;
  if (!is_alike || destination->memory.size != payload.size) {
    const std::string answer = output.datatype_name + " " + shape_text(output.shape);
    throw UnfitOutputError("out['" + output.name + "'] is " +
                               std::string(datatype_name(destination->datatype)) + " " +
                               shape_text(destination->shape) + "; the answer is " + answer,
                           output.name, answer);
  }
  // It came before its name did, or as typed contents.
  if (payload.size != 0) std::memcpy(destination->memory.data, payload.data, payload.size);
  Output& settled = outputs_[index];
  settled.source = Output::Source::kPlaced;
  settled.payload = OwnedBuffer{};
}

std::string ResponseReader::output_label(std::size_t index) const {
  std::string label = "ModelInferResponse.outputs[" + std::to_string(index) + "]";
  if (!outputs_[index].name.empty()) label += " (" + quoted(outputs_[index].name) + ")";
  return label;
}

std::string ResponseReader::field_name() const {
  static constexpr const char* kResponse[] = {"model_name", "model_version", "id",
                                              "parameters", "outputs",       "raw_output_contents"};
  static constexpr const char* kOutput[] = {"name", "datatype", "shape", "parameters", "contents"};
  static constexpr const char* kValue[] = {"bool_param", "int64_param", "string_param",
                                           "double_param", "uint64_param"};
  static constexpr const char* kEnvelope[] = {"error_message", "infer_response"};
  const bool outside = enveloped_ && depth_ <= 1;
  std::string path = outside ? "ModelStreamInferResponse" : "ModelInferResponse";
  for (std::size_t i = 1; i < depth_; ++i) {
    if (frames_[i].message == Message::kOutput && !outputs_.empty()) {
      path += ".outputs[" + std::to_string(outputs_.size() - 1) + "]";
    }
    if (frames_[i].message == Message::kContents) path += ".contents";
    if (frames_[i].message == Message::kEntry) path += ".parameters";
    if (frames_[i].message == Message::kValue) path += ".value";
  }
  if (depth_ == 0 || field_ == 0) return path;
  const std::string number = "field " + std::to_string(field_);
  switch (message()) {
    case Message::kEnvelope:
      return path + "." + (field_ <= 2 ? kEnvelope[field_ - 1] : number);
    case Message::kResponse:
      return path + "." + (field_ <= 6 ? kResponse[field_ - 1] : number);
    case Message::kOutput:
      return path + "." + (field_ <= 5 ? kOutput[field_ - 1] : number);
    case Message::kContents:
      return path + "." + (field_ <= 8 ? content_name(field_) : number);
    case Message::kEntry:
      return path + "." + (field_ == 1 ? "key" : field_ == 2 ? "value" : number);
    case Message::kValue:
      return path + "." + (field_ <= 5 ? kValue[field_ - 1] : number);
  }
  return path;
}

void ResponseReader::fail(const std::string& what) {
  const std::string where = field_name();
  state_ = State::kFailed;
  throw WireError(where + " " + what);
}

}  // namespace triton_fast::wire
