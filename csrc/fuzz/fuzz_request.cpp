// Fuzzes RequestWriter with requests of any names, shapes, parameters and payloads: the gather list
// and the rendered message are the same bytes, and a walk over them finds what was put in.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "require.hpp"
#include "triton_fast/wire/request_writer.hpp"
#include "triton_fast/wire/varint.hpp"

namespace {

using namespace triton_fast;
using namespace triton_fast::wire;

std::uint64_t take_varint(std::string_view& from) {
  std::uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    REQUIRE(!from.empty() && shift < 70);
    const auto byte = static_cast<std::uint8_t>(from.front());
    from.remove_prefix(1);
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) {
      REQUIRE(shift == 0 || byte != 0);  // the shortest form
      return value;
    }
  }
}

std::string_view take_bytes(std::string_view& from) {
  const std::uint64_t size = take_varint(from);
  REQUIRE(size <= from.size());
  const std::string_view taken = from.substr(0, static_cast<std::size_t>(size));
  from.remove_prefix(taken.size());
  return taken;
}

/// Takes a field of the given number and wire type off the front.
bool take_tag(std::string_view& from, std::uint32_t field, WireType type) {
  std::string_view rest = from;
  if (rest.empty() || take_varint(rest) != (std::uint64_t{field} << 3 | type)) return false;
  from = rest;
  return true;
}

struct Value {
  int kind;
  std::string key;
  std::string text;
  std::uint64_t bits;
};

struct Input {
  std::string name;
  std::string datatype;
  std::vector<std::int64_t> shape;
  std::vector<Value> parameters;
  std::string payload;
  bool has_payload;
};

std::vector<Value> some_parameters(FuzzedDataProvider& from, std::uint32_t field,
                                   std::string& out) {
  std::vector<Value> values;
  for (unsigned count = from.ConsumeIntegralInRange(0u, 3u); count != 0; --count) {
    Value value;
    value.kind = from.ConsumeIntegralInRange(1, 5);
    value.key = from.ConsumeRandomLengthString(20);
    value.bits = from.ConsumeIntegral<std::uint64_t>();
    double number;
    switch (value.kind) {
      case 1:
        value.bits &= 1;
        append_parameter_bool(out, field, value.key, value.bits != 0);
        break;
      case 2:
        append_parameter_int64(out, field, value.key, static_cast<std::int64_t>(value.bits));
        break;
      case 3:
        value.text = from.ConsumeRandomLengthString(200);
        append_parameter_string(out, field, value.key, value.text);
        break;
      case 4:
        std::memcpy(&number, &value.bits, sizeof number);
        append_parameter_double(out, field, value.key, number);
        break;
      default:
        append_parameter_uint64(out, field, value.key, value.bits);
    }
    values.push_back(value);
  }
  return values;
}

void check_parameters(std::string_view& from, std::uint32_t field,
                      const std::vector<Value>& values) {
  for (const Value& value : values) {
    REQUIRE(take_tag(from, field, kLengthType));
    std::string_view entry = take_bytes(from);
    REQUIRE(take_tag(entry, 1, kLengthType) && take_bytes(entry) == value.key);
    REQUIRE(take_tag(entry, 2, kLengthType));
    std::string_view inner = take_bytes(entry);
    const auto number = static_cast<std::uint32_t>(value.kind);
    if (value.kind == 3) {
      REQUIRE(take_tag(inner, number, kLengthType) && take_bytes(inner) == value.text);
    } else if (value.kind == 4) {
      REQUIRE(take_tag(inner, number, kFixed64Type) && inner.size() == 8);
      std::uint64_t bits = 0;
      for (int i = 7; i >= 0; --i) {
        bits = bits << 8 | static_cast<std::uint8_t>(inner[static_cast<std::size_t>(i)]);
      }
      REQUIRE(bits == value.bits);
      inner = {};
    } else {
      REQUIRE(take_tag(inner, number, kVarintType) && take_varint(inner) == value.bits);
    }
    REQUIRE(inner.empty() && entry.empty());
  }
}

