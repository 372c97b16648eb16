// Responses: whole, in pieces, placed, in shared memory, and hostile.
#include "triton_fast/wire/response_reader.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
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

std::string payload_of(const Output& output) {
  return {reinterpret_cast<const char*>(output.payload.data()), output.payload.size()};
}

// ---- Messages, built ---------------------------------------------------------------------------

std::string field(std::uint32_t number, const std::string& content) {
  std::string out;
  append_length_delimited(out, number, content);
  return out;
}

std::string packed(const std::vector<std::int64_t>& numbers) {
  std::string out;
  for (const std::int64_t number : numbers) append_varint(out, static_cast<std::uint64_t>(number));
  return out;
}

/// The inside of an output; `more` are further fields of it.
std::string output(const std::string& name, const std::string& datatype,
                   const std::vector<std::int64_t>& shape, const std::string& more = "") {
  return field(5, field(1, name) + field(2, datatype) + field(3, packed(shape)) + more);
}

std::string raw(const std::string& payload) { return field(6, payload); }

/// A response with all that there can be in one.
std::string full() {
  const std::string group = "\x7b" + field(1, "unknown") + "\x78\x05\x7d\1\2\3\4\x7c"s;
  return field(1, "model") + field(2, "3") + group + field(3, "größer") +
         field(4, field(1, "flag") + field(2, "\x08\x01")) +
         output("x", "FP32", {2, 1}, field(4, field(1, "text") + field(2, field(3, "täxt")))) +
         group + output("y", "BYTES", {2}, group) + raw("12345678") + raw("\x02\0\0\0ab\0\0\0\0"s) +
         field(15, "unknown");
}

// ---- Reading -----------------------------------------------------------------------------------

void read(ResponseReader& reader, const std::string& message) {
  reader.begin(message.size());
  reader.feed(view(message));
  reader.finish();
}

void read_anew(const std::string& message) {
  ResponseReader reader;
  read(reader, message);
}

void check_full(ResponseReader& reader) {
  CHECK(reader.model_name() == "model");
  CHECK(reader.model_version() == "3");
  CHECK(reader.id() == "größer");
  REQUIRE(reader.parameters().size() == 1);
  CHECK(reader.parameters()[0].key == "flag");
  CHECK(reader.parameters()[0].kind == Parameter::Kind::kBool);
  CHECK(reader.parameters()[0].bits == 1);
  REQUIRE(reader.outputs().size() == 2);
  Output& x = reader.outputs()[0];
  CHECK(x.name == "x");
  CHECK(x.datatype == Datatype::kFp32);
  REQUIRE(x.shape.size() == 2);
  CHECK(x.shape[0] == 2);
  CHECK(payload_of(x) == "12345678");
  CHECK(x.source == Output::Source::kOwned);
  REQUIRE(x.parameters.size() == 1);
  CHECK(x.parameters[0].text == "täxt");
  CHECK(payload_of(reader.outputs()[1]) == "\x02\0\0\0ab\0\0\0\0"s);
}

/// The elements of the one output of a response whose contents are typed.
std::string typed(const std::string& datatype, std::int64_t count, const std::string& contents) {
  ResponseReader reader;
  read(reader, output("x", datatype, {count}, field(5, contents)));
  return payload_of(reader.outputs().at(0));
}

/// What a number looks like in memory, little-endian.
template <typename Number>
std::string bytes(std::initializer_list<Number> numbers) {
  std::string out;
  for (const Number number : numbers) {
    out.append(reinterpret_cast<const char*>(&number), sizeof number);
  }
  return out;
}

void check_refused(const std::string& message, const std::string& part) {
  CHECK_THROWS_WITH_AS(read_anew(message), doctest::Contains(part.c_str()), WireError);
  // In the smallest pieces, it is the same.
  CHECK_THROWS_WITH_AS(
      [&] {
        ResponseReader reader;
        reader.begin(message.size());
        for (const char& byte : message) {
          reader.feed({reinterpret_cast<const std::uint8_t*>(&byte), 1});
        }
        reader.finish();
      }(),
      doctest::Contains(part.c_str()), WireError);
}

}  // namespace

// ---- What is sound -----------------------------------------------------------------------------

TEST_CASE("response in one piece") {
  ResponseReader reader;
  read(reader, full());
  check_full(reader);
}

