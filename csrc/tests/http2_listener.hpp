// A server of the tests of http2 behind a Unix socket: accepts, and serves each connection on a
// thread of its own. Ends all of them with itself, whatever they are at.
#pragma once

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "http2_server.hpp"
#include "thread.hpp"

namespace test {

/// Has `serve` called for every connection, which is closed when that returns.
class Listener {
 public:
  explicit Listener(std::function<void(int)> serve) : serve_(std::move(serve)) {
    char folder[] = "/tmp/triton_fast_testXXXXXX";
    REQUIRE(::mkdtemp(folder) != nullptr);
    folder_ = folder;
    path = folder_ + "/socket";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    descriptor_ = ::socket(AF_UNIX, SOCK_STREAM, 0);
    REQUIRE(::bind(descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(descriptor_, 100) == 0);
    REQUIRE(::pipe(ending_) == 0);
    acceptor_ = std::make_unique<Thread>([this] { accept(); });
  }
  ~Listener() {
    ::close(ending_[1]);  // wakes accept()
    acceptor_.reset();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const int descriptor : open_) ::shutdown(descriptor, SHUT_RDWR);
    }
    servers_.clear();
    ::close(ending_[0]);
    ::close(descriptor_);
    ::unlink(path.c_str());
    ::rmdir(folder_.c_str());
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  std::string path;
  Counter connections;
  Counter closed;  // of them

 private:
  void accept() {
    for (;;) {
      pollfd waiting[2] = {{descriptor_, POLLIN, 0}, {ending_[0], POLLIN, 0}};
      if (::poll(waiting, 2, -1) < 0) continue;
      if (waiting[1].revents != 0) return;
      const int descriptor = ::accept(descriptor_, nullptr, nullptr);
      if (descriptor < 0) continue;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        open_.insert(descriptor);
      }
      ++connections;
      servers_.push_back(std::make_unique<Thread>([this, descriptor] {
        const Closing closing{*this, descriptor};
        serve_(descriptor);
      }));
    }
  }

  /// Whatever is thrown: the client may be waiting for an answer.
  struct Closing {
    Listener& listener;
    const int descriptor;
    ~Closing() {
      {
        const std::lock_guard<std::mutex> lock(listener.mutex_);
        listener.open_.erase(descriptor);
        ::close(descriptor);
      }
      ++listener.closed;
    }
  };

  const std::function<void(int)> serve_;
  std::string folder_;
  int descriptor_ = -1;
  int ending_[2] = {-1, -1};
  std::mutex mutex_;
  std::set<int> open_;
  std::vector<std::unique_ptr<Thread>> servers_;  // the acceptor's until it has ended
  std::unique_ptr<Thread> acceptor_;
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

}  // namespace test
