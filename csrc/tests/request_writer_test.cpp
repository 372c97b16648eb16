// Requests as bytes, held against messages written out by hand.
#include "triton_fast/wire/request_writer.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "triton_fast/error.hpp"
#include "triton_fast/wire/varint.hpp"

namespace {

using namespace triton_fast;
using namespace triton_fast::wire;
using namespace std::string_literals;

ConstBuffer view(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::string rendered(const RequestWriter& writer) {
  std::string out(writer.byte_size(), '\0');
  writer.render(reinterpret_cast<std::uint8_t*>(out.data()));
  return out;
}

std::string gathered(const RequestWriter& writer) {
  std::string out;
  for (const ConstBuffer& segment : writer.segments()) {
    out.append(reinterpret_cast<const char*>(segment.data), segment.size);
  }
  return out;
}

const std::int64_t kShape[] = {1, 300};

}  // namespace

TEST_CASE("request to the byte") {
  std::string fixed;
  append_model(fixed, "m", "2");
  append_parameter_bool(fixed, kRequestParameters, "b", true);
  append_parameter_int64(fixed, kRequestParameters, "i", -1);
  append_parameter_uint64(fixed, kRequestParameters, "u", 300);
  append_parameter_string(fixed, kRequestParameters, "s", "t");
  append_parameter_double(fixed, kRequestParameters, "d", 1.0);
  append_requested_output(fixed, "y", {});
  const std::string payload = "12345678";
  RequestWriter writer;
  writer.begin(fixed, "id");
  writer.add_input("x", "FP32", kShape, 2, {}, view(payload));
  writer.seal();
  const std::string expected =
      "\x0a\x01m\x12\x01"
      "2"
      "\x22\x07\x0a\x01"
      "b\x12\x02\x08\x01"
      "\x22\x10\x0a\x01i\x12\x0b\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
      "\x22\x08\x0a\x01u\x12\x03\x28\xac\x02"
      "\x22\x08\x0a\x01s\x12\x03\x1a\x01t"
      "\x22\x0e\x0a\x01"
      "d\x12\x09\x21\0\0\0\0\0\0\xf0\x3f"
      "\x32\x03\x0a\x01y"
      "\x1a\x02id"
      "\x2a\x0e\x0a\x01x\x12\x04"
      "FP32\x1a\x03\x01\xac\x02"
      "\x3a\x08"
      "12345678"s;
  CHECK((rendered(writer) == expected));
  CHECK((gathered(writer) == expected));
  CHECK(writer.byte_size() == expected.size());
}

TEST_CASE("request borrows its payloads") {
  const std::string one = "payload one";
  const std::string two = "payload two";
  RequestWriter writer;
  writer.begin("", "");
  writer.add_input("a", "INT8", kShape, 2, {}, view(one));
  writer.add_input("empty", "INT8", kShape, 2, {}, {});
  writer.add_input("b", "INT8", kShape, 2, {}, view(two));
  writer.seal();
  // Header, payload, the tags of the empty one and of the next, payload.
  const std::vector<ConstBuffer>& segments = writer.segments();
  REQUIRE(segments.size() == 5);
  CHECK(segments[1].data == view(one).data);
  CHECK(segments[1].size == one.size());
  CHECK(segments[2].size == 2);
  CHECK(segments[3].size == 2);
  CHECK(segments[4].data == view(two).data);
  CHECK(segments[4].size == two.size());
  CHECK((gathered(writer) == rendered(writer)));
}

TEST_CASE("request without payloads") {
  std::string parameters;
  append_parameter_string(parameters, kInputParameters, "shared_memory_region", "r");
  RequestWriter writer;
  writer.begin("", "");
  writer.add_input_without_payload("x", "FP32", nullptr, 0, parameters);
  writer.seal();
  CHECK(writer.segments().size() == 1);
  CHECK(rendered(writer) ==
        "\x2a\x26\x0a\x01x\x12\x04"
        "FP32" +
            parameters);
  writer.begin("", "");
  writer.seal();
  CHECK(writer.byte_size() == 0);
  CHECK(writer.segments().empty());
}

TEST_CASE("request with shapes of every length") {
  // Negative dimensions are the server's to refuse; they take ten bytes.
  const std::int64_t shape[] = {-1, 0, 127, 128, INT64_MAX, INT64_MIN};
  RequestWriter writer;
  writer.begin("", "");
  writer.add_input_without_payload("x", "FP32", shape, 6, {});
  writer.seal();
  std::string packed;
  for (const std::int64_t dimension : shape) {
    append_varint(packed, static_cast<std::uint64_t>(dimension));
  }
  CHECK(packed.size() == 10 + 1 + 1 + 2 + 9 + 10);
  std::string input;
  append_length_delimited(input, 1, "x");
  append_length_delimited(input, 2, "FP32");
  append_length_delimited(input, 3, packed);
  std::string expected;
  append_length_delimited(expected, kRequestInputs, input);
  CHECK((rendered(writer) == expected));
}

TEST_CASE("request can be begun again") {
  const std::string payload = "1234";
  RequestWriter writer;
  std::string first;
  for (int i = 0; i < 2; ++i) {
    writer.begin("fixed", "id");
    writer.add_input("x", "FP32", kShape, 2, {}, view(payload));
    writer.seal();
    if (i == 0) first = rendered(writer);
  }
  CHECK((rendered(writer) == first));
}

TEST_CASE("request refuses more than protobuf takes") {
  // Sizes alone: nothing reads the payloads before the request is rendered.
  const std::uint8_t byte = 0;
  RequestWriter writer;
  writer.begin("", "");
  writer.add_input("small", "INT8", kShape, 2, {}, {&byte, 1});
  CHECK_THROWS_WITH_AS(
      writer.add_input("large", "INT8", kShape, 2, {}, {&byte, kMaxMessageSize + 1}),
      doctest::Contains("input 'large' has 2147483648 bytes"), TensorError);
  CHECK_THROWS_WITH_AS(
      writer.add_input("large", "INT8", kShape, 2, {}, {&byte, kMaxMessageSize - 7}),
      doctest::Contains("input 'large' has 2147483640 bytes"), TensorError);
  CHECK_THROWS_WITH_AS(writer.add_input("large", "INT8", kShape, 2, {}, {&byte, SIZE_MAX}),
                       doctest::Contains("input 'large'"), TensorError);
  // What was refused left no trace.
  writer.seal();
  CHECK((rendered(writer).find("large") == std::string::npos));
  CHECK(rendered(writer).size() == writer.byte_size());
}

TEST_CASE("request takes just what protobuf takes") {
  const std::uint8_t byte = 0;
  RequestWriter writer;
  writer.begin("", "");
  writer.add_input("x", "INT8", nullptr, 0, {}, {});
  writer.seal();
  // With a payload, its length takes five bytes and not one.
  const std::size_t header = writer.byte_size() + 4;
  writer.begin("", "");
  writer.add_input("x", "INT8", nullptr, 0, {}, {&byte, kMaxMessageSize - header});
  writer.seal();
  CHECK(writer.byte_size() == kMaxMessageSize);
  writer.begin("", "");
  CHECK_THROWS_WITH_AS(
      writer.add_input("x", "INT8", nullptr, 0, {}, {&byte, kMaxMessageSize - header + 1}),
      doctest::Contains("makes the request 2147483648 bytes long"), TensorError);
}
