// The blocking driver: write what can be written, read what is there, wait for either.
#include "triton_fast/http2/connection.hpp"

#include <algorithm>
#include <utility>

namespace triton_fast::http2 {
namespace {

constexpr std::size_t kMostPieces = 512;  // below IOV_MAX everywhere
// What is done before the clock is looked at again, however much the peer sends or takes.
constexpr int kMostReceives = 16;
constexpr int kMostSends = 16;
// How often an idle connection may have something, of an answer that was given up say.
constexpr int kMostLeftovers = 8;
// What a server may send during a call that it does not answer.
constexpr std::uint64_t kNoise = std::uint64_t{64} << 10;
// How long to ask for the rest of a tensor before sleeping until it comes: 4 MiB are here a
// twentieth sooner, for a tenth more of this processor (2026-11).
constexpr std::int64_t kAmid = 50000;
// How long to sleep before signals are looked at, if none wakes us: one may come just before.
constexpr std::int64_t kSlice = 200000000;

/// Waits a few microseconds without sleeping: asking more often would hold the kernel up.
void relax() noexcept {
  for (int i = 0; i < 100; ++i) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

}  // namespace

Connection::Connection(Socket socket, const std::string& authority)
    : socket_(std::move(socket)), session_(authority), idle_since_(monotonic_ns()) {}

void Connection::begin_call(const CallSpec& call, MessageSink* sink, std::int64_t deadline_ns,
                            const Keepalive& keepalive) {
  const std::int64_t now = monotonic_ns();
  stream_ = session_.open(
      call, deadline_ns == kNever ? -1 : std::max<std::int64_t>(deadline_ns - now, 1), sink);
  sink_ = sink;
  deadline_ns_ = deadline_ns;
  sent_any_ = false;
  received_before_ = session_.received();
  overruled_ = false;
  outcome_ = Outcome{};
  keepalive_ = keepalive;
  last_received_ns_ = left_ns_ = now;
  pinged_ns_ = 0;
}

void Connection::send(const std::vector<ConstBuffer>& segments, std::uint64_t size) {
  session_.send(stream_, segments, size);
}

void Connection::half_close() { session_.half_close(stream_); }

bool Connection::satisfied(const Wants& wants) const noexcept {
  return (wants.message && sink_->ready()) || (wants.sent && sent());
}

Progress Connection::run(std::int64_t busy_ns, const Wants& wants) {
  const std::int64_t begin = monotonic_ns();
  // The server need not answer while nobody listens: not to a ping, either.
  last_received_ns_ += begin - left_ns_;
  if (pinged_ns_ != 0) pinged_ns_ += begin - left_ns_;
  const Progress progress = go_on(busy_ns, wants, std::min(begin + kSlice, wants.until_ns));
  left_ns_ = monotonic_ns();
  return progress;
}

Progress Connection::go_on(std::int64_t busy_ns, const Wants& wants, std::int64_t slice_end) {
  std::int64_t busy_until = 0;
  try {
    while (!done()) {
      if (interrupted_.exchange(false)) {
        wake_.clear();
        overrule(Status::kCancelled, "the call was cancelled");
        break;
      }
      send_some();
      if (stream_->done() || satisfied(wants)) break;
      if (nudged_.exchange(false)) {
        wake_.clear();
        return Progress::kInterrupted;
      }
      if (session_.ended()) throw ConnectionError(session_.complaint());
      // Before anything is read: the server may never stop.
      std::int64_t now = monotonic_ns();
      if (now >= deadline_ns_) {
        expire();
        break;
      }
      bool came = false;
      const bool full = sink_->full();
      if (busy_ns > 0 && !full && !session_.wants_write()) {
        // Ask instead of sleeping: a sleep costs more than a small answer takes to come.
        if (busy_until == 0) busy_until = now + busy_ns;
        while (!(came = receive()) && monotonic_ns() < busy_until) {
        }
        if (stream_->done() || satisfied(wants)) break;
        now = monotonic_ns();
      }
      if (!came && !full && session_.landing().size != 0) {
        // In the middle of a tensor, whose rest is on its way: sleeping costs both sides more.
        const std::int64_t until = std::min(now + kAmid, deadline_ns_);
        while (!(came = receive()) && monotonic_ns() < until) {
          relax();
        }
        if (stream_->done() || satisfied(wants)) break;
      }
      if (now >= slice_end) return Progress::kInterrupted;
      keep_alive(now, full);
      if (came) continue;
      std::int64_t until = std::min(deadline_ns_, slice_end);
      if (keepalive_.after_ns > 0) {
        until = std::min(until, pinged_ns_ != 0 ? pinged_ns_ + keepalive_.timeout_ns
                                                : last_received_ns_ + keepalive_.after_ns);
      }
      const bool writes = session_.wants_write();
      switch (socket_.wait(!full, writes, &wake_, until)) {
        case Waited::kReady:
          // Neither was asked for: the server has hung up, and what it has sent says more of it.
          if (full && !writes) receive();
          receive_some(wants);
          break;
        case Waited::kInterrupted:
          return Progress::kInterrupted;
        case Waited::kTimeout:
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
      outcome_.safe_to_retry = outcome_.safe_to_retry || (!sent_any_ && !stream_->answered());
    }
    say_goodbye();
  } catch (...) {
    broken_ = true;  // nghttp2 does not go on once it was out of memory
    throw;
  }
  return Progress::kDone;
}

Outcome Connection::end_call() {
  if (stream_ == nullptr) return outcome_;
  Outcome outcome = overruled_ ? std::move(outcome_) : stream_->outcome();
  if (!overruled_ && outcome.status == Status::kCancelled && outcome.exception == nullptr &&
      monotonic_ns() >= deadline_ns_) {
    // The server keeps to the deadline too, and a moment ago its word came first.
    outcome.status = Status::kDeadlineExceeded;
    outcome.message = "the deadline passed, and the server gave up: " + outcome.message;
  }
  const bool given_up = overruled_ || !done();
  if (!done()) {
    outcome.status = Status::kCancelled;
    outcome.message = "the call was cancelled";
  }
  // What is still coming of an answer that was given up would be in the way of the next one; also
  // of one that we have refused, for its headers have no end.
  const bool much = session_.received() - received_before_ > kNoise;
  const bool noisy = (given_up && (stream_->answered() || much)) ||
                     (outcome.status == Status::kResourceExhausted && much);
  // Nothing at all came before the deadline: the model is slow, or nothing will ever come here, as
  // a router may have forgotten the connection. A new one costs less than to find out.
  const bool silent =
      outcome.status == Status::kDeadlineExceeded && session_.received() == received_before_;
  session_.close(stream_);
  stream_ = nullptr;
  if (!broken_) {
    try {
      flush();  // a RST_STREAM, if there is one, and acknowledgements
    } catch (const std::exception&) {
      broken_ = true;  // told to the next call by usable()
    }
  }
  // What the kernel has not taken lies in the caller's memory, which is about to go.
  if (session_.borrows() || noisy || silent) broken_ = true;
  if (broken_) socket_.close();
  idle_since_ = monotonic_ns();
  return outcome;
}

void Connection::interrupt() noexcept {
  interrupted_.store(true);
  wake_.set();
}

void Connection::nudge() noexcept {
  nudged_.store(true);
  wake_.set();
}

bool Connection::usable() noexcept {
  if (broken_ || !socket_.open()) return false;
  try {
    for (int i = 0; receive(); ++i) {
      if (i == kMostLeftovers) throw ConnectionError("the server sends, and was not asked to");
    }
    flush();
    interrupted_.store(false);
    nudged_.store(false);
    wake_.clear();
    return session_.usable();
  } catch (const std::exception&) {
    broken_ = true;
    return false;
  }
}

void Connection::flush() {
  iovec pieces[kMostPieces];
  for (int i = 0; i < kMostSends; ++i) {
    const std::size_t count = session_.gather(pieces, kMostPieces);
    if (count == 0) return;
    const std::size_t size = socket_.send(pieces, count);
    if (size == 0) return;
    sent_any_ = true;
    session_.sent(size);
  }
}

void Connection::send_some() {
  try {
    flush();
  } catch (const SocketError&) {
    // A server that answers before it has read all may close at once; the answer is here all the
    // same.
    try {
      while (!stream_->done() && receive()) {
      }
    } catch (const Error&) {
      // The first error is the one to tell, unless the server has said something itself.
    }
    if (!stream_->done()) throw;
  }
}

void Connection::say_goodbye() noexcept {
  try {
    flush();  // GOAWAY, which tells the server's log what was wrong
  } catch (const std::exception&) {
    // There is nobody to tell any more.
  }
}

void Connection::receive_some(const Wants& wants) {
  for (int i = 0;
       i < kMostReceives && !stream_->done() && !satisfied(wants) && !sink_->full() && receive();
       ++i) {
  }
}

bool Connection::receive() {
  if (intake_.receive(socket_, session_) == 0) return false;
  if (keepalive_.after_ns > 0) last_received_ns_ = monotonic_ns();
  if (session_.acknowledged_pings() >= pings_) pinged_ns_ = 0;
  return true;
}

void Connection::expire() {
  const char* const phase = !stream_->listed() || session_.borrows()
                                ? "while the request was being sent"
                            : stream_->answered() ? "while the answer was arriving"
                                                  : "before the server answered";
  overrule(Status::kDeadlineExceeded, std::string("the deadline passed ") + phase);
}

void Connection::overrule(Status status, std::string message) {
  session_.cancel(stream_);
  overruled_ = true;
  outcome_.status = status;
  outcome_.message = std::move(message);
}

void Connection::keep_alive(std::int64_t now, bool full) {
  if (keepalive_.after_ns <= 0) return;
  if (full) {  // nobody listens
    last_received_ns_ = now;
    if (pinged_ns_ != 0) pinged_ns_ = now;
    return;
  }
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
