// Watches a child that may use no memory (forked.hpp).
#include "forked.hpp"

#include <pthread.h>

#include <atomic>
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define HAS_HOOKS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_HOOKS 1
#endif
#endif
#ifdef HAS_HOOKS
// Of sanitizer/allocator_interface.h, which gcc does not install.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*,
                                                                             std::size_t),
                                                         void (*free_hook)(const volatile void*));
#endif

namespace test {
namespace {

std::atomic<int> next_child{-1};
std::atomic<int> this_child{-1};

[[maybe_unused]] void refuse(const char* what) {
  const int descriptor = this_child;
  if (descriptor < 0) return;
  this_child = -1;
  Report(descriptor).say(what);
  ::_exit(1);
}

// Handlers run in the order in which they were given, in a child: before those of the library,
// which gives its own when it is first used.
[[maybe_unused]] const bool watching = [] {
#ifdef HAS_HOOKS
  __sanitizer_install_malloc_and_free_hooks(
      [](const volatile void*, std::size_t) { refuse("it takes memory"); },
      [](const volatile void* memory) {
        if (memory != nullptr) refuse("it gives memory back");
      });
#endif
  return ::pthread_atfork(nullptr, nullptr, [] { this_child = next_child.load(); }) == 0;
}();

}  // namespace

void watch_memory(int descriptor) { next_child = descriptor; }

}  // namespace test
