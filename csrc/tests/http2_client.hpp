// The client's side of the tests of http2: calls, sinks that keep what they are told, and the way
// of bytes between a session and a server.
#pragma once

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "http2_server.hpp"
#include "thread.hpp"
#include "triton_fast/http2/session.hpp"

namespace test {

constexpr std::int64_t kMillisecond = 1000000;

inline triton_fast::ConstBuffer buffer(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

inline std::string text_of(std::size_t size, unsigned seed) {
  std::minstd_rand random(seed + 1);
  std::string text(size, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

/// Keeps the one message of an answer.
struct Sink final : triton_fast::http2::MessageSink {
  void begin(std::uint64_t size) override {
    ++begun;
    announced = size;
    message.clear();
    if (throw_in_begin) throw std::runtime_error("no, thank you");
  }
  void feed(triton_fast::ConstBuffer piece) override {
    message.append(reinterpret_cast<const char*>(piece.data), piece.size);
  }
  void finish() override { ++finished; }

  bool throw_in_begin = false;
  int begun = 0;
  int finished = 0;
  std::uint64_t announced = 0;
  std::string message;
};

/// Borrows the message.
inline triton_fast::http2::CallSpec call_of(std::string_view message) {
  triton_fast::http2::CallSpec call;
  call.path = "/a.B/C";
  call.segments = {buffer(message)};
  call.message_size = message.size();
  return call;
}

/// A call whose messages are sent one by one.
inline triton_fast::http2::CallSpec stream_call() {
  triton_fast::http2::CallSpec call;
  call.path = "/a.B/Stream";
  call.streaming = true;
  return call;
}

/// Gives a server, and only it, what a session has to send: all, or `most` bytes. Returns how much.
inline std::size_t send_to(Server& server, triton_fast::http2::Session& session,
                           std::size_t most = SIZE_MAX) {
  std::size_t total = 0;
  iovec pieces[16];
  while (total < most) {
    const std::size_t count = session.gather(pieces, 16);
    if (count == 0) break;
    std::string sent;
    for (std::size_t i = 0; i < count && sent.size() < most - total; ++i) {
      sent.append(static_cast<const char*>(pieces[i].iov_base),
                  std::min(pieces[i].iov_len, most - total - sent.size()));
    }
    session.sent(sent.size());
    server.feed(buffer(sent));
    total += sent.size();
  }
  return total;
}

/// Moves bytes both ways until neither side has any. `piece` is what goes at a time, 0 for all.
inline void exchange(triton_fast::http2::Session& session, Server& server, std::size_t piece = 0) {
  for (bool moved = true; moved;) {
    moved = false;
    while (send_to(server, session, piece == 0 ? SIZE_MAX : piece) != 0) moved = true;
    const std::string back = server.take();
    for (std::size_t at = 0; at < back.size();) {
      const std::size_t size = std::min(piece == 0 ? back.size() : piece, back.size() - at);
      const std::string part = back.substr(at, size);
      session.feed(buffer(part));
      at += size;
      moved = true;
    }
  }
}

/// Two sockets that are connected to each other. The first is whoever's takes it; the second waits
/// no longer than a test may.
struct Pair {
  explicit Pair(int family = AF_UNIX) {
    if (family == AF_UNIX) {
      REQUIRE(::socketpair(family, SOCK_STREAM, 0, ends) == 0);
    } else {
      connect_over_tcp();
    }
    timeval longest{};
    longest.tv_sec = kPatience.count();
    for (const int what : {SO_RCVTIMEO, SO_SNDTIMEO}) {
      REQUIRE(::setsockopt(ends[1], SOL_SOCKET, what, &longest, sizeof longest) == 0);
    }
  }
  ~Pair() { hang_up(); }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

  void hang_up() {
    if (ends[1] >= 0) ::close(ends[1]);
    ends[1] = -1;
  }

  /// Has whoever waits at the second end come back. Any thread.
  void wake() { ::shutdown(ends[1], SHUT_RDWR); }

  int ends[2];

 private:
  void connect_over_tcp() {
    const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    REQUIRE(::bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0);
    REQUIRE(::listen(listener, 1) == 0);
    REQUIRE(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    ends[0] = ::socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(::connect(ends[0], reinterpret_cast<sockaddr*>(&address), size) == 0);
    ends[1] = ::accept(listener, nullptr, nullptr);
    REQUIRE(ends[1] >= 0);
    ::close(listener);
  }
};

}  // namespace test