TEST_CASE("response in pieces of every size") {
  const std::string message = full();
  for (std::size_t size = 1; size <= message.size(); ++size) {
    ResponseReader reader;
    reader.begin(message.size());
    for (std::size_t at = 0; at < message.size(); at += size) {
      // A copy that is gone afterwards: the reader may keep nothing of a piece.
      const std::string piece = message.substr(at, size);
      reader.feed(view(piece));
      reader.feed({});
    }
    reader.finish();
    check_full(reader);
  }
}

TEST_CASE("response numbers in pieces of every size") {
  const std::string contents =
      field(7, bytes<double>({1.5, -2.5})) + "\x39" + bytes<double>({3.5}) + field(7, "");
  const std::string message = output("x", "FP64", {3}, field(5, contents)) +
                              output("y", "INT64", {2}, field(5, field(3, packed({-1, 1000}))));
  for (std::size_t size = 1; size <= message.size(); ++size) {
    ResponseReader reader;
    reader.begin(message.size());
    for (std::size_t at = 0; at < message.size(); at += size) {
      reader.feed(view(message.substr(at, size)));
    }
    reader.finish();
    CHECK((payload_of(reader.outputs()[0]) == bytes<double>({1.5, -2.5, 3.5})));
    CHECK((payload_of(reader.outputs()[1]) == bytes<std::int64_t>({-1, 1000})));
  }
}

TEST_CASE("response of nothing") {
  ResponseReader reader;
  read(reader, "");
  CHECK(reader.model_name().empty());
  CHECK(reader.outputs().empty());
}

TEST_CASE("response with payloads first") {
  ResponseReader reader;
  read(reader, raw("1234") + raw("56") + output("x", "INT32", {1}) + output("y", "UINT8", {2}));
  CHECK(payload_of(reader.outputs()[0]) == "1234");
  CHECK(payload_of(reader.outputs()[1]) == "56");
}

TEST_CASE("response with empty tensors") {
  ResponseReader reader;
  read(reader, output("x", "FP32", {0, 5}) + output("y", "BYTES", {0}) + raw("") + raw(""));
  CHECK(reader.outputs()[0].payload.size() == 0);
  CHECK(reader.outputs()[1].payload.size() == 0);
  ResponseReader without_raw;
  read(without_raw, output("x", "FP32", {0, 5}));
  CHECK(without_raw.outputs()[0].source == Output::Source::kOwned);
}

TEST_CASE("response with a scalar") {
  ResponseReader reader;
  read(reader, output("x", "FP32", {}) + raw("1234"));
  CHECK(reader.outputs()[0].shape.empty());
  CHECK(payload_of(reader.outputs()[0]) == "1234");
}

TEST_CASE("response with a large payload") {
  // More than is taken on the word of its length, so that its memory grows on the way.
  std::string payload(std::size_t{80} << 20, '\0');
  for (std::size_t i = 0; i < payload.size(); i += 4096) payload[i] = static_cast<char>(i >> 12);
  const std::string message =
      output("x", "UINT8", {static_cast<std::int64_t>(payload.size())}) + raw(payload);
  ResponseReader reader;
  reader.begin(message.size());
  for (std::size_t at = 0; at < message.size(); at += 1 << 20) {
    const std::size_t size = std::min<std::size_t>(1 << 20, message.size() - at);
    reader.feed({view(message).data + at, size});
  }
  reader.finish();
  CHECK((payload_of(reader.outputs()[0]) == payload));
  CHECK(reader.outputs()[0].payload.capacity() == payload.size());
}

TEST_CASE("response that is written where it belongs") {
  // As much at a time as a socket may have: now all, now a part of it.
  const std::string large = std::string(std::size_t{40} << 20, 'l');  // its memory grows on the way
  const std::string message =
      field(1, "model") + output("x", "UINT8", {9}) + output("y", "BYTES", {2}) +
      output("z", "UINT8", {static_cast<std::int64_t>(large.size())}) + raw("123456789") +
      raw("\x02\0\0\0ab\0\0\0\0"s) + raw(large) + field(15, "unknown");
  for (const std::size_t most : {std::size_t{1}, std::size_t{3}, message.size()}) {
    for (const bool placed : {false, true}) {
      std::uint8_t memory[9] = {};
      ResponseReader reader;
      if (placed) reader.place("x", Datatype::kUint8, {9}, {memory, sizeof memory});
      CHECK(reader.landing().size == 0);
      reader.begin(message.size());
      std::size_t landed = 0;
      for (std::size_t at = 0, size = 0; at < message.size(); at += size) {
        const MutableBuffer place = reader.landing();
        size = std::min(place.size != 0 ? place.size : 1, message.size() - at);
        if (landed < 100) size = std::min(size, most);
        const std::string piece = message.substr(at, size);
        if (place.size == 0) {
          reader.feed(view(piece));
          continue;
        }
        std::memcpy(place.data, piece.data(), size);
        reader.feed({place.data, size});
        landed += size;
      }
      reader.finish();
      CHECK(reader.landing().size == 0);
      CHECK(landed > large.size() / 2);
      CHECK((placed ? std::memcmp(memory, "123456789", 9) == 0
                    : payload_of(reader.outputs()[0]) == "123456789"));
      CHECK(payload_of(reader.outputs()[1]) == "\x02\0\0\0ab\0\0\0\0"s);
      CHECK((payload_of(reader.outputs()[2]) == large));
    }
  }
}

