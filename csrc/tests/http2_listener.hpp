// A server of the tests of http2 behind a Unix socket: accepts, and serves each connection on a
// thread of its own.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "http2_server.hpp"

namespace test {

/// Has `serve` called for every connection, which is closed when that returns.
class Listener {
 public:
  explicit Listener(std::function<void(int)> serve) : serve_(std::move(serve)) {
    char folder[] = "/tmp/triton_fast_testXXXXXX";
    CHECK(::mkdtemp(folder) != nullptr);
    folder_ = folder;
    path = folder_ + "/socket";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    descriptor_ = ::socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(::bind(descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    CHECK(::listen(descriptor_, 100) == 0);
    acceptor_ = std::thread([this] { accept(); });
  }
  ~Listener() {
    ::shutdown(descriptor_, SHUT_RDWR);  // wakes accept()
    acceptor_.join();
    for (std::thread& server : servers_) server.join();
    ::close(descriptor_);
    ::unlink(path.c_str());
    ::rmdir(folder_.c_str());
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  std::string path;
  std::atomic<std::size_t> connections{0};
  std::atomic<std::size_t> closed{0};  // of them

 private:
  void accept() {
    for (;;) {
      const int descriptor = ::accept(descriptor_, nullptr, nullptr);
      if (descriptor < 0) return;
      ++connections;
      servers_.emplace_back([this, descriptor] {
        serve_(descriptor);
        ::close(descriptor);
        ++closed;
      });
    }
  }

  const std::function<void(int)> serve_;
  std::string folder_;
  int descriptor_ = -1;
  std::thread acceptor_;
  std::vector<std::thread> servers_;  // the acceptor's until it has ended
};

/// Sends what a server has to send. Returns false if the peer is gone.
inline bool send_all(int descriptor, Server& server) {
  const std::string out = server.take();
  std::size_t at = 0;
  while (at < out.size()) {
    const ssize_t size = ::send(descriptor, out.data() + at, out.size() - at, MSG_NOSIGNAL);
    if (size < 0) return false;
    at += static_cast<std::size_t>(size);
  }
  return true;
}

/// Waits for bytes, and gives them to a server. Returns false if the peer is gone.
inline bool receive_some(int descriptor, Server& server) {
  std::vector<std::uint8_t> bytes(100000);
  const ssize_t size = ::recv(descriptor, bytes.data(), bytes.size(), 0);
  if (size <= 0) return false;
  server.feed({bytes.data(), static_cast<std::size_t>(size)});
  return true;
}

inline void wait_for(const std::atomic<std::size_t>& value, std::size_t least) {
  while (value < least) ::usleep(1000);
}

}  // namespace test
