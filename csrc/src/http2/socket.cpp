// Stream sockets with deadlines. Source: connect(2), poll(2), sendmsg(2), tcp(7), unix(7).
#include "triton_fast/http2/socket.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <ctime>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "triton_fast/http2/fork.hpp"

namespace triton_fast::http2 {
namespace {

#ifdef MSG_NOSIGNAL
constexpr int kSendFlags = MSG_NOSIGNAL | MSG_DONTWAIT;
#else
constexpr int kSendFlags = MSG_DONTWAIT;
#endif

// Closed on exec from the beginning: another thread may be starting a program.
#ifdef SOCK_CLOEXEC
constexpr int kSocketType = SOCK_STREAM | SOCK_CLOEXEC;
#else
constexpr int kSocketType = SOCK_STREAM;
#endif

// How long to wait for an address before the next one is tried beside it. Source: RFC 8305, 8.
constexpr std::int64_t kAttemptDelay = 250000000;

[[noreturn]] void fail(const std::string& what, int error) {
  throw SocketError(what + ": " + std::strerror(error));
}

void set_flags(int descriptor) {
  ::fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  ::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) | O_NONBLOCK);
}

void set_option(int descriptor, int level, int name, int value) noexcept {
  // These make things faster or notice a dead peer; a kernel that knows none of them still works.
  static_cast<void>(::setsockopt(descriptor, level, name, &value, sizeof value));
}

int poll_until(pollfd* descriptors, nfds_t count, std::int64_t deadline_ns) {
  if (deadline_ns == kNever) return ::poll(descriptors, count, -1);
  const std::int64_t left = std::max<std::int64_t>(deadline_ns - monotonic_ns(), 0);
#ifdef __linux__
  timespec timeout{};
  timeout.tv_sec = static_cast<std::time_t>(left / 1000000000);
  timeout.tv_nsec = static_cast<long>(left % 1000000000);
  return ::ppoll(descriptors, count, &timeout, nullptr);
#else
  return ::poll(descriptors, count,
                static_cast<int>(std::min<std::int64_t>((left + 999999) / 1000000, 0x7fffffff)));
#endif
}

struct AddressList {
  addrinfo* first = nullptr;
  AddressList() = default;
  AddressList(const AddressList&) = delete;
  AddressList& operator=(const AddressList&) = delete;
  ~AddressList() {
    if (first != nullptr) ::freeaddrinfo(first);
  }
};

int look_up(const Address& address, int flags, AddressList& list) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  return ::getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &list.first);
}

}  // namespace

// The thread shares this with the Connecting, and outlives one that has given up.
struct Connecting::Lookup {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  int error = 0;
  AddressList list;
};

std::int64_t monotonic_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

Wake::Wake() {
  DescriptorList list;
#ifdef __linux__
  read_end_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (read_end_ < 0) fail("cannot make an eventfd", errno);
  list.add(read_end_);
  write_end_ = read_end_;
#else
  int ends[2];
  if (::pipe(ends) != 0) fail("cannot make a pipe", errno);
  list.add(ends[0]);
  list.add(ends[1]);
  read_end_ = ends[0];
  write_end_ = ends[1];
  set_flags(read_end_);
  set_flags(write_end_);
#endif
}

Wake::~Wake() {
  DescriptorList list;
  if (write_end_ != read_end_) list.close(write_end_);
  list.close(read_end_);
}

void Wake::set() noexcept {
  const std::uint64_t one = 1;
  // It can only fail because it is set so often already that it wakes anyway.
  static_cast<void>(!::write(write_end_, &one, sizeof one));
}

void Wake::clear() noexcept {
  std::uint64_t count[8];
  while (::read(read_end_, count, sizeof count) > 0) {
  }
}

Socket::~Socket() { close(); }

Socket::Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    close();
    descriptor_ = std::exchange(other.descriptor_, -1);
  }
  return *this;
}

void Socket::close() noexcept {
  if (descriptor_ >= 0) DescriptorList().close(std::exchange(descriptor_, -1));
}