TEST_CASE("response typed contents") {
  CHECK(typed("BOOL", 3, field(1, "\0\x01\x05"s)) == "\0\1\1"s);
  CHECK(typed("INT8", 2, field(2, packed({-128, 127}))) == bytes<std::int8_t>({-128, 127}));
  CHECK(typed("INT16", 2, field(2, packed({-32768, 1}))) == bytes<std::int16_t>({-32768, 1}));
  CHECK(typed("INT32", 2, field(2, packed({-70000, 1}))) == bytes<std::int32_t>({-70000, 1}));
  CHECK(typed("INT64", 2, field(3, packed({INT64_MIN, 1}))) == bytes<std::int64_t>({INT64_MIN, 1}));
  CHECK(typed("UINT8", 2, field(4, packed({255, 0}))) == bytes<std::uint8_t>({255, 0}));
  CHECK(typed("UINT16", 2, field(4, packed({65535, 0}))) == bytes<std::uint16_t>({65535, 0}));
  CHECK(typed("UINT32", 1, field(4, packed({0xffffffff}))) == bytes<std::uint32_t>({0xffffffff}));
  CHECK(typed("UINT64", 1, field(5, packed({-1}))) == bytes<std::uint64_t>({UINT64_MAX}));
  CHECK(typed("FP32", 2, field(6, bytes<float>({1.5f, -2.0f}))) == bytes<float>({1.5f, -2.0f}));
  CHECK(typed("FP64", 1, field(7, bytes<double>({0.1}))) == bytes<double>({0.1}));
  CHECK(typed("BYTES", 2, field(8, "ab") + field(8, "")) == "\2\0\0\0ab\0\0\0\0"s);
  // One by one, in two parts, and both.
  CHECK(typed("INT64", 3, "\x18\x01" + field(3, packed({2})) + "\x18\x03") ==
        bytes<std::int64_t>({1, 2, 3}));
  CHECK(typed("FP32", 2, "\x35" + bytes<float>({1.5f}) + "\x35" + bytes<float>({2.5f})) ==
        bytes<float>({1.5f, 2.5f}));
  ResponseReader reader;
  read(reader, output("x", "INT32", {2}, field(5, field(2, "\1")) + field(5, field(2, "\2"))));
  CHECK((payload_of(reader.outputs()[0]) == bytes<std::int32_t>({1, 2})));
}

TEST_CASE("response shape one by one") {
  ResponseReader reader;
  read(reader, field(5, field(1, "x") + field(2, "INT8") + "\x18\x02\x18\x01") + raw("ab"));
  CHECK((reader.outputs()[0].shape == std::vector<std::int64_t>{2, 1}));
}

TEST_CASE("response parameters of each kind") {
  const auto entry = [](const std::string& value) {
    return field(4, field(1, "key") + field(2, value));
  };
  const auto read_one = [&](const std::string& message) {
    ResponseReader reader;
    read(reader, message);
    REQUIRE(reader.parameters().size() == 1);
    return reader.parameters()[0];
  };
  CHECK(read_one(entry("")).kind == Parameter::Kind::kNone);
  CHECK(read_one(entry("\x08\x02")).bits == 1);
  CHECK(read_one(entry("\x10" + packed({-5}))).bits == static_cast<std::uint64_t>(-5));
  CHECK(read_one(entry(field(3, "text"))).text == "text");
  CHECK(read_one(entry("\x21" + bytes<double>({0.5}))).bits == 0x3fe0000000000000);
  CHECK(read_one(entry("\x28\x07")).kind == Parameter::Kind::kUint64);
  CHECK(read_one(field(4, "")).key.empty());
  // The last member of the oneof counts.
  const Parameter last = read_one(entry(field(3, "text") + "\x10\x07"));
  CHECK(last.kind == Parameter::Kind::kInt64);
  CHECK(last.bits == 7);
  CHECK(last.text.empty());
  // Of a key that comes twice the last entry counts, for whoever makes a mapping of them.
  ResponseReader reader;
  read(reader, entry("\x10\x07") + entry(field(3, "b")));
  REQUIRE(reader.parameters().size() == 2);
  CHECK(reader.parameters().back().text == "b");
}

