// Connecting: names with several addresses, of which some lead nowhere.
#include <arpa/inet.h>
#include <dlfcn.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "triton_fast/http2/socket.hpp"

// In place of the C library's: "127.0.0.2+127.0.0.1" is a name with these two addresses.
extern "C" int getaddrinfo(const char* node, const char* service, const addrinfo* hints,
                           addrinfo** found) {
  static const auto real =
      reinterpret_cast<decltype(&getaddrinfo)>(dlsym(RTLD_NEXT, "getaddrinfo"));
  const std::string name = node == nullptr ? "" : node;
  if (name.find('+') == std::string::npos) return real(node, service, hints, found);
  if (hints->ai_flags & AI_NUMERICHOST) return EAI_NONAME;
  addrinfo** end = found;
  for (std::size_t at = 0; at != std::string::npos;) {
    const std::size_t next = name.find('+', at);
    const std::string one = name.substr(at, next == std::string::npos ? next : next - at);
    const int error = real(one.c_str(), service, hints, end);
    if (error != 0) return error;
    end = &(*end)->ai_next;
    at = next == std::string::npos ? next : next + 1;
  }
  return 0;
}

namespace {

using namespace triton_fast::http2;

constexpr std::int64_t kSecond = 1000000000;

/// A server at one of this machine's addresses, on a port that others of them may share.
class Listener {
 public:
  explicit Listener(const char* address, int port = 0)
      : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    REQUIRE(socket_ >= 0);
    sockaddr_in place{};
    place.sin_family = AF_INET;
    place.sin_port = htons(static_cast<std::uint16_t>(port));
    ::inet_pton(AF_INET, address, &place.sin_addr);
    REQUIRE(::bind(socket_, reinterpret_cast<sockaddr*>(&place), sizeof place) == 0);
    REQUIRE(::listen(socket_, 0) == 0);
    socklen_t size = sizeof place_;
    REQUIRE(::getsockname(socket_, reinterpret_cast<sockaddr*>(&place_), &size) == 0);
  }
  ~Listener() {
    for (const int one : clients_) ::close(one);
    ::close(socket_);
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  int port() const { return ntohs(place_.sin_port); }

  /// Has it answer nobody any more: as many have come as it takes, and none is let in.
  void clog() {
    for (int i = 0; i < 8; ++i) {
      clients_.push_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
      static_cast<void>(
          ::connect(clients_.back(), reinterpret_cast<const sockaddr*>(&place_), sizeof place_));
    }
  }

 private:
  int socket_;
  sockaddr_in place_{};
  std::vector<int> clients_;
};

/// Connects; returns the address that was reached.
std::string reach(const std::string& name, int port, std::int64_t within_ns = 20 * kSecond) {
  Connecting connecting({name, std::to_string(port), ""});
  const std::int64_t deadline = monotonic_ns() + within_ns;
  while (!connecting.step(deadline, monotonic_ns() + kSecond / 10)) {
  }
  const Socket socket = connecting.take();
  sockaddr_in peer{};
  socklen_t size = sizeof peer;
  REQUIRE(::getpeername(socket.descriptor(), reinterpret_cast<sockaddr*>(&peer), &size) == 0);
  char text[INET_ADDRSTRLEN];
  return ::inet_ntop(AF_INET, &peer.sin_addr, text, sizeof text);
}

}  // namespace

TEST_CASE("connecting does not wait for an address that does not answer") {
  const Listener live("127.0.0.1");
  Listener dead("127.0.0.2", live.port());
  dead.clog();
  const std::int64_t before = monotonic_ns();
  CHECK(reach("127.0.0.2+127.0.0.1", live.port()) == "127.0.0.1");
  CHECK(monotonic_ns() - before >= kSecond / 5);  // the first had its time
}

TEST_CASE("connecting goes on at once where an address refuses") {
  const Listener live("127.0.0.1");
  CHECK(reach("127.0.0.2+127.0.0.3+127.0.0.1", live.port()) == "127.0.0.1");
}

TEST_CASE("connecting takes the first address that answers") {
  const Listener first("127.0.0.2");
  const Listener other("127.0.0.1", first.port());
  CHECK(reach("127.0.0.2+127.0.0.1", first.port()) == "127.0.0.2");
}

TEST_CASE("connecting says that no address can be reached") {
  int port = 0;
  {
    const Listener gone("127.0.0.1");
    port = gone.port();
  }
  CHECK_THROWS_WITH_AS(reach("127.0.0.2+127.0.0.1", port), doctest::Contains("Connection refused"),
                       SocketError);
}

TEST_CASE("connecting keeps to its deadline where nobody answers") {
  Listener one("127.0.0.1");
  Listener other("127.0.0.2", one.port());
  one.clog();
  other.clog();
  CHECK_THROWS_AS(reach("127.0.0.2+127.0.0.1", one.port(), kSecond), DeadlineError);
}
