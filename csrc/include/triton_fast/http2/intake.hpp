// Intake: from a socket to a session. Owns the memory for what has no place of its own yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "triton_fast/http2/session.hpp"
#include "triton_fast/http2/socket.hpp"

namespace triton_fast::http2 {

class Intake {
 public:
  Intake();

  /// @brief Receives some of what is there now, and feeds the session with it: a large tensor's
  /// bytes from where they belong, where the kernel has put them; all others from a buffer.
  /// @return bytes; 0 if there are none
  /// @throws SocketError, ConnectionError, std::bad_alloc
  std::size_t receive(Socket& socket, Session& session);

 private:
  std::unique_ptr<std::uint8_t[]> buffer_;
};

}  // namespace triton_fast::http2
