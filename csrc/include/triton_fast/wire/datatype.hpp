// Triton's datatypes: their names on the wire and the bytes that an element takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace triton_fast::wire {

enum class Datatype : std::uint8_t {
  kUnknown,
  kBool,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kFp16,
  kBf16,
  kFp32,
  kFp64,
  kBytes,
};

/// The datatype with this name, or kUnknown.
Datatype datatype_from_name(std::string_view name) noexcept;

/// The datatype's name on the wire; "?" for kUnknown.
std::string_view datatype_name(Datatype datatype) noexcept;

/// Bytes of one element; 0 for BYTES, whose elements vary, and for kUnknown.
std::size_t element_size(Datatype datatype) noexcept;

}  // namespace triton_fast::wire
