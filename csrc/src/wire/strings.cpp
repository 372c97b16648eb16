// BYTES tensors and UTF-8.
#include "triton_fast/wire/strings.hpp"

#include <cstdio>
#include <cstring>
#include <string>

#include "triton_fast/error.hpp"

namespace triton_fast::wire {
namespace {

constexpr std::size_t kPrefix = 4;
constexpr std::size_t kMaxElement = 0xffffffff;

inline std::uint8_t* put_length(std::uint8_t* out, std::size_t size) noexcept {
  out[0] = static_cast<std::uint8_t>(size);
  out[1] = static_cast<std::uint8_t>(size >> 8);
  out[2] = static_cast<std::uint8_t>(size >> 16);
  out[3] = static_cast<std::uint8_t>(size >> 24);
  return out + kPrefix;
}

inline std::uint32_t load_ucs4(const std::uint8_t* p) noexcept {
  std::uint32_t value;
  std::memcpy(&value, p, sizeof value);  // numpy allows unaligned arrays
  return value;
}

inline std::size_t utf8_size(std::uint32_t c) noexcept {
  return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
}

inline std::uint8_t* put_utf8(std::uint8_t* out, std::uint32_t c) noexcept {
  if (c < 0x80) {
    *out++ = static_cast<std::uint8_t>(c);
  } else if (c < 0x800) {
    *out++ = static_cast<std::uint8_t>(0xc0 | c >> 6);
    *out++ = static_cast<std::uint8_t>(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    *out++ = static_cast<std::uint8_t>(0xe0 | c >> 12);
    *out++ = static_cast<std::uint8_t>(0x80 | (c >> 6 & 0x3f));
    *out++ = static_cast<std::uint8_t>(0x80 | (c & 0x3f));
  } else {
    *out++ = static_cast<std::uint8_t>(0xf0 | c >> 18);
    *out++ = static_cast<std::uint8_t>(0x80 | (c >> 12 & 0x3f));
    *out++ = static_cast<std::uint8_t>(0x80 | (c >> 6 & 0x3f));
    *out++ = static_cast<std::uint8_t>(0x80 | (c & 0x3f));
  }
  return out;
}

}  // namespace

OwnedBuffer encode_elements(const ConstBuffer* elements, std::size_t count) {
  std::size_t total = count * kPrefix;
  for (std::size_t i = 0; i < count; ++i) {
    if (elements[i].size > kMaxElement) {
      throw TensorError("element " + std::to_string(i) + " has " +
                        std::to_string(elements[i].size) +
                        " bytes; an element of a BYTES tensor can have 4294967295 at the most");
    }
    total += elements[i].size;
  }
  OwnedBuffer encoded;
  encoded.reserve(total);
  std::uint8_t* out = encoded.data();
  for (std::size_t i = 0; i < count; ++i) {
    out = put_length(out, elements[i].size);
    if (elements[i].size != 0) std::memcpy(out, elements[i].data, elements[i].size);
    out += elements[i].size;
  }
  encoded.set_size(total);
  return encoded;
}

OwnedBuffer encode_fixed_bytes(const std::uint8_t* elements, std::size_t count, std::size_t width) {
  OwnedBuffer encoded;
  encoded.reserve(count * (kPrefix + width));
  std::uint8_t* out = encoded.data();
  for (std::size_t i = 0; i < count; ++i, elements += width) {
    std::size_t size = width;
    while (size > 0 && elements[size - 1] == 0) --size;
    out = put_length(out, size);
    if (size != 0) std::memcpy(out, elements, size);
    out += size;
  }
  encoded.set_size(count == 0 ? 0 : static_cast<std::size_t>(out - encoded.data()));
  return encoded;
}

OwnedBuffer encode_fixed_ucs4(const std::uint8_t* elements, std::size_t count, std::size_t width) {
  // Sized in a pass of its own: most text is ASCII, and four bytes a character would quadruple it.
  std::size_t total = count * kPrefix;
  for (std::size_t i = 0; i < count * width; ++i) {
    const std::uint32_t c = load_ucs4(elements + 4 * i);
    if (c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) {
      char code[16];
      std::snprintf(code, sizeof code, "U+%04X", static_cast<unsigned>(c));
      throw TensorError("element " + std::to_string(i / width) + " holds " + code +
                        ", which is no character that UTF-8 can hold");
    }
    total += utf8_size(c);
  }
  OwnedBuffer encoded;
  encoded.reserve(total);
  std::uint8_t* out = encoded.data();
  for (std::size_t i = 0; i < count; ++i, elements += 4 * width) {
    std::size_t characters = width;
    while (characters > 0 && load_ucs4(elements + 4 * (characters - 1)) == 0) --characters;
    std::uint8_t* const length = out;
    out += kPrefix;
    for (std::size_t k = 0; k < characters; ++k) out = put_utf8(out, load_ucs4(elements + 4 * k));
    put_length(length, static_cast<std::size_t>(out - length) - kPrefix);
  }
  encoded.set_size(count == 0 ? 0 : static_cast<std::size_t>(out - encoded.data()));
  return encoded;
}

bool count_elements(ConstBuffer encoded, std::size_t& count) noexcept {
  count = 0;
  while (encoded.size != 0) {
    if (encoded.size < kPrefix) return false;
    const std::uint8_t* p = encoded.data;
    const std::size_t size = static_cast<std::size_t>(p[0]) | static_cast<std::size_t>(p[1]) << 8 |
                             static_cast<std::size_t>(p[2]) << 16 |
                             static_cast<std::size_t>(p[3]) << 24;
    if (size > encoded.size - kPrefix) return false;
    encoded.data += kPrefix + size;
    encoded.size -= kPrefix + size;
    ++count;
  }
  return true;
}

bool is_utf8(ConstBuffer text) noexcept {
  const std::uint8_t* p = text.data;
  const std::uint8_t* const end = p + text.size;
  while (p != end) {
    const std::uint8_t lead = *p++;
    if (lead < 0x80) continue;
    // The second byte's range rules out overlong forms, surrogates and what lies past U+10FFFF.
    std::size_t more;
    std::uint8_t low = 0x80;
    std::uint8_t high = 0xbf;
    if (lead >= 0xc2 && lead <= 0xdf) {
      more = 1;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      more = 2;
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      more = 3;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    } else {
      return false;
    }
    if (static_cast<std::size_t>(end - p) < more) return false;
    if (*p < low || *p > high) return false;
    for (++p; --more != 0; ++p) {
      if (*p < 0x80 || *p > 0xbf) return false;
    }
  }
  return true;
}

}  // namespace triton_fast::wire
