// Fuzzes BYTES tensors and UTF-8: what is encoded comes back as it was, hostile lengths are
// refused, and is_utf8() agrees with a decoder written the slow way.
//
// The first byte of an input says which of these it is for and how wide fixed-width elements are.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "require.hpp"
#include "triton_fast/error.hpp"
#include "triton_fast/wire/datatype.hpp"
#include "triton_fast/wire/strings.hpp"

namespace {

using namespace triton_fast;
using namespace triton_fast::wire;

/// Characters of a UTF-8 text; false if it is none. Decodes by the bit patterns, then holds the
/// character against the length that it should have had.
bool decode_utf8(ConstBuffer text, std::vector<std::uint32_t>& characters) {
  for (std::size_t i = 0; i < text.size;) {
    const std::uint8_t lead = text.data[i];
    const std::size_t size = lead < 0x80             ? 1
                             : (lead & 0xe0) == 0xc0 ? 2
                             : (lead & 0xf0) == 0xe0 ? 3
                             : (lead & 0xf8) == 0xf0 ? 4
                                                     : 0;
    if (size == 0 || text.size - i < size) return false;
    std::uint32_t character = size == 1 ? lead : lead & (0x7fu >> size);
    for (std::size_t k = 1; k < size; ++k) {
      if ((text.data[i + k] & 0xc0) != 0x80) return false;
      character = character << 6 | (text.data[i + k] & 0x3f);
    }
    const std::size_t needed = character < 0x80      ? 1
                               : character < 0x800   ? 2
                               : character < 0x10000 ? 3
                                                     : 4;
    if (size != needed || character > 0x10ffff) return false;
    if (character >= 0xd800 && character <= 0xdfff) return false;
    characters.push_back(character);
    i += size;
  }
  return true;
}

/// The elements of an encoded tensor; false if it is not whole. Walks with the least of arithmetic.
bool split(ConstBuffer encoded, std::vector<std::string>& elements) {
  std::size_t at = 0;
  while (at < encoded.size) {
    std::uint64_t size = 0;
    for (int i = 0; i < 4; ++i) {
      if (at == encoded.size) return false;
      size |= std::uint64_t{encoded.data[at++]} << 8 * i;
    }
    std::string element;
    for (; size != 0; --size) {
      if (at == encoded.size) return false;
      element.push_back(static_cast<char>(encoded.data[at++]));
    }
    elements.push_back(element);
  }
  return true;
}

void fuzz_utf8(ConstBuffer text) {
  std::vector<std::uint32_t> characters;
  REQUIRE(is_utf8(text) == decode_utf8(text, characters));
}

void fuzz_elements(ConstBuffer encoded) {
  std::vector<std::string> elements;
  const bool whole = split(encoded, elements);
  std::size_t count = 0;
  REQUIRE(count_elements(encoded, count) == whole);
  REQUIRE(count == elements.size());
  if (!whole) return;
  ConstBuffer rest = encoded;
  std::vector<ConstBuffer> views;
  for (const std::string& element : elements) {
    views.push_back(next_element(rest));
    REQUIRE(views.back().size == element.size());
    REQUIRE(std::equal(element.begin(), element.end(),
                       reinterpret_cast<const char*>(views.back().data)));
  }
  REQUIRE(rest.size == 0);
  const OwnedBuffer again = encode_elements(views.data(), views.size());
  REQUIRE(again.size() == encoded.size);
  REQUIRE(encoded.size == 0 || std::memcmp(again.data(), encoded.data, encoded.size) == 0);
}

void fuzz_fixed_bytes(ConstBuffer array, std::size_t width) {
  const std::size_t count = array.size / width;
  const OwnedBuffer encoded = encode_fixed_bytes(array.data, count, width);
  REQUIRE(encoded.capacity() <= count * (4 + width));
  std::vector<std::string> elements;
  REQUIRE(split({encoded.data(), encoded.size()}, elements) && elements.size() == count);
  for (std::size_t i = 0; i < count; ++i) {
    REQUIRE(elements[i].empty() || elements[i].back() != '\0');
    elements[i].resize(width, '\0');
    REQUIRE(std::memcmp(elements[i].data(), array.data + i * width, width) == 0);
  }
}

void fuzz_fixed_ucs4(ConstBuffer array, std::size_t width) {
  const std::size_t count = array.size / (4 * width);
  std::vector<std::uint32_t> characters(count * width);
  if (!characters.empty()) std::memcpy(characters.data(), array.data, 4 * characters.size());
  const bool sound = std::all_of(characters.begin(), characters.end(), [](std::uint32_t c) {
    return c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
  });
  OwnedBuffer encoded;
  try {
    encoded = encode_fixed_ucs4(array.data, count, width);
  } catch (const TensorError& error) {
    REQUIRE(!sound);
    REQUIRE(std::strncmp(error.what(), "element ", 8) == 0);
    return;
  }
  REQUIRE(sound);
  REQUIRE(encoded.capacity() <= count * 4 * (1 + width));
  std::vector<std::string> elements;
  REQUIRE(split({encoded.data(), encoded.size()}, elements) && elements.size() == count);
  for (std::size_t i = 0; i < count; ++i) {
    const ConstBuffer text{reinterpret_cast<const std::uint8_t*>(elements[i].data()),
                           elements[i].size()};
    std::vector<std::uint32_t> decoded;
    REQUIRE(is_utf8(text) && decode_utf8(text, decoded));
    REQUIRE(decoded.empty() || decoded.back() != 0);
    decoded.resize(width);
    REQUIRE(std::equal(decoded.begin(), decoded.end(),
                       characters.begin() + static_cast<std::ptrdiff_t>(i * width)));
  }
}

void fuzz_datatype(ConstBuffer text) {
  const std::string name(reinterpret_cast<const char*>(text.data), text.size);
  const Datatype datatype = datatype_from_name(name);
  if (datatype != Datatype::kUnknown) REQUIRE(datatype_name(datatype) == name);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return -1;
  const std::size_t width = 1u + (data[0] >> 3);
  // A block of its own, so that what begins or ends a byte too far is seen.
  std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[size - 1]);
  if (size > 1) std::memcpy(copy.get(), data + 1, size - 1);
  const ConstBuffer rest{copy.get(), size - 1};
  switch (data[0] & 7) {
    case 0:
    case 1:
      fuzz_utf8(rest);
      break;
    case 2:
    case 3:
      fuzz_elements(rest);
      break;
    case 4:
      fuzz_fixed_bytes(rest, width);
      break;
    case 5:
    case 6:
      fuzz_fixed_ucs4(rest, width);
      break;
    default:
      fuzz_datatype(rest);
  }
  return 0;
}