// ---- Into the caller's memory ------------------------------------------------------------------

TEST_CASE("response placed") {
  const std::string described = output("x", "FP32", {2}) + output("y", "INT8", {1});
  const std::string contents = raw("12345678") + raw("z");
  // Its payload comes after its description, before it, or as typed contents.
  for (const std::string& message : {described + contents, contents + described,
                                     output("x", "FP32", {2}, field(5, field(6, "12345678"))) +
                                         output("y", "INT8", {1}, field(5, field(2, "z")))}) {
    std::uint8_t memory[8] = {};
    ResponseReader reader;
    reader.place("x", Datatype::kFp32, {2}, {memory, 8});
    read(reader, message);
    CHECK(std::memcmp(memory, "12345678", 8) == 0);
    CHECK(reader.outputs()[0].source == Output::Source::kPlaced);
    CHECK(reader.outputs()[0].payload.size() == 0);
    CHECK(payload_of(reader.outputs()[1]) == "z");
  }
}

TEST_CASE("response that does not fit its place") {
  const auto refused = [](Datatype datatype, std::vector<std::int64_t> shape, std::size_t size) {
    std::uint8_t memory[16] = {};
    CHECK_THROWS_WITH_AS(
        [&] {
          ResponseReader reader;
          reader.place("x", datatype, shape, {memory, size});
          read(reader, output("x", "FP32", {2}) + raw("12345678"));
        }(),
        doctest::Contains("out['x'] is "), TensorError);
    for (const std::uint8_t byte : memory) REQUIRE(byte == 0);
  };
  refused(Datatype::kInt32, {2}, 8);
  refused(Datatype::kFp32, {1, 2}, 8);
  refused(Datatype::kFp32, {3}, 12);
  refused(Datatype::kFp32, {2}, 4);
  refused(Datatype::kBytes, {2}, 8);
}

TEST_CASE("response never places bytes") {
  // Sixteen bytes: just as many as the two pointers of an object array have.
  const std::string elements = "\4\0\0\0four\4\0\0\0five"s;
  for (const std::string& message :
       {output("x", "BYTES", {2}) + raw(elements), raw(elements) + output("x", "BYTES", {2})}) {
    std::uint8_t memory[16] = {};
    ResponseReader reader;
    reader.place("x", Datatype::kBytes, {2}, {memory, 16});
    read(reader, message);
    CHECK((payload_of(reader.outputs()[0]) == elements));
    for (const std::uint8_t byte : memory) REQUIRE(byte == 0);
  }
}

TEST_CASE("response in shared memory") {
  for (const std::string& message :
       {output("x", "FP32", {2}) + output("y", "INT8", {1}) + raw("") + raw("z"),
        output("x", "FP32", {2}) + output("y", "INT8", {1}, field(5, field(2, "z")))}) {
    ResponseReader reader;
    reader.expect_shared_memory("x");
    read(reader, message);
    CHECK(reader.outputs()[0].source == Output::Source::kSharedMemory);
    CHECK(reader.outputs()[0].payload.size() == 0);
    CHECK(payload_of(reader.outputs()[1]) == "z");
  }
  CHECK_THROWS_WITH_AS(
      [&] {
        ResponseReader reader;
        reader.expect_shared_memory("x");
        read(reader, output("x", "FP32", {-2}));
      }(),
      doctest::Contains("outputs[0] ('x').shape is [-2]"), WireError);
  // Nobody asked for it there.
  check_refused(output("x", "FP32", {2}) + raw(""),
                "outputs[0] ('x'): FP32 [2] does not take the 0");
}

// ---- What is not -------------------------------------------------------------------------------

TEST_CASE("response refused whatever is cut off") {
  const std::string message = full();
  for (std::size_t size = 0; size < message.size(); ++size) {
    CHECK_THROWS_WITH_AS(
        [&] {
          ResponseReader reader;
          reader.begin(message.size());
          reader.feed({view(message).data, size});
          reader.finish();
        }(),
        doctest::Contains(("ends after " + std::to_string(size) + " of ").c_str()), WireError);
  }
}

