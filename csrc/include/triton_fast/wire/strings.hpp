// BYTES tensors: each element is a four-byte little-endian length and that many bytes.
//
// Source: Triton, "Binary tensor data extension" (BYTES datatype).
#pragma once

#include <cstddef>
#include <cstdint>

#include "triton_fast/span.hpp"
#include "triton_fast/wire/buffer.hpp"

namespace triton_fast::wire {

/// @brief Encodes elements found anywhere in memory.
/// @throws TensorError for an element of 4 GiB or more; std::bad_alloc
OwnedBuffer encode_elements(const ConstBuffer* elements, std::size_t count);

/// @brief Encodes a C-contiguous array of fixed-width byte strings (numpy's S), leaving out the
/// NULs that pad each to `width`.
OwnedBuffer encode_fixed_bytes(const std::uint8_t* elements, std::size_t count, std::size_t width);

/// @brief Encodes a C-contiguous array of fixed-width UCS-4 strings (numpy's U, native byte order)
/// as UTF-8, leaving out the NULs that pad each to `width` characters.
/// @throws TensorError for a character that UTF-8 cannot hold, naming the element
OwnedBuffer encode_fixed_ucs4(const std::uint8_t* elements, std::size_t count, std::size_t width);

/// @brief Counts the elements of an encoded tensor.
/// @return false when the bytes do not end with an element's last byte; `count` is then how many
/// whole ones there were.
bool count_elements(ConstBuffer encoded, std::size_t& count) noexcept;

/// @brief Takes the next element off the front of `rest`, which must have passed count_elements().
inline ConstBuffer next_element(ConstBuffer& rest) noexcept {
  const std::uint8_t* p = rest.data;
  const std::size_t size = static_cast<std::size_t>(p[0]) | static_cast<std::size_t>(p[1]) << 8 |
                           static_cast<std::size_t>(p[2]) << 16 |
                           static_cast<std::size_t>(p[3]) << 24;
  rest.data += 4 + size;
  rest.size -= 4 + size;
  return {p + 4, size};
}

/// @brief Whether the bytes are UTF-8 as protobuf wants it: no surrogates, nothing overlong.
bool is_utf8(ConstBuffer text) noexcept;

}  // namespace triton_fast::wire