Connecting::Connecting(Address address) : address_(std::move(address)) {
  if (!address_.unix_path.empty()) {
    if (address_.unix_path.size() >= sizeof(sockaddr_un::sun_path)) {
      throw SocketError("the path of a Unix socket has at most " +
                        std::to_string(sizeof(sockaddr_un::sun_path) - 1) + " bytes");
    }
    return;
  }
  lookup_ = std::make_shared<Lookup>();
  if (look_up(address_, AI_NUMERICHOST | AI_NUMERICSERV, lookup_->list) == 0) {
    lookup_->done = true;
    return;
  }
  // getaddrinfo() knows no deadline, so a name is looked up on a thread of its own.
  try {
    std::thread([lookup = lookup_, address = address_] {
      AddressList list;
      const int error = look_up(address, 0, list);
      const std::lock_guard<std::mutex> lock(lookup->mutex);
      lookup->error = error;
      std::swap(lookup->list.first, list.first);
      lookup->done = true;
      lookup->changed.notify_all();
    }).detach();
  } catch (const std::system_error& error) {
    fail("cannot start a thread to look up " + address_.host, error.code().value());
  }
}

bool Connecting::step(std::int64_t deadline_ns, std::int64_t slice_end_ns) {
  if (lookup_ != nullptr && !resolved_ && !resolve(deadline_ns, slice_end_ns)) return false;
  for (;;) {
    if (monotonic_ns() >= next_try_ns_ || pending_.empty()) {
      if (try_next()) return true;
      if (pending_.empty()) fail("cannot connect to " + name(), error_);
    }
    std::vector<pollfd> waiting;
    for (const Socket& socket : pending_) waiting.push_back({socket.descriptor(), POLLOUT, 0});
    const std::int64_t until = std::min(deadline_ns, slice_end_ns);
    const int ready = poll_until(waiting.data(), waiting.size(),
                                 left_.empty() ? until : std::min(until, next_try_ns_));
    if (ready < 0 && errno == EINTR) return false;
    if (ready < 0) fail("cannot wait for the connection", errno);
    if (ready == 0) {
      const std::int64_t now = monotonic_ns();
      if (now >= deadline_ns) throw DeadlineError("the deadline passed while connecting");
      if (now >= slice_end_ns) return false;
    }
    for (std::size_t i = waiting.size(); i-- > 0;) {
      if (waiting[i].revents == 0) continue;
      if (look_at(pending_[i])) return true;
      pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(i));
      next_try_ns_ = 0;  // at once
    }
  }
}

