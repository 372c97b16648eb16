// Write what the kernel takes, read some of what is there, and leave the waiting to others.
#include "triton_fast/http2/multiplexer.hpp"

#include <utility>

namespace triton_fast::http2 {
namespace {

constexpr std::size_t kMostPieces = 512;  // below IOV_MAX everywhere
// What is done before others on the loop have their turn: about a millisecond's worth.
constexpr std::size_t kMostReceived = std::size_t{1} << 20;
constexpr std::size_t kMostSent = std::size_t{1} << 20;

/// Cuts pieces to so many bytes; returns how many pieces are left.
std::size_t first(std::size_t size, iovec* pieces, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    if (pieces[i].iov_len >= size) {
      pieces[i].iov_len = size;
      return i + 1;
    }
    size -= pieces[i].iov_len;
  }
  return count;
}

}  // namespace

Multiplexer::Multiplexer(Socket socket, const std::string& authority)
    : socket_(std::move(socket)), session_(authority, Sharing::kManyCalls) {}

std::int32_t Multiplexer::open(const CallSpec& call, MessageSink* sink, std::int64_t timeout_ns) {
  if (!usable()) throw ConnectionError(session_.complaint());
  Stream* const stream = session_.open(call, timeout_ns, sink);
  try {
    calls_.emplace(stream->id(), Entry{stream, sent_});
  } catch (...) {
    session_.close(stream);
    throw;
  }
  return stream->id();
}

void Multiplexer::send(std::int32_t id, const std::vector<ConstBuffer>& segments,
                       std::uint64_t size) {
  session_.send(calls_.at(id).stream, segments, size);
}

void Multiplexer::half_close(std::int32_t id) { session_.half_close(calls_.at(id).stream); }

void Multiplexer::taken(std::int32_t id) {
  Stream* const stream = calls_.at(id).stream;
  if (!stream->done()) session_.taken(stream);
}

void Multiplexer::cancel(std::int32_t id) { session_.cancel(calls_.at(id).stream); }

bool Multiplexer::lent(std::int32_t id) const {
  const Stream& stream = *calls_.at(id).stream;
  return !broken_ && (stream.lent() || (!stream.listed() && !stream.done()));
}

Outcome Multiplexer::outcome(std::int32_t id) const {
  const Entry& entry = calls_.at(id);
  Outcome outcome = entry.stream->outcome();
  // Nothing was sent since the call began, so nothing of it.
  outcome.safe_to_retry =
      outcome.safe_to_retry || (broken_ && sent_ == entry.sent_before && !entry.stream->answered());
  return outcome;
}

void Multiplexer::close(std::int32_t id) {
  const auto found = calls_.find(id);
  if (found == calls_.end()) return;
  session_.close(found->second.stream);
  calls_.erase(found);
}

void Multiplexer::fail(const std::string& reason) {
  broken_ = true;
  session_.end(reason);
}

void Multiplexer::flush() {
  if (broken_ || inherited()) return;
  try {
    send_some();
  } catch (const Error& error) {
    // A server that answers before it has read all may close at once; the answer is here all the
    // same.
    const std::string reason = error.what();
    try {
      while (intake_.receive(socket_, session_) != 0) {
      }
    } catch (const Error&) {
      // The first error is the one to tell, unless the server has said something itself.
    }
    fail(reason);
  }
}

void Multiplexer::send_some() {
  iovec pieces[kMostPieces];
  // A kernel whose reader keeps up takes any amount at once: 16 MB in one call, over loopback.
  std::size_t left = kMostSent;
  while (left != 0) {
    const std::size_t count = first(left, pieces, session_.gather(pieces, kMostPieces));
    if (count == 0) return;
    const std::size_t size = socket_.send(pieces, count);
    if (size == 0) return;
    sent_ += size;
    left -= size;
    session_.sent(size);
  }
}

void Multiplexer::receive() {
  if (broken_ || inherited()) return;
  try {
    for (std::size_t received = 0; received < kMostReceived;) {
      const std::size_t size = intake_.receive(socket_, session_);
      if (size == 0) break;
      received += size;
    }
    if (session_.ended()) throw ConnectionError(session_.complaint());
  } catch (const Error& error) {
    const std::string reason = error.what();
    try {
      send_some();  // GOAWAY, which tells the server's log what was wrong
    } catch (const Error&) {
      // There is nobody to tell any more.
    }
    fail(reason);
    return;
  }
  flush();
}

std::uint64_t Multiplexer::ping() {
  const std::uint64_t before = session_.acknowledged_pings();
  if (!broken_) session_.ping();
  return before;
}

void dispose(Multiplexer* multiplexer) noexcept {
  if (!multiplexer->inherited()) delete multiplexer;
}

}  // namespace triton_fast::http2