TEST_CASE("response that goes on") {
  const std::string message = full();
  CHECK_THROWS_WITH_AS(
      [&] {
        ResponseReader reader;
        reader.begin(message.size());
        reader.feed(view(message + "\x0a"));
      }(),
      doctest::Contains("goes on after the "), WireError);
}

TEST_CASE("response survives every broken byte") {
  const std::string message = full();
  int refused = 0;
  for (std::size_t at = 0; at < message.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string broken = message;
      broken[at] = static_cast<char>(broken[at] ^ (1 << bit));
      try {
        ResponseReader reader;
        read(reader, broken);
      } catch (const WireError& error) {
        ++refused;
        CHECK(std::strncmp(error.what(), "ModelInferResponse", 18) == 0);
      }
    }
  }
  CHECK(refused > 0);
}

TEST_CASE("response names the field that is wrong") {
  check_refused(field(1, "\xff"), "ModelInferResponse.model_name is not UTF-8");
  check_refused(field(3, "long and then \xed\xa0\x80"), "ModelInferResponse.id is not UTF-8");
  check_refused("\x0a\x05ok", "ModelInferResponse.model_name says that it has 5 bytes where 2");
  check_refused(field(5, "\x0a\x05ok"), "ModelInferResponse.outputs[0].name says that it has 5");
  check_refused(output("x", "INT8", {1}) + field(5, field(2, "\x80")),
                "ModelInferResponse.outputs[1].datatype is not UTF-8");
  check_refused(field(4, field(1, "\x80")), "ModelInferResponse.parameters.key is not UTF-8");
  check_refused(field(5, field(4, field(2, field(3, "\x80")))),
                "outputs[0].parameters.value.string_param is not UTF-8");
  check_refused(field(5, field(5, field(6, "123"))), "outputs[0].contents.fp32_contents has 3");
  check_refused(field(5, field(5, field(2, "\x80"))), "contents.int_contents ends in the middle");
  check_refused("\x30", "ModelInferResponse.raw_output_contents ends after a tag");
  check_refused("\x31", "ModelInferResponse.raw_output_contents ends in the middle of a number");
  check_refused("\x4a", "ModelInferResponse.field 9 ends after a tag");
  // A tag that is no tag belongs to no field, least of all to the one before it.
  check_refused(field(1, "m") + "\x80", "ModelInferResponse ends");
}

TEST_CASE("response refuses broken tags") {
  check_refused("\0\1"s, "has a tag that protobuf does not allow");
  check_refused("\x0e\1", "has a field of wire type 6");
  check_refused("\x0f\1", "has a field of wire type 7");
  check_refused("\x80\x80\x80\x80\x80\x01", "more than five bytes");
  check_refused("\x78" + std::string(10, '\x80') + "\1", "more than ten bytes");
}

TEST_CASE("response refuses broken groups") {
  check_refused("\x7c", "ends a group that it did not begin");
  check_refused("\x7b\x84\x01", "ends a group that it did not begin");
  check_refused("\x7b", "ends inside a group");
  check_refused(field(5, "\x7b") + "\x7c", "ends inside a group");
  check_refused(std::string(200, '\x7b'), "nests groups too deeply");
  ResponseReader reader;
  read(reader, std::string(100, '\x7b') + std::string(100, '\x7c'));
}

TEST_CASE("response refuses tensors that do not add up") {
  check_refused(output("x", "FP31", {1}) + raw("1234"), ".datatype is 'FP31'");
  check_refused(output("x", "FP32", {-1}) + raw("1234"), ".shape is [-1], which no tensor can");
  check_refused(output("x", "FP32", {INT64_MAX, 8}) + raw(""), "which no tensor can have");
  check_refused(output("x", "INT8", {0, std::int64_t{1} << 62, 4}) + raw(""), "no tensor can have");
  check_refused(output("x", "FP32", {2}) + raw("1234567"), "does not take the 7 bytes that came");
  check_refused(output("x", "FP32", {2}) + raw("123456789"), "does not take the 9 bytes");
  check_refused(output("x", "FP32", {2}), "does not take the 0 bytes that came");
  check_refused(output("x", "BYTES", {1}) + raw("\5\0\0\0four"s), "in the middle of element 0");
  check_refused(output("x", "BYTES", {1}) + raw("\0\0\0\0\0\0\0\0"s), "1 elements, and 2 came");
  check_refused(output("x", "INT8", {1}) + output("x", "INT8", {1}) + raw("a") + raw("b"),
                "outputs[1] ('x').name is that of outputs[0]");
  check_refused(output("x", "INT8", {1}) + raw("a") + raw("b"), "has 2 entries for 1 outputs");
  check_refused(raw("a"), "has 1 entries for 0 outputs");
  check_refused(output("x", "INT8", {1}, field(5, field(2, "a"))) + raw("a"),
                "has contents although the response has raw_output_contents");
  check_refused(output("x", "INT8", {1}, field(5, field(2, packed({128})))),
                "int_contents has a number outside the range of INT8");
  check_refused(output("x", "UINT16", {1}, field(5, field(4, packed({65536})))), "range of UINT16");
  check_refused(output("x", "FP32", {1}, field(5, field(2, "a"))), "is not where FP32 goes");
  check_refused(output("x", "FP16", {1}, field(5, field(2, "a"))), "is not where FP16 goes");
  check_refused(output("x", "INT8", {2}, field(5, field(2, "a") + field(3, "a"))),
                "int64_contents follows int_contents");
}