/// Takes a socket that is connected; false if it could not be.
bool Connecting::look_at(Socket& socket) {
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(socket.descriptor(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
  if (error != 0) {
    error_ = error;
    return false;
  }
  socket_ = std::move(socket);
  pending_.clear();
  return true;
}

bool Connecting::resolve(std::int64_t deadline_ns, std::int64_t slice_end_ns) {
  std::unique_lock<std::mutex> lock(lookup_->mutex);
  while (!lookup_->done) {
    const std::int64_t now = monotonic_ns();
    if (now >= deadline_ns) {
      throw DeadlineError("the deadline passed while looking up " + address_.host);
    }
    if (now >= slice_end_ns) return false;
    lookup_->changed.wait_for(lock,
                              std::chrono::nanoseconds(std::min(deadline_ns, slice_end_ns) - now));
  }
  if (lookup_->error != 0) {
    throw SocketError("cannot look up " + address_.host + ": " + ::gai_strerror(lookup_->error));
  }
  interleave();
  resolved_ = true;
  return true;
}

/// Puts the addresses in the order in which they are tried: of the families in turn, beginning with
/// that of the first. A whole family may lead nowhere.
void Connecting::interleave() {
  std::vector<const addrinfo*> first;
  std::vector<const addrinfo*> others;
  for (const addrinfo* one = lookup_->list.first; one != nullptr; one = one->ai_next) {
    (one->ai_family == lookup_->list.first->ai_family ? first : others).push_back(one);
  }
  for (std::size_t i = 0; i < std::max(first.size(), others.size()); ++i) {
    if (i < first.size()) left_.push_back(first[i]);
    if (i < others.size()) left_.push_back(others[i]);
  }
  std::reverse(left_.begin(), left_.end());
}

/// Begins with the next address. Returns true if it is connected already.
bool Connecting::try_next() {
  next_try_ns_ = monotonic_ns() + kAttemptDelay;
  if (lookup_ == nullptr) {
    if (std::exchange(tried_unix_, true)) return false;
    sockaddr_un local{};
    local.sun_family = AF_UNIX;
    std::memcpy(local.sun_path, address_.unix_path.data(), address_.unix_path.size());
    return open(AF_UNIX, reinterpret_cast<const sockaddr*>(&local), sizeof local);
  }
  while (!left_.empty()) {
    const addrinfo* const found = left_.back();
    left_.pop_back();
    const std::size_t before = pending_.size();
    if (open(found->ai_family, found->ai_addr, found->ai_addrlen)) return true;
    if (pending_.size() > before) return false;
  }
  return false;
}

/// Begins to connect to an address. Returns true if it is connected already.
bool Connecting::open(int family, const sockaddr* address, socklen_t size) {
  int descriptor = -1;
  {
    DescriptorList list;
    descriptor = ::socket(family, kSocketType, 0);
    if (descriptor < 0) {
      error_ = errno;
      return false;
    }
    list.add(descriptor);
  }
  Socket socket(descriptor);
  set_flags(descriptor);
  if (family != AF_UNIX) {
    set_option(descriptor, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(descriptor, SOL_SOCKET, SO_KEEPALIVE, 1);
#ifdef TCP_KEEPIDLE
    set_option(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, 60);
    set_option(descriptor, IPPROTO_TCP, TCP_KEEPINTVL, 15);
    set_option(descriptor, IPPROTO_TCP, TCP_KEEPCNT, 4);
#endif
  }
#ifdef SO_NOSIGPIPE
  set_option(descriptor, SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
  if (::connect(descriptor, address, size) == 0) {
    socket_ = std::move(socket);
    pending_.clear();
    return true;
  }
  // EAGAIN: the backlog of a Unix socket is full, which is no connection in progress.
  if (errno == EINPROGRESS || errno == EINTR) {
    pending_.push_back(std::move(socket));
  } else {
    error_ = errno;
  }
  return false;
}

std::string Connecting::name() const {
  return address_.unix_path.empty() ? address_.host + ":" + address_.port : address_.unix_path;
}

std::size_t Socket::send(const iovec* pieces, std::size_t count) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces);
  message.msg_iovlen = count;
  for (;;) {
    const ssize_t size = ::sendmsg(descriptor_, &message, kSendFlags);
    if (size >= 0) return static_cast<std::size_t>(size);
    if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
    if (errno != EINTR) fail("the connection broke while sending", errno);
  }
}

std::size_t Socket::receive(MutableBuffer first, MutableBuffer second) {
  iovec places[2] = {{first.data, first.size}, {second.data, second.size}};
  msghdr message{};
  message.msg_iov = first.size == 0 ? places + 1 : places;
  message.msg_iovlen = first.size == 0 || second.size == 0 ? 1 : 2;
  for (;;) {
    const ssize_t received = ::recvmsg(descriptor_, &message, MSG_DONTWAIT);
    if (received > 0) return static_cast<std::size_t>(received);
    if (received == 0) throw SocketError("the server closed the connection");
    if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
    if (errno != EINTR) fail("the connection broke while receiving", errno);
  }
}

Waited Socket::wait(bool for_read, bool for_write, const Wake* wake,
                    std::int64_t deadline_ns) const {
  const int events = (for_read ? POLLIN : 0) | (for_write ? POLLOUT : 0);
  pollfd waiting[2] = {
      {descriptor_, static_cast<short>(events), 0},
      {wake == nullptr ? -1 : wake->descriptor(), POLLIN, 0},
  };
  const int ready = poll_until(waiting, wake == nullptr ? 1 : 2, deadline_ns);
  if (ready < 0) {
    if (errno == EINTR) return Waited::kInterrupted;
    fail("cannot wait for the connection", errno);
  }
  if (ready == 0) return Waited::kTimeout;
  if (waiting[1].revents != 0) return Waited::kWoken;
  return Waited::kReady;
}

}  // namespace triton_fast::http2
