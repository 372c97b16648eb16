// ModelInferRequest, encoded. Every string that reaches this file is UTF-8 already.
#include "triton_fast/wire/request_writer.hpp"

#include <cstring>

#include "triton_fast/error.hpp"
#include "triton_fast/wire/varint.hpp"

namespace triton_fast::wire {
namespace {

// InferParameter's oneof, by field number.
enum ParameterField : std::uint32_t {
  kBoolParam = 1,
  kInt64Param = 2,
  kStringParam = 3,
  kDoubleParam = 4,
  kUint64Param = 5,
};

void append_entry(std::string& out, std::uint32_t field, std::string_view key,
                  std::string_view value) {
  std::string entry;
  append_length_delimited(entry, 1, key);
  append_length_delimited(entry, 2, value);
  append_length_delimited(out, field, entry);
}

void append_varint_parameter(std::string& out, std::uint32_t field, std::string_view key,
                             ParameterField kind, std::uint64_t value) {
  std::string encoded;
  append_tag(encoded, kind, kVarintType);
  append_varint(encoded, value);
  append_entry(out, field, key, encoded);
}

[[noreturn]] void refuse_size(std::string_view name, std::size_t payload, std::size_t total) {
  throw TensorError("input '" + std::string(name) + "' has " + std::to_string(payload) +
                    " bytes, which makes the request " + std::to_string(total) +
                    " bytes long; protobuf allows " + std::to_string(kMaxMessageSize) +
                    ". Send smaller batches, or put the tensor in shared memory");
}

}  // namespace

void append_parameter_bool(std::string& out, std::uint32_t field, std::string_view key,
                           bool value) {
  append_varint_parameter(out, field, key, kBoolParam, value ? 1 : 0);
}

void append_parameter_int64(std::string& out, std::uint32_t field, std::string_view key,
                            std::int64_t value) {
  append_varint_parameter(out, field, key, kInt64Param, static_cast<std::uint64_t>(value));
}

void append_parameter_uint64(std::string& out, std::uint32_t field, std::string_view key,
                             std::uint64_t value) {
  append_varint_parameter(out, field, key, kUint64Param, value);
}

void append_parameter_string(std::string& out, std::uint32_t field, std::string_view key,
                             std::string_view value) {
  std::string encoded;
  append_length_delimited(encoded, kStringParam, value);
  append_entry(out, field, key, encoded);
}

void append_parameter_double(std::string& out, std::uint32_t field, std::string_view key,
                             double value) {
  std::string encoded;
  append_tag(encoded, kDoubleParam, kFixed64Type);
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  for (int shift = 0; shift < 64; shift += 8) encoded.push_back(static_cast<char>(bits >> shift));
  append_entry(out, field, key, encoded);
}

void append_model(std::string& out, std::string_view name, std::string_view version) {
  append_length_delimited(out, kRequestModelName, name);
  if (!version.empty()) append_length_delimited(out, kRequestModelVersion, version);
}

void append_requested_output(std::string& out, std::string_view name, std::string_view parameters) {
  append_tag(out, kRequestOutputs, kLengthType);
  append_varint(out, 1 + varint_size(name.size()) + name.size() + parameters.size());
  append_length_delimited(out, 1, name);
  out.append(parameters);
}

void RequestWriter::begin(std::string_view fixed, std::string_view request_id) {
  header_.assign(fixed);
  raw_header_.clear();
  payloads_.clear();
  segments_.clear();
  payload_size_ = 0;
  byte_size_ = 0;
  if (!request_id.empty()) append_length_delimited(header_, kRequestId, request_id);
}

void RequestWriter::add_input_without_payload(std::string_view name, std::string_view datatype,
                                              const std::int64_t* shape, std::size_t rank,
                                              std::string_view parameters) {
  std::size_t shape_size = 0;
  for (std::size_t i = 0; i < rank; ++i) {
    shape_size += varint_size(static_cast<std::uint64_t>(shape[i]));
  }
  std::size_t size = 1 + varint_size(name.size()) + name.size() + 1 + varint_size(datatype.size()) +
                     datatype.size() + parameters.size();
  if (rank != 0) size += 1 + varint_size(shape_size) + shape_size;

  append_tag(header_, kRequestInputs, kLengthType);
  append_varint(header_, size);
  append_length_delimited(header_, 1, name);
  append_length_delimited(header_, 2, datatype);
  if (rank != 0) {
    append_tag(header_, 3, kLengthType);
    append_varint(header_, shape_size);
    for (std::size_t i = 0; i < rank; ++i) {
      append_varint(header_, static_cast<std::uint64_t>(shape[i]));
    }
  }
  header_.append(parameters);
}

void RequestWriter::add_input(std::string_view name, std::string_view datatype,
                              const std::int64_t* shape, std::size_t rank,
                              std::string_view parameters, ConstBuffer payload) {
  const std::size_t header_size = header_.size();
  const std::size_t raw_header_size = raw_header_.size();
  add_input_without_payload(name, datatype, shape, rank, parameters);
  append_tag(raw_header_, kRequestRawInputContents, kLengthType);
  append_varint(raw_header_, payload.size);
  const std::size_t before = header_.size() + raw_header_.size() + payload_size_;
  if (before > kMaxMessageSize || payload.size > kMaxMessageSize - before) {
    header_.resize(header_size);
    raw_header_.resize(raw_header_size);
    refuse_size(name, payload.size, before + payload.size);
  }
  payloads_.push_back({raw_header_.size(), payload});
  payload_size_ += payload.size;
}

void RequestWriter::seal() {
  // One string holds all header bytes, so that the first payload follows header_ and its own
  // raw_input_contents tag in a single segment.
  const std::size_t fixed = header_.size();
  header_.append(raw_header_);
  byte_size_ = header_.size() + payload_size_;
  if (byte_size_ > kMaxMessageSize) {
    throw TensorError("the request is " + std::to_string(byte_size_) +
                      " bytes long; protobuf allows " + std::to_string(kMaxMessageSize));
  }
  const auto* base = reinterpret_cast<const std::uint8_t*>(header_.data());
  std::size_t begin = 0;
  segments_.reserve(2 * payloads_.size() + 1);
  for (const Payload& payload : payloads_) {
    const std::size_t end = fixed + payload.header_end;
    segments_.push_back({base + begin, end - begin});
    if (payload.bytes.size != 0) segments_.push_back(payload.bytes);
    begin = end;
  }
  if (begin != header_.size()) segments_.push_back({base + begin, header_.size() - begin});
}

void RequestWriter::render(std::uint8_t* out) const noexcept {
  for (const ConstBuffer& segment : segments_) {
    std::memcpy(out, segment.data, segment.size);
    out += segment.size;
  }
}

}  // namespace triton_fast::wire
