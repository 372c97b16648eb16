// BYTES tensors and UTF-8.
#include "triton_fast/wire/strings.hpp"

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "check.hpp"
#include "triton_fast/error.hpp"

namespace {

using namespace triton_fast;
using namespace triton_fast::wire;

ConstBuffer view(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::string text_of(const OwnedBuffer& buffer) {
  return {reinterpret_cast<const char*>(buffer.data()), buffer.size()};
}

std::string prefixed(const std::string& element) {
  std::string out(4, '\0');
  for (int i = 0; i < 4; ++i) {
    out[static_cast<std::size_t>(i)] = static_cast<char>(element.size() >> 8 * i);
  }
  return out + element;
}

std::string encoded_ucs4(const std::vector<std::uint32_t>& characters, std::size_t width) {
  const OwnedBuffer encoded = encode_fixed_ucs4(
      reinterpret_cast<const std::uint8_t*>(characters.data()), characters.size() / width, width);
  CHECK(encoded.size() <= encoded.capacity());
  return text_of(encoded);
}

}  // namespace

TEST(elements_encode) {
  const std::string elements[] = {"", std::string("a\0b", 3), std::string(300, 'x'), "größer"};
  std::vector<ConstBuffer> views;
  std::string expected;
  for (const std::string& element : elements) {
    views.push_back(view(element));
    expected += prefixed(element);
  }
  CHECK(text_of(encode_elements(views.data(), views.size())) == expected);
  CHECK(encode_elements(nullptr, 0).size() == 0);

  std::size_t count = 0;
  CHECK(count_elements(view(expected), count) && count == 4);
  ConstBuffer rest = view(expected);
  for (const std::string& element : elements) {
    const ConstBuffer taken = next_element(rest);
    CHECK(taken.size == element.size());
    CHECK(taken.size == 0 || std::memcmp(taken.data, element.data(), taken.size) == 0);
  }
  CHECK(rest.size == 0);
}

TEST(elements_of_four_gibibytes_are_refused) {
  // The size alone is looked at: there is no memory behind it.
  const std::uint8_t byte = 0;
  const ConstBuffer elements[] = {{&byte, 1}, {&byte, std::size_t{1} << 32}};
  CHECK_THROWS(TensorError, "element 1 has 4294967296 bytes", encode_elements(elements, 2));
}

TEST(count_stops_at_the_first_broken_element) {
  const std::string whole = prefixed("ab") + prefixed("") + prefixed("cde");
  std::size_t count = 0;
  CHECK(count_elements({nullptr, 0}, count) && count == 0);
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    const bool at_an_end = size == 0 || size == 6 || size == 10 || size == whole.size();
    CHECK(count_elements({view(whole).data, size}, count) == at_an_end);
    CHECK(count == (size < 6 ? 0u : size < 10 ? 1u : size < whole.size() ? 2u : 3u));
  }
  CHECK(!count_elements(view("\xff\xff\xff\xff"), count));
  CHECK(!count_elements(view(std::string("\x01\0\0\0", 4)), count));
}

TEST(fixed_bytes_lose_their_padding_only) {
  const std::string array("ab\0\0\0a\0b\0\0\0\0", 12);
  const OwnedBuffer encoded = encode_fixed_bytes(view(array).data, 3, 4);
  CHECK(text_of(encoded) == prefixed("ab") + prefixed(std::string("\0a\0b", 4)) + prefixed(""));
  CHECK(encode_fixed_bytes(nullptr, 0, 4).size() == 0);
}

TEST(fixed_ucs4_becomes_utf8) {
  // One character at each end of each length.
  CHECK(encoded_ucs4({0x41, 0x7f, 0x80, 0x7ff, 0x800, 0xffff, 0x10000, 0x10ffff}, 8) ==
        prefixed("A\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"));
  CHECK(encoded_ucs4({0, 'a', 'b', 0, 0, 0}, 3) == prefixed(std::string("\0ab", 3)) + prefixed(""));
  CHECK(encode_fixed_ucs4(nullptr, 0, 3).size() == 0);
}

TEST(fixed_ucs4_may_be_unaligned) {
  std::uint8_t bytes[9] = {};
  const std::uint32_t characters[] = {0xe9, 'x'};
  std::memcpy(bytes + 1, characters, 8);
  CHECK(text_of(encode_fixed_ucs4(bytes + 1, 2, 1)) == prefixed("\xc3\xa9") + prefixed("x"));
}

TEST(fixed_ucs4_refuses_what_utf8_cannot_hold) {
  CHECK_THROWS(TensorError, "element 1 holds U+D800", encoded_ucs4({'a', 'b', 0xd800, 'c'}, 2));
  CHECK_THROWS(TensorError, "U+DFFF", encoded_ucs4({0xdfff}, 1));
  CHECK_THROWS(TensorError, "U+110000", encoded_ucs4({0x110000}, 1));
  CHECK_THROWS(TensorError, "U+FFFFFFFF", encoded_ucs4({0xffffffff}, 1));
  CHECK(encoded_ucs4({0xd7ff, 0xe000}, 1) == prefixed("\xed\x9f\xbf") + prefixed("\xee\x80\x80"));
}

TEST(utf8_table) {
  const char* const good[] = {"",
                              "plain",
                              "größer",
                              "\xc2\x80",
                              "\xdf\xbf",
                              "\xe0\xa0\x80",
                              "\xed\x9f\xbf",
                              "\xee\x80\x80",
                              "\xef\xbf\xbf",
                              "\xf0\x90\x80\x80",
                              "\xf4\x8f\xbf\xbf"};
  for (const char* text : good) CHECK(is_utf8(view(text)));
  CHECK(is_utf8(view(std::string("a\0b", 3))));
  const char* const bad[] = {"\x80",              // continues nothing
                             "\xc3",              // ends too soon
                             "\xe2\x82",          //
                             "\xf0\x9f\x98",      //
                             "\xc3(",             // is not continued
                             "\xe2\x82(",         //
                             "\xc0\x80",          // overlong
                             "\xc1\xbf",          //
                             "\xe0\x9f\xbf",      //
                             "\xf0\x8f\xbf\xbf",  //
                             "\xed\xa0\x80",      // surrogates
                             "\xed\xbf\xbf",      //
                             "\xf4\x90\x80\x80",  // past the last character
                             "\xf5\x80\x80\x80",  //
                             "\xff"};
  for (const char* text : bad) {
    CHECK(!is_utf8(view(text)));
    CHECK(!is_utf8(view(std::string("before ") + text)));
    CHECK(!is_utf8(view(text + std::string(" after"))));
  }
}
