// The list and fork()'s three handlers. Source: pthread_atfork(3).
#include "triton_fast/http2/fork.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <new>
#include <vector>

namespace triton_fast::http2 {
namespace {

struct Registry {
  std::mutex mutex;
  std::vector<int> descriptors;  // two for each connection
};

void close_in_child() noexcept;

// Never destroyed: threads may make calls while the process ends.
Registry& registry() {
  static Registry* const made = [] {
    auto* const registry = new Registry;
    const auto lock = [] { http2::registry().mutex.lock(); };
    const auto unlock = [] { http2::registry().mutex.unlock(); };
    if (::pthread_atfork(lock, unlock, close_in_child) != 0) throw std::bad_alloc();
    return registry;
  }();
  return *made;
}

// Neither takes memory nor gives any back: in a child, the allocator's locks may be those of a
// thread that it does not have. glibc sees to its own; not every allocator does.
void close_in_child() noexcept {
  Registry& inherited = registry();
  const int before = errno;
  for (const int descriptor : inherited.descriptors) ::close(descriptor);
  inherited.descriptors.clear();
  inherited.mutex.unlock();
  errno = before;
}

}  // namespace

DescriptorList::DescriptorList() { registry().mutex.lock(); }

DescriptorList::~DescriptorList() { registry().mutex.unlock(); }

void DescriptorList::add(int descriptor) {
  try {
    registry().descriptors.push_back(descriptor);
  } catch (...) {
    ::close(descriptor);
    throw;
  }
}

void DescriptorList::close(int descriptor) noexcept {
  std::vector<int>& descriptors = registry().descriptors;
  const auto listed = std::find(descriptors.begin(), descriptors.end(), descriptor);
  if (listed != descriptors.end()) {
    *listed = descriptors.back();
    descriptors.pop_back();
  }
  ::close(descriptor);
}

}  // namespace triton_fast::http2
