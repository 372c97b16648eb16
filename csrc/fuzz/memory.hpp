// How much memory is taken at once while something is measured, with AddressSanitizer's help. For
// one translation unit of a harness.
#pragma once

#include <algorithm>
#include <cstddef>

#include "require.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/allocator_interface.h>
#include <sanitizer/asan_interface.h>
#define TRITON_FAST_FUZZ_ASAN 1
#endif
#endif

namespace memory {

// Bytes that are held at once, and the most so far. Frees are counted like allocations, so a
// reallocation counts both blocks for a moment.
inline bool measuring = false;
inline std::size_t live = 0;
inline std::size_t peak = 0;

#ifdef TRITON_FAST_FUZZ_ASAN
inline void on_allocate(const volatile void*, std::size_t size) {
  if (!measuring) return;
  live += size;
  peak = std::max(peak, live);
}

inline void on_free(const volatile void* block) {
  if (!measuring || block == nullptr) return;
  live -= std::min(live, __sanitizer_get_allocated_size(const_cast<const void*>(block)));
}
#endif

/// To be called once, before anything is measured.
inline void install() {
#ifdef TRITON_FAST_FUZZ_ASAN
  REQUIRE(__sanitizer_install_malloc_and_free_hooks(on_allocate, on_free) != 0);
#endif
}

/// Measures while it lives.
class Measurement {
 public:
  Measurement() { live = peak = 0, measuring = true; }
  ~Measurement() { measuring = false; }
  Measurement(const Measurement&) = delete;
  Measurement& operator=(const Measurement&) = delete;
};

}  // namespace memory
