// What a forked child has of its parent's connections: nothing.
//
// Owns the list of this process's descriptors. fork() waits until none is being opened or closed,
// and the child closes them all before anything else runs in it: so the server sees the parent's
// connections end when the parent ends them. The objects that had them are copies of what other
// threads of the parent were at; they are told by process_generation(), and left alone. Any thread.
#pragma once

namespace triton_fast::http2 {

/// @brief While there is one, fork() waits. Opens and closes descriptors, and does nothing else.
class DescriptorList {
 public:
  DescriptorList();
  ~DescriptorList();
  DescriptorList(const DescriptorList&) = delete;
  DescriptorList& operator=(const DescriptorList&) = delete;

  /// @brief Has forked children close a descriptor. @throws std::bad_alloc having closed it
  void add(int descriptor);

  /// @brief Closes a descriptor, listed or not.
  void close(int descriptor) noexcept;
};

}  // namespace triton_fast::http2
