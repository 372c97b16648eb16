// Views of memory that somebody else owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace triton_fast {

/// Borrowed bytes to read; valid while their owner keeps them.
struct ConstBuffer {
  const std::uint8_t* data = nullptr;
  std::size_t size = 0;
};

/// Borrowed bytes to write; valid while their owner keeps them.
struct MutableBuffer {
  std::uint8_t* data = nullptr;
  std::size_t size = 0;
};

}  // namespace triton_fast