TEST_CASE("response shortens what it quotes") {
  // Cut between characters: what is quoted stays UTF-8.
  std::string name(79, 'n');
  name += "öööö";
  check_refused(output(name, "INT8", {1}) + raw(""), " ('" + std::string(79, 'n') + "…')");
}

TEST_CASE("response limits") {
  CHECK_THROWS_WITH_AS(
      [&] {
        ResponseReader reader;
        reader.begin(std::uint64_t{1} << 31);
      }(),
      doctest::Contains("2147483648 bytes announced"), WireError);
  const std::vector<std::int64_t> dimensions(32, 1);
  ResponseReader reader;
  read(reader, output("x", "INT8", dimensions) + raw("a"));
  check_refused(output("x", "INT8", std::vector<std::int64_t>(33, 1)) + raw("a"), "32 dimensions");
  std::string many;
  std::string raws;
  for (int i = 0; i < 4097; ++i) {
    if (i == 4096) {
      ResponseReader just_enough;
      read(just_enough, many + raws);
      CHECK(just_enough.outputs().size() == 4096);
    }
    many += output(std::to_string(i), "INT8", {0});
    raws += raw("");
  }
  CHECK_THROWS_WITH_AS(read_anew(many), doctest::Contains("outputs has more than 4096"), WireError);
  CHECK_THROWS_WITH_AS(read_anew(raws), doctest::Contains("raw_output_contents has more than"),
                       WireError);
}

// Of the response and of its outputs together: limits for each would be multiplied.
TEST_CASE("response limits parameters") {
  const auto parameters = [](int count) {
    std::string all;
    for (int i = 0; i < count; ++i) all += field(4, "");
    return all;
  };
  const auto message = [&](int own, int of_each_output) {
    std::string all = parameters(own);
    for (int i = 0; i < 16; ++i) {
      all += output(std::to_string(i), "INT8", {0}, parameters(of_each_output));
    }
    return all;
  };
  ResponseReader reader;
  read(reader, message(384, 1000));
  CHECK(reader.parameters().size() == 384);
  CHECK(reader.outputs().back().parameters.size() == 1000);
  CHECK(reader.footprint() > 16384 * sizeof(Parameter));
  CHECK(reader.footprint() < 16384 * 4 * sizeof(Parameter));
  read_anew(message(16384, 0));
  CHECK_THROWS_WITH_AS(read_anew(message(16385, 0)),
                       doctest::Contains("parameters has more than 16384 entries"), WireError);
  CHECK_THROWS_WITH_AS(read_anew(message(385, 1000)),
                       doctest::Contains("outputs[15].parameters has more than 16384 entries"),
                       WireError);
}

TEST_CASE("response reader has to be begun") {
  CHECK_THROWS_WITH_AS(
      [&] {
        ResponseReader reader;
        reader.feed(view("\x0a"));
      }(),
      doctest::Contains("never begun"), WireError);
  CHECK_THROWS_WITH_AS(
      [&] {
        ResponseReader reader;
        reader.finish();
      }(),
      doctest::Contains("never begun"), WireError);
  ResponseReader failed;
  CHECK_THROWS_AS(read(failed, "\x7c"), WireError);
  CHECK_THROWS_WITH_AS(failed.feed(view("\x0a")), doctest::Contains("failed before"), WireError);
  CHECK_THROWS_WITH_AS(failed.finish(), doctest::Contains("failed before"), WireError);
}
