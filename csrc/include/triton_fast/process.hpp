// Tells a forked child from its parent.
#pragma once

#include <cstdint>

namespace triton_fast {

/// @brief Another number in every forked child: what was made under another one is a parent's.
/// Counts from its first call on. Any thread.
std::uint64_t process_generation() noexcept;

}  // namespace triton_fast
