// The blocking driver: write what can be written, read what is there, wait for either.
#include "triton_fast/http2/connection.hpp"

#include <algorithm>
#include <utility>

namespace triton_fast::http2 {
namespace {

// Large enough that one call of the kernel's empties a full socket buffer, small enough to stay in
// the processor's second-level cache on its way to the tensor.
constexpr std::size_t kReceiveBuffer = std::size_t{256} << 10;
constexpr std::size_t kMostPieces = 512;  // below IOV_MAX everywhere
// How long to sleep before signals are looked at, if none wakes us: one may come just before.
constexpr std::int64_t kSlice = 200000000;

}  // namespace

Connection::Connection(Socket socket, const std::string& authority)
    : socket_(std::move(socket)),
      session_(authority),
      buffer_(new std::uint8_t[kReceiveBuffer]),
      idle_since_(monotonic_ns()) {}

void Connection::begin_call(const CallSpec& call, MessageSink* sink, std::int64_t deadline_ns,
                            const Keepalive& keepalive) {
  const std::int64_t now = monotonic_ns();
  stream_ = session_.open(
      call, deadline_ns == kNever ? -1 : std::max<std::int64_t>(deadline_ns - now, 1), sink);
  deadline_ns_ = deadline_ns;
  sent_any_ = false;
  overruled_ = false;
  outcome_ = Outcome{};
  keepalive_ = keepalive;
  last_received_ns_ = now;
  pinged_ns_ = 0;
}

Progress Connection::run(std::int64_t busy_ns) {
  const std::int64_t slice_end = monotonic_ns() + kSlice;
  std::int64_t busy_until = 0;
  try {
    while (!stream_->done() && !overruled_) {
      if (interrupted_.exchange(false)) {
        wake_.clear();
        expire(Status::kCancelled, "the call was cancelled");
        break;
      }
      flush();
      if (session_.ended()) throw ConnectionError(session_.complaint());
      if (busy_ns > 0) {
        // Ask instead of sleeping: a sleep costs more than a small answer takes to come.
        bool came = false;
        if (busy_until == 0) busy_until = monotonic_ns() + busy_ns;
        while (!(came = receive()) && monotonic_ns() < busy_until) {
        }
        if (came) continue;
      }
      const std::int64_t now = monotonic_ns();
      if (now >= deadline_ns_) {
        expire(Status::kDeadlineExceeded, "the deadline passed");
        break;
      }
      keep_alive(now);
      if (overruled_) break;
      std::int64_t until = std::min(deadline_ns_, slice_end);
      if (keepalive_.after_ns > 0) {
        until = std::min(until, pinged_ns_ != 0 ? pinged_ns_ + keepalive_.timeout_ns
                                                : last_received_ns_ + keepalive_.after_ns);
      }
      switch (socket_.wait(session_.wants_write(), &wake_, until)) {
        case Waited::kReady:
          while (!stream_->done() && receive()) {
          }
          break;
        case Waited::kInterrupted:
          return Progress::kInterrupted;
        case Waited::kTimeout:
          if (monotonic_ns() >= slice_end && monotonic_ns() < deadline_ns_) {
            return Progress::kInterrupted;
          }
          break;
        case Waited::kWoken:
          break;
      }
    }
  } catch (const Error& error) {
    // The socket broke or the peer does not speak HTTP/2: the streams end, whatever they were at.
    broken_ = true;
    session_.end(error.what());
    if (!overruled_) {
      overruled_ = true;
      outcome_ = stream_->outcome();
      outcome_.unseen = outcome_.unseen || !sent_any_;
    }
  }
  return Progress::kDone;
}

Outcome Connection::end_call() {
  if (stream_ == nullptr) return outcome_;
  Outcome outcome = overruled_ ? std::move(outcome_) : stream_->outcome();
  session_.close(stream_);
  stream_ = nullptr;
  if (!broken_) {
    try {
      flush();  // a RST_STREAM, if there is one, and acknowledgements
    } catch (const Error&) {
      broken_ = true;  // told to the next call by usable()
    }
  }
  // What the kernel has not taken lies in the caller's memory, which is about to go.
  if (session_.borrows()) broken_ = true;
  if (broken_) socket_.close();
  idle_since_ = monotonic_ns();
  return outcome;
}

void Connection::interrupt() noexcept {
  interrupted_.store(true);
  wake_.set();
}

bool Connection::usable() noexcept {
  if (broken_ || !socket_.open()) return false;
  try {
    while (receive()) {
    }
    flush();
    interrupted_.store(false);
    wake_.clear();
    return session_.usable();
  } catch (const std::exception&) {
    broken_ = true;
    return false;
  }
}

void Connection::flush() {
  iovec pieces[kMostPieces];
  for (;;) {
    const std::size_t count = session_.gather(pieces, kMostPieces);
    if (count == 0) return;
    const std::size_t size = socket_.send(pieces, count);
    if (size == 0) return;
    sent_any_ = true;
    session_.sent(size);
  }
}

bool Connection::receive() {
  const std::size_t size = socket_.receive(buffer_.get(), kReceiveBuffer);
  if (size == 0) return false;
  session_.feed({buffer_.get(), size});
  if (keepalive_.after_ns > 0) {
    last_received_ns_ = monotonic_ns();
    if (session_.acknowledged_pings() >= pings_) pinged_ns_ = 0;
  }
  return true;
}

void Connection::expire(Status status, const char* message) {
  session_.cancel(stream_);
  overruled_ = true;
  outcome_.status = status;
  outcome_.message = message;
}

void Connection::keep_alive(std::int64_t now) {
  if (keepalive_.after_ns <= 0) return;
  if (pinged_ns_ != 0) {
    if (now - pinged_ns_ < keepalive_.timeout_ns) return;
    throw ConnectionError("the server did not answer a ping in time");
  }
  if (now - last_received_ns_ < keepalive_.after_ns) return;
  session_.ping();
  ++pings_;
  pinged_ns_ = now;
  flush();
}

}  // namespace triton_fast::http2