void check_input(std::string_view from, const Input& input) {
  REQUIRE(take_tag(from, 1, kLengthType) && take_bytes(from) == input.name);
  REQUIRE(take_tag(from, 2, kLengthType) && take_bytes(from) == input.datatype);
  if (!input.shape.empty()) {
    REQUIRE(take_tag(from, 3, kLengthType));
    std::string_view packed = take_bytes(from);
    for (const std::int64_t dimension : input.shape) {
      REQUIRE(take_varint(packed) == static_cast<std::uint64_t>(dimension));
    }
    REQUIRE(packed.empty());
  }
  check_parameters(from, kInputParameters, input.parameters);
  REQUIRE(from.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  FuzzedDataProvider from(data, size);
  std::string fixed;
  const std::string model = from.ConsumeRandomLengthString(300);
  const std::string version = from.ConsumeRandomLengthString(8);
  const std::string id = from.ConsumeRandomLengthString(40);
  append_model(fixed, model, version);
  const std::vector<Value> parameters = some_parameters(from, kRequestParameters, fixed);
  std::vector<std::string> outputs;
  std::vector<std::vector<Value>> output_parameters;
  for (unsigned count = from.ConsumeIntegralInRange(0u, 3u); count != 0; --count) {
    std::string encoded;
    outputs.push_back(from.ConsumeRandomLengthString(150));
    output_parameters.push_back(some_parameters(from, kRequestedOutputParameters, encoded));
    append_requested_output(fixed, outputs.back(), encoded);
  }

  RequestWriter writer;
  if (from.ConsumeBool()) writer.begin("to be forgotten", "as well");  // it may be begun again
  writer.begin(fixed, id);
  std::deque<Input> inputs;  // payloads stay where they are
  for (unsigned count = from.ConsumeIntegralInRange(0u, 4u); count != 0; --count) {
    inputs.emplace_back();
    Input& input = inputs.back();
    std::string encoded;
    input.name = from.ConsumeRandomLengthString(150);
    input.datatype = from.ConsumeRandomLengthString(8);
    for (unsigned rank = from.ConsumeIntegralInRange(0u, 5u); rank != 0; --rank) {
      input.shape.push_back(from.ConsumeIntegral<std::int64_t>());
    }
    input.parameters = some_parameters(from, kInputParameters, encoded);
    input.has_payload = from.ConsumeBool();
    if (input.has_payload) {
      input.payload = from.ConsumeRandomLengthString(300);
      writer.add_input(
          input.name, input.datatype, input.shape.data(), input.shape.size(), encoded,
          {reinterpret_cast<const std::uint8_t*>(input.payload.data()), input.payload.size()});
    } else {
      writer.add_input_without_payload(input.name, input.datatype, input.shape.data(),
                                       input.shape.size(), encoded);
    }
  }
  writer.seal();

  std::string gathered;
  for (const ConstBuffer& segment : writer.segments()) {
    REQUIRE(segment.size != 0);
    gathered.append(reinterpret_cast<const char*>(segment.data), segment.size);
  }
  REQUIRE(gathered.size() == writer.byte_size());
  std::vector<std::uint8_t> rendered(writer.byte_size());
  writer.render(rendered.data());
  REQUIRE(std::equal(rendered.begin(), rendered.end(),
                     reinterpret_cast<const std::uint8_t*>(gathered.data())));

  // Payloads are borrowed, not copied.
  for (const Input& input : inputs) {
    bool found = !input.has_payload || input.payload.empty();
    for (const ConstBuffer& segment : writer.segments()) {
      found = found || (static_cast<const void*>(segment.data) == input.payload.data() &&
                        segment.size == input.payload.size());
    }
    REQUIRE(found);
  }

  std::string_view rest = gathered;
  REQUIRE(take_tag(rest, kRequestModelName, kLengthType) && take_bytes(rest) == model);
  if (!version.empty()) {
    REQUIRE(take_tag(rest, kRequestModelVersion, kLengthType) && take_bytes(rest) == version);
  }
  check_parameters(rest, kRequestParameters, parameters);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    REQUIRE(take_tag(rest, kRequestOutputs, kLengthType));
    std::string_view output = take_bytes(rest);
    REQUIRE(take_tag(output, 1, kLengthType) && take_bytes(output) == outputs[i]);
    check_parameters(output, kRequestedOutputParameters, output_parameters[i]);
    REQUIRE(output.empty());
  }
  if (!id.empty()) REQUIRE(take_tag(rest, kRequestId, kLengthType) && take_bytes(rest) == id);
  for (const Input& input : inputs) {
    REQUIRE(take_tag(rest, kRequestInputs, kLengthType));
    check_input(take_bytes(rest), input);
  }
  for (const Input& input : inputs) {
    if (!input.has_payload) continue;
    REQUIRE(take_tag(rest, kRequestRawInputContents, kLengthType));
    REQUIRE(take_bytes(rest) == input.payload);
  }
  REQUIRE(rest.empty());
  return 0;
}
