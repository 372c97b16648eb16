// Counts forks, in the child. Source: pthread_atfork(3).
#include "triton_fast/process.hpp"

#include <pthread.h>

#include <atomic>
#include <new>

namespace triton_fast {
namespace {

std::atomic<std::uint64_t> forks{0};

}  // namespace

std::uint64_t process_generation() noexcept {
  static const bool counting = [] {
    if (::pthread_atfork(nullptr, nullptr, [] { ++forks; }) != 0) throw std::bad_alloc();
    return true;
  }();
  static_cast<void>(counting);
  return forks.load(std::memory_order_relaxed);
}

}  // namespace triton_fast
