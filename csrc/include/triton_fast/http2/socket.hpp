// Socket: a connected stream socket, and the address that it was made from.
//
// Owns the descriptor. Everything waits on a monotonic deadline in nanoseconds, never longer.
#pragma once

#include <netdb.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "triton_fast/error.hpp"
#include "triton_fast/span.hpp"

namespace triton_fast::http2 {

/// No deadline.
inline constexpr std::int64_t kNever = INT64_MAX;

/// Nanoseconds of CLOCK_MONOTONIC, as Python's time.monotonic_ns() has them.
std::int64_t monotonic_ns() noexcept;

/// A connection could not be made, or broke.
class SocketError : public Error {
 public:
  using Error::Error;
};

/// The deadline passed first.
class DeadlineError : public Error {
 public:
  using Error::Error;
};

/// Where to connect: a host and port, or the path of a Unix socket.
struct Address {
  std::string host;
  std::string port;
  std::string unix_path;  // wins if it is not empty
};

/// @brief A descriptor that wakes a thread from Socket::wait().
class Wake {
 public:
  Wake();
  ~Wake();
  Wake(const Wake&) = delete;
  Wake& operator=(const Wake&) = delete;

  /// Makes waits return at once from now on. Any thread.
  void set() noexcept;
  void clear() noexcept;
  int descriptor() const noexcept { return read_end_; }

 private:
  int read_end_ = -1;
  int write_end_ = -1;
};

enum class Waited { kReady, kTimeout, kInterrupted, kWoken };

class Socket {
 public:
  Socket() = default;
  /// Takes ownership of a descriptor; a negative one is none.
  explicit Socket(int descriptor) noexcept : descriptor_(descriptor) {}
  ~Socket();
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  bool open() const noexcept { return descriptor_ >= 0; }
  int descriptor() const noexcept { return descriptor_; }
  void close() noexcept;

  /// @brief Sends what the kernel takes now. @return bytes; 0 if it takes none. @throws SocketError
  std::size_t send(const iovec* pieces, std::size_t count);

  /// @brief Receives what is there now, to one place and then another. @return bytes; 0 if none.
  /// @throws SocketError, also at the end
  std::size_t receive(MutableBuffer first, MutableBuffer second);

  /// @brief Waits until something can be received if `for_read`, or sent if `for_write`.
  Waited wait(bool for_read, bool for_write, const Wake* wake, std::int64_t deadline_ns) const;

 private:
  int descriptor_ = -1;
};

/// @brief A connection being made: looks a name up, then tries its addresses.
///
/// One after the other, of both families in turn, and the next one already when one has not
/// answered in a quarter of a second: it may never do. The first that answers is taken. Source: RFC
/// 8305.
class Connecting {
 public:
  explicit Connecting(Address address);

  /// @brief Goes on until connected, a signal comes, or the slice ends.
  /// @return whether connected
  /// @throws SocketError, DeadlineError
  bool step(std::int64_t deadline_ns, std::int64_t slice_end_ns);

  /// What to wait for until it can be written to, before the next step; negative for nothing. Of a
  /// name with several addresses it is one among others: give each to a Connecting of its own.
  int descriptor() const noexcept {
    return pending_.empty() ? socket_.descriptor() : pending_.front().descriptor();
  }

  /// The socket; once step() has returned true.
  Socket take() noexcept { return std::move(socket_); }

 private:
  struct Lookup;

  bool resolve(std::int64_t deadline_ns, std::int64_t slice_end_ns);
  void interleave();
  bool try_next();
  bool open(int family, const sockaddr* address, socklen_t size);
  bool look_at(Socket& socket);
  std::string name() const;

  Address address_;
  std::shared_ptr<Lookup> lookup_;
  std::vector<const addrinfo*> left_;  // addresses to try, the next one last
  bool resolved_ = false;
  bool tried_unix_ = false;
  std::vector<Socket> pending_;  // that are being connected
  std::int64_t next_try_ns_ = 0;
  Socket socket_;  // that is connected
  int error_ = 0;  // of the last attempt that failed
};

}  // namespace triton_fast::http2
