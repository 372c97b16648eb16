// gRPC's framing on top of nghttp2. The callbacks run inside feed() and gather(); no exception may
// leave them, for nghttp2 is C.
#include "triton_fast/http2/session.hpp"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "triton_fast/http2/nghttp2_compat.hpp"

namespace triton_fast::http2 {
namespace {

// A peer that speaks HTTP/2 begins with SETTINGS. One that has something else there hangs up.
constexpr char kSaidNothing[] =
    ", and said nothing before (check that the server runs, that this is its gRPC port, 8001 "
    "unless set otherwise, and not the one for HTTP, and whether it expects TLS: "
    "Client(tls=...))";

constexpr std::uint32_t kLargestWindow = 0x7fffffff;
constexpr std::uint32_t kLargestFrame = 0xffffff;
// The longest header that nghttp2 takes, as it is sent.
constexpr std::uint32_t kLongestHeader = std::uint32_t{64} << 10;
// What a stream among others may have sent that nobody has read.
constexpr std::uint32_t kSharedWindow = std::uint32_t{1} << 20;
// Pieces that are queued before the peer has taken some; keeps the list short on large payloads.
constexpr std::size_t kMostQueued = 1024;
constexpr std::size_t kBodyExcerpt = 200;
constexpr std::string_view kGrpc = "application/grpc";
constexpr const char* kManyHeaders = "the server sends more than 128 KiB of headers";

nghttp2_nv field(std::string_view name, std::string_view value, bool secret = false) {
  nghttp2_nv nv{};
  // nghttp2 copies both; it only forgot to say so in the type.
  nv.name = reinterpret_cast<std::uint8_t*>(const_cast<char*>(name.data()));
  nv.value = reinterpret_cast<std::uint8_t*>(const_cast<char*>(value.data()));
  nv.namelen = name.size();
  nv.valuelen = value.size();
  nv.flags = secret ? NGHTTP2_NV_FLAG_NO_INDEX : NGHTTP2_NV_FLAG_NONE;
  return nv;
}

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text) out.push_back(c >= 0x20 && c < 0x7f ? c : '.');
  return out;
}

bool is_grpc(std::string_view content_type) {
  return content_type.substr(0, kGrpc.size()) == kGrpc &&
         (content_type.size() == kGrpc.size() || content_type[kGrpc.size()] == '+' ||
          content_type[kGrpc.size()] == ';');
}

std::string fault_text(std::string_view fault) {
  return "the server does not keep to HTTP/2: " + printable(fault);
}

}  // namespace

/// Runs what a callback does; an exception waits until nghttp2 has returned.
template <typename Body>
int Session::guard(const Body& body) noexcept {
  try {
    return body();
  } catch (...) {
    failure_ = std::current_exception();
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  }
}

struct Session::Callbacks {
  static Session& self(void* user_data) { return *static_cast<Session*>(user_data); }

  // Streams are looked up by their number each time: nghttp2 may ask for one that was closed.

  // Reads nothing: says how much of the message the next frame takes, and send_data() lists it.
  static nghttp2_ssize read(nghttp2_session*, std::int32_t id, std::uint8_t*, std::size_t length,
                            std::uint32_t* flags, nghttp2_data_source*, void* user_data) {
    const Stream* const stream = self(user_data).find(id);
    if (stream == nullptr) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    // What is left of a call that is over is not to be read: its memory may have gone.
    if (stream->done_ || (stream->left_ == 0 && !stream->half_closed_)) return NGHTTP2_ERR_DEFERRED;
    const std::uint64_t size = std::min<std::uint64_t>(length, stream->left_);
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (stream->left_ == size && stream->half_closed_) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return static_cast<nghttp2_ssize>(size);
  }

  // No more than there is: nghttp2 takes as much memory, though it never writes to it.
  static nghttp2_ssize frame_size(nghttp2_session*, std::uint8_t, std::int32_t id,
                                  std::int32_t session_window, std::int32_t stream_window,
                                  std::uint32_t most, void* user_data) {
    const Stream* const stream = self(user_data).find(id);
    const auto left = static_cast<std::int64_t>(
        stream == nullptr ? 1 : std::max<std::uint64_t>(stream->left_, 1));
    return std::min<std::int64_t>({session_window, stream_window, most, left});
  }

  static int send_data(nghttp2_session*, nghttp2_frame* frame, const std::uint8_t* head,
                       std::size_t length, nghttp2_data_source*, void* user_data) {
    Session& session = self(user_data);
    Stream* const stream = session.find(frame->hd.stream_id);
    if (stream == nullptr) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    return session.guard([&] {
      session.push_owned(head, 9);
      while (length != 0) {
        const ConstBuffer& piece = stream->pieces_[stream->piece_];
        const std::size_t size = std::min(length, piece.size - stream->offset_);
        session.queue_.push_back({piece.data + stream->offset_, size, stream->id_});
        ++session.borrowed_;
        ++stream->lent_;
        length -= size;
        stream->left_ -= size;
        stream->offset_ += size;
        if (stream->offset_ == piece.size) {
          ++stream->piece_;
          stream->offset_ = 0;
        }
      }
      // nghttp2 would go on for as long as there is a window.
      return session.queue_.size() < kMostQueued ? 0 : NGHTTP2_ERR_PAUSE;
    });
  }

  static int begin_frame(nghttp2_session*, const nghttp2_frame_hd* head, void* user_data) {
    if (head->type == NGHTTP2_HEADERS) {
      self(user_data).in_long_block_ =
          head->length > kLongestHeader || (head->flags & NGHTTP2_FLAG_END_HEADERS) == 0;
    }
    return 0;
  }

  static int header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name,
                    std::size_t name_size, const std::uint8_t* value, std::size_t value_size,
                    std::uint8_t, void* user_data) {
    Session& session = self(user_data);
    Stream* const stream = session.find(frame->hd.stream_id);
    if (stream == nullptr) return 0;
    return session.guard([&] {
      session.on_header(*stream, {reinterpret_cast<const char*>(name), name_size},
                        {reinterpret_cast<const char*>(value), value_size},
                        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0);
      return 0;
    });
  }

  // RFC 9113 wants no blanks at either end of a value, and servers put error texts in grpc-message
  // that have them. Other malformed fields are left out, as nghttp2 does by itself.
  static int invalid_header(nghttp2_session* session, const nghttp2_frame* frame,
                            const std::uint8_t* name, std::size_t name_size,
                            const std::uint8_t* value, std::size_t value_size, std::uint8_t flags,
                            void* user_data) {
    constexpr std::string_view kMessage = "grpc-message";
    if (std::string_view(reinterpret_cast<const char*>(name), name_size) != kMessage) return 0;
    return header(session, frame, name, name_size, value, value_size, flags, user_data);
  }

  static int data(nghttp2_session*, std::uint8_t, std::int32_t id, const std::uint8_t* data,
                  std::size_t size, void* user_data) {
    Session& session = self(user_data);
    Stream* const stream = session.find(id);
    const bool many = session.sharing_ == Sharing::kManyCalls;
    // The connection's window is for all, and never what holds one of them up.
    if (many && nghttp2_session_consume_connection(session.session_, size) != 0) {
      return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    if (stream == nullptr || stream->done_) return 0;
    try {
      session.on_data(*stream, data, size);
      if (many) session.read(*stream, size);
    } catch (...) {
      stream->outcome_.exception = std::current_exception();
      session.cancel(stream);
    }
    return 0;
  }

  static int frame(nghttp2_session*, const nghttp2_frame* frame, void* user_data) {
    Session& session = self(user_data);
    Stream* const stream = session.find(frame->hd.stream_id);
    switch (frame->hd.type) {
      case NGHTTP2_GOAWAY:
        return session.guard([&] {
          const auto* text = reinterpret_cast<const char*>(frame->goaway.opaque_data);
          session.on_goaway(frame->goaway.last_stream_id,
                            {text == nullptr ? "" : text,
                             std::min<std::size_t>(frame->goaway.opaque_data_len, kBodyExcerpt)});
          return 0;
        });
      case NGHTTP2_SETTINGS:
        session.settled_ = true;  // an acknowledgement comes after the peer's own
        break;
      case NGHTTP2_PING:
        if ((frame->hd.flags & NGHTTP2_FLAG_ACK) != 0) ++session.acknowledged_pings_;
        break;
      case NGHTTP2_RST_STREAM:
        if (stream != nullptr) stream->reset_by_peer_ = true;
        break;
      case NGHTTP2_HEADERS:
      case NGHTTP2_DATA:
        // The answer is complete, whether or not all of the request was wanted.
        if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
          return close(nullptr, frame->hd.stream_id, NGHTTP2_NO_ERROR, user_data);
        break;
      default:
        break;
    }
    return 0;
  }

  // nghttp2 will reset the stream, and the call need not wait until that is sent. Other faults end
  // the connection, or come to close().
  static int invalid_frame(nghttp2_session*, const nghttp2_frame* frame, int error,
                           void* user_data) {
    if (error != NGHTTP2_ERR_HTTP_HEADER && error != NGHTTP2_ERR_HTTP_MESSAGING) return 0;
    Session& session = self(user_data);
    Stream* const stream = frame == nullptr ? nullptr : session.find(frame->hd.stream_id);
    if (stream == nullptr || stream->done_) return 0;
    return session.guard([&] {
      session.fail(
          *stream, Status::kInternal,
          fault_text(session.complaint_.empty() ? nghttp2_strerror(error) : session.complaint_));
      return 0;
    });
  }

  // Of what fails so, two things matter: our own HEADERS, and the reset of a stream whose headers
  // nghttp2 cannot decode. That is never sent, because it gives up the connection as well.
  static int not_sent(nghttp2_session*, const nghttp2_frame* frame, int error, void* user_data) {
    Session& session = self(user_data);
    return session.guard([&] {
      Stream* const stream = session.find(frame->hd.stream_id);
      if (stream == nullptr || stream->done_) return 0;
      if (frame->hd.type == NGHTTP2_HEADERS &&
          (error == NGHTTP2_ERR_FRAME_SIZE_ERROR || error == NGHTTP2_ERR_HEADER_COMP)) {
        session.fail(*stream, Status::kResourceExhausted,
                     "the request's headers are more than 64 KiB");
      } else if (frame->hd.type == NGHTTP2_RST_STREAM &&
                 frame->rst_stream.error_code == NGHTTP2_COMPRESSION_ERROR &&
                 session.in_long_block_) {
        session.fail(*stream, Status::kResourceExhausted,
                     "the server sends a header of more than 64 KiB, or headers that cannot be "
                     "decoded");
      }
      return 0;
    });
  }

  // Our own GOAWAY says why nghttp2 gives the connection up, better than anything else does.
  static int before_sending(nghttp2_session*, const nghttp2_frame* frame, void* user_data) {
    Session& session = self(user_data);
    if (frame->hd.type == NGHTTP2_HEADERS) {
      Stream* const stream = session.find(frame->hd.stream_id);
      if (stream != nullptr) stream->begun_ = true;
      return 0;
    }
    if (frame->hd.type != NGHTTP2_GOAWAY) return 0;
    return session.guard([&] {
      const auto* text = reinterpret_cast<const char*>(frame->goaway.opaque_data);
      session.fault_ = nghttp2_http2_strerror(frame->goaway.error_code);
      if (text != nullptr && frame->goaway.opaque_data_len != 0) {
        session.fault_ += " (" + std::string(text, frame->goaway.opaque_data_len) + ")";
      } else if (frame->goaway.error_code == NGHTTP2_COMPRESSION_ERROR && session.in_long_block_) {
        session.fault_ += " (a header of more than 64 KiB, maybe another call's)";
      }
      return 0;
    });
  }

  static int error(nghttp2_session*, int, const char* text, std::size_t size, void* user_data) {
    Session& session = self(user_data);
    return session.guard([&] {
      session.complaint_.assign(text, std::min(size, kBodyExcerpt));
      return 0;
    });
  }

  static int close(nghttp2_session*, std::int32_t id, std::uint32_t error_code, void* user_data) {
    Session& session = self(user_data);
    Stream* const stream = session.find(id);
    if (stream == nullptr || stream->done_) return 0;
    return session.guard([&] {
      session.on_close(*stream, error_code);
      return 0;
    });
  }
};

Session::Session(std::string authority, Sharing sharing)
    : sharing_(sharing), authority_(std::move(authority)) {
  nghttp2_session_callbacks* callbacks = nullptr;
  if (nghttp2_session_callbacks_new(&callbacks) != 0) throw std::bad_alloc();
  nghttp2_session_callbacks_set_send_data_callback(callbacks, Callbacks::send_data);
  nghttp2_session_callbacks_set_data_source_read_length_callback2(callbacks, Callbacks::frame_size);
  nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, Callbacks::begin_frame);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, Callbacks::header);
  nghttp2_session_callbacks_set_on_invalid_header_callback(callbacks, Callbacks::invalid_header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, Callbacks::data);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, Callbacks::frame);
  nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, Callbacks::invalid_frame);
  nghttp2_session_callbacks_set_before_frame_send_callback(callbacks, Callbacks::before_sending);
  nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, Callbacks::not_sent);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, Callbacks::close);
  nghttp2_session_callbacks_set_error_callback2(callbacks, Callbacks::error);
  nghttp2_option* option = nullptr;
  int rv = nghttp2_option_new(&option);
  if (rv == 0) {
    // FrameHeads limits header blocks by their size. nghttp2 allows eight frames, and counts one
    // anew for each piece that its head comes in.
    allow_continuations(option);
    if (sharing == Sharing::kManyCalls) nghttp2_option_set_no_auto_window_update(option, 1);
    rv = nghttp2_session_client_new2(&session_, callbacks, this, option);
    nghttp2_option_del(option);
  }
  nghttp2_session_callbacks_del(callbacks);
  if (rv != 0) throw std::bad_alloc();

  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
       sharing == Sharing::kManyCalls ? kSharedWindow : kLargestWindow},
      {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, kLargestFrame},
      // Many servers keep to it and answer with a short error in place of a long one; gRPC's own,
      // and so Triton, do not any more. When more comes, nghttp2 cannot but end the connection.
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, kLongestHeader},
  };
  if (nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings, 4) != 0 ||
      nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0,
                                            static_cast<std::int32_t>(kLargestWindow)) != 0) {
    nghttp2_session_del(session_);
    throw std::bad_alloc();
  }
}

Session::~Session() { nghttp2_session_del(session_); }

void Stream::set_message(const std::vector<ConstBuffer>& segments, std::uint64_t size,
                         bool compressed) {
  prefix_[0] = compressed ? 1 : 0;
  for (int i = 0; i < 4; ++i) prefix_[1 + i] = static_cast<std::uint8_t>(size >> (24 - 8 * i));
  pieces_.clear();
  piece_ = 0;
  pieces_.reserve(segments.size() + 1);
  pieces_.push_back({prefix_, sizeof prefix_});
  for (const ConstBuffer& segment : segments) {
    if (segment.size != 0) pieces_.push_back(segment);
  }
  std::uint64_t left = 0;
  for (const ConstBuffer& piece : pieces_) left += piece.size;
  if (left != sizeof prefix_ + size) throw ConnectionError("the request is not as long as it says");
  left_ = left;
}

Stream* Session::open(const CallSpec& call, std::int64_t timeout_ns, MessageSink* sink) {
  auto stream = std::make_unique<Stream>();
  stream->streaming_ = call.streaming;
  stream->half_closed_ = !call.streaming;
  if (!call.streaming) {
    stream->set_message(call.segments, call.message_size, !call.encoding.empty());
  }
  stream->sink_ = sink;
  stream->takes_compressed_ = !call.encoding.empty();

  const std::string timeout = timeout_ns < 0 ? std::string() : encode_timeout(timeout_ns);
  std::vector<nghttp2_nv> fields;
  fields.reserve(12 + call.metadata.size());
  fields.push_back(field(":method", "POST"));
  fields.push_back(field(":scheme", "http"));
  fields.push_back(field(":path", call.path));
  fields.push_back(field(":authority", authority_));
  fields.push_back(field("te", "trailers"));
  fields.push_back(field("content-type", "application/grpc"));
  fields.push_back(field("user-agent", "triton-fast"));
  // Every timeout is another one: not worth a place in the peer's table.
  if (!timeout.empty()) fields.push_back(field("grpc-timeout", timeout, true));
  if (!call.encoding.empty()) {
    fields.push_back(field("grpc-encoding", call.encoding));
    fields.push_back(field("grpc-accept-encoding", "identity,deflate,gzip"));
  }
  for (const auto& [name, value] : call.metadata) {
    fields.push_back(field(name, value, name == "authorization"));
  }

  complaint_.clear();
  // It is in its place before nghttp2 knows of it, so that nothing can go wrong in between.
  const auto next = static_cast<std::int32_t>(nghttp2_session_get_next_stream_id(session_));
  stream->id_ = next;
  Stream* const opened = stream.get();
  if (news_.capacity() <= streams_.size()) news_.reserve(2 * streams_.size() + 8);
  streams_.emplace(next, std::move(stream));
  nghttp2_data_provider2 provider{};
  provider.read_callback = Callbacks::read;
  const std::int32_t id =
      nghttp2_submit_request2(session_, nullptr, fields.data(), fields.size(), &provider, nullptr);
  if (id == next) return opened;
  streams_.erase(next);
  if (id == NGHTTP2_ERR_NOMEM) throw std::bad_alloc();
  throw ConnectionError(std::string("the connection takes no new calls: ") + nghttp2_strerror(id));
}

void Session::send(Stream* stream, const std::vector<ConstBuffer>& segments, std::uint64_t size) {
  if (stream->done_) return;  // nobody would read it
  if (!stream->listed() || stream->lent() || stream->half_closed_) {
    throw ConnectionError(
        "a stream's messages are sent one after another, until it is half closed");
  }
  stream->set_message(segments, size, false);
  resume(*stream);
}

void Session::half_close(Stream* stream) {
  if (stream->done_ || stream->half_closed_) return;
  stream->half_closed_ = true;
  resume(*stream);
}

void Session::resume(const Stream& stream) {
  // One that has not begun, or is at it, needs no resuming: that is no fault.
  if (nghttp2_session_resume_data(session_, stream.id_) == NGHTTP2_ERR_NOMEM)
    throw std::bad_alloc();
}

void Session::taken(Stream* stream) {
  const std::uint64_t size = std::exchange(stream->unread_, 0);
  if (size != 0 && sharing_ == Sharing::kManyCalls) {
    nghttp2_session_consume_stream(session_, stream->id_, static_cast<std::size_t>(size));
  }
}

std::vector<std::int32_t> Session::news() {
  std::vector<std::int32_t> fresh(news_);
  for (const std::int32_t id : news_) find(id)->noted_ = false;
  news_.clear();
  return fresh;
}

void Session::note(Stream& stream) noexcept {
  if (sharing_ != Sharing::kManyCalls || stream.noted_) return;
  news_.push_back(stream.id_);  // each is there once, and there is room
  stream.noted_ = true;
}

/// Lets as much come again as has come, unless it waits to be taken.
void Session::read(Stream& stream, std::size_t size) {
  stream.unread_ += size;
  // A message that is not complete cannot be taken, so a large one must not wait for that, unless
  // there is another before it.
  const bool waits =
      stream.streaming_ && (stream.sink_->ready() || stream.message_left_ < kSharedWindow / 4);
  if (!waits && !stream.done_) taken(&stream);
}

void Session::cancel(Stream* stream) {
  if (stream->done_) return;
  stream->done_ = true;
  note(*stream);
  stream->outcome_.status = Status::kCancelled;
  nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, stream->id_, NGHTTP2_CANCEL);
}

void Session::close(Stream* stream) {
  if (!stream->done_) {
    cancel(stream);
  } else if (nghttp2_session_find_stream(session_, stream->id_) != nullptr) {
    // Answered before all of it was sent. No data frame is made of it once this is queued.
    nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, stream->id_, NGHTTP2_NO_ERROR);
  }
  if (stream->noted_) news_.erase(std::find(news_.begin(), news_.end(), stream->id_));
  if (stream->lent_ == 0) {
    streams_.erase(stream->id_);
  } else {
    stream->closed_ = true;  // sent() forgets it, for what is listed begins with its prefix
  }
}

void Session::feed(ConstBuffer bytes) {
  for (std::size_t i = 0; i < bytes.size && received_ + i < sizeof opening_; ++i) {
    opening_[received_ + i] = bytes.data[i];
  }
  received_ += bytes.size;
  const std::size_t sound = heads_.walk(bytes);
  take({bytes.data, sound});
  if (sound != bytes.size) refuse();
}

/// Gives up a connection for a frame that nghttp2 is not to see.
void Session::refuse() {
  switch (heads_.fault()) {
    case FrameHeads::Fault::kPush:
      fault_ = "it pushes, and was told not to";
      break;
    case FrameHeads::Fault::kLongGoaway:
      fault_ = "a GOAWAY of its is longer than 16 KiB";
      break;
    default:
      fault_ = kManyHeaders;
      Stream* const stream = find(heads_.stream_id());
      if (stream != nullptr && !stream->done_) fail(*stream, Status::kResourceExhausted, fault_);
  }
  throw ConnectionError(complaint());
}

MutableBuffer Session::landing() noexcept {
  const std::size_t left = heads_.data_left();
  const Stream* const stream = left == 0 ? nullptr : find(heads_.stream_id());
  if (stream == nullptr || stream->done_ || stream->message_left_ == 0) return {};
  MutableBuffer place = stream->sink_->landing();
  place.size = std::min(place.size, left);
  place.size = static_cast<std::size_t>(std::min<std::uint64_t>(place.size, stream->message_left_));
  return place;
}

void Session::take(ConstBuffer bytes) {
  const nghttp2_ssize taken = nghttp2_session_mem_recv2(session_, bytes.data, bytes.size);
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
  if (taken == NGHTTP2_ERR_NOMEM) throw std::bad_alloc();
  if (taken < 0) {
    fault_ = nghttp2_strerror(static_cast<int>(taken));
    throw ConnectionError(complaint());
  }
  // nghttp2 has found fault and will take no more, though it has yet to say so to the peer.
  if (!goaway_ && nghttp2_session_check_request_allowed(session_) == 0 &&
      nghttp2_session_get_next_stream_id(session_) <= 0x7fffffff) {
    while (fault_.empty() && pump_one()) {
    }
    throw ConnectionError(complaint());
  }
}

bool Session::ended() const noexcept {
  return nghttp2_session_want_read(session_) == 0 && nghttp2_session_want_write(session_) == 0 &&
         queue_.empty();
}

std::string Session::complaint() const {
  const std::string known = diagnosis();
  if (!known.empty()) return known;
  if (goaway_) {
    return "the server is going away" + (goaway_reason_.empty() ? "" : ": " + goaway_reason_);
  }
  return "the connection was shut down";
}

/// What is wrong with the peer, if that is known.
std::string Session::diagnosis() const {
  if (std::memcmp(opening_, "HTTP/1.", 7) == 0) {
    return "the server answers in HTTP/1, so this is no gRPC port (Triton's is 8001 unless set "
           "otherwise)";
  }
  if (opening_[0] == 0x15 && opening_[1] == 0x03) {
    return "the server wants TLS on this port; Client(tls=...) speaks it";
  }
  return fault_.empty() ? std::string() : fault_text(fault_);
}

bool Session::left_out(const Stream& stream) const noexcept {
  return !stream.begun_ || (goaway_ && stream.id_ > last_stream_id_);
}

void Session::on_goaway(std::int32_t last_stream_id, std::string_view reason) {
  goaway_ = true;
  last_stream_id_ = last_stream_id;
  goaway_reason_ = printable(reason);
  // nghttp2 ends those that are left out, but for one that has yet to be sent: it waits for its
  // turn, which may be long, and whatever number the peer names, it is not sent any more.
  for (auto& [id, stream] : streams_) {
    if (stream->done_ || stream->begun_) continue;
    stream->outcome_.safe_to_retry = true;
    fail(*stream, Status::kUnavailable, complaint());
  }
}

void Session::end(const std::string& reason) {
  // What the peer has sent may explain more than how the connection went.
  std::string message = diagnosis();
  if (message.empty()) {
    message = reason;
    if (!goaway_reason_.empty()) message += " after it had said: " + goaway_reason_;
    if (received() == 0) message += kSaidNothing;
  }
  for (auto& [id, stream] : streams_) {
    if (stream->done_) continue;
    stream->outcome_.safe_to_retry = left_out(*stream) && !stream->answered();
    fail(*stream, Status::kUnavailable, message);
  }
}

void Session::pump() {
  while (queue_.size() < kMostQueued && pump_one()) {
  }
}

bool Session::pump_one() {
  const std::uint8_t* data = nullptr;
  const nghttp2_ssize size = nghttp2_session_mem_send2(session_, &data);
  if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
  if (size == NGHTTP2_ERR_NOMEM) throw std::bad_alloc();
  if (size < 0) throw ConnectionError(nghttp2_strerror(static_cast<int>(size)));
  if (size != 0) push_owned(data, static_cast<std::size_t>(size));
  return size != 0;
}

void Session::push_owned(const std::uint8_t* data, std::size_t size) {
  blocks_.emplace_back(data, data + size);
  queue_.push_back({blocks_.back().data(), size, 0});
}

std::size_t Session::gather(iovec* pieces, std::size_t most) {
  if (queue_.size() < most) pump();
  const std::size_t count = std::min(most, queue_.size());
  for (std::size_t i = 0; i < count; ++i) {
    pieces[i].iov_base = const_cast<std::uint8_t*>(queue_[i].data);
    pieces[i].iov_len = queue_[i].size;
  }
  return count;
}

void Session::sent(std::size_t size) noexcept {
  while (size != 0) {
    Piece& piece = queue_.front();
    if (size < piece.size) {
      piece.data += size;
      piece.size -= size;
      return;
    }
    size -= piece.size;
    if (piece.lender != 0) {
      --borrowed_;
      Stream* const lender = find(piece.lender);
      if (--lender->lent_ == 0) {
        if (lender->closed_) {
          streams_.erase(lender->id_);
        } else if ((lender->streaming_ && lender->left_ == 0) || lender->done_) {
          note(*lender);
        }
      }
    } else {
      blocks_.pop_front();
    }
    queue_.pop_front();
  }
}

bool Session::wants_write() { return !queue_.empty() || nghttp2_session_want_write(session_) != 0; }

std::uint32_t Session::most_calls() const noexcept {
  if (!settled_) return 1;
  return nghttp2_session_get_remote_settings(session_, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

bool Session::usable() const noexcept {
  return !goaway_ && nghttp2_session_check_request_allowed(session_) != 0 &&
         nghttp2_session_want_read(session_) != 0;
}

void Session::ping() { nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, nullptr); }

Stream* Session::find(std::int32_t id) noexcept {
  const auto found = streams_.find(id);
  return found == streams_.end() ? nullptr : found->second.get();
}

void Session::on_header(Stream& stream, std::string_view name, std::string_view value, bool last) {
  if (stream.done_) return;
  stream.header_size_ += name.size() + value.size() + 32;
  if (stream.header_size_ > kMostHeaderBytes) {
    // A few bytes can stand for many headers. The rest of the block is decoded and dropped.
    cancel(&stream);
    fail(stream, Status::kResourceExhausted, kManyHeaders);
    return;
  }
  if (name == ":status") {
    stream.http_status_ = 0;
    for (const char c : value) stream.http_status_ = 10 * stream.http_status_ + (c - '0');
    stream.final_headers_ = stream.http_status_ >= 200;
    return;
  }
  if (!stream.final_headers_) return;  // 1xx: the real ones are yet to come
  if (name == "content-type") {
    stream.grpc_content_ = is_grpc(value);
  } else if (name == "grpc-status") {
    Status status = Status::kUnknown;
    const bool read = parse_status(value, status);
    // That all went well cannot be known before the end.
    stream.has_grpc_status_ = read && (last || status != Status::kOk);
    stream.broken_grpc_status_ = read ? "" : printable(value.substr(0, kBodyExcerpt));
    stream.outcome_.status = status;
  } else if (name == "grpc-message") {
    stream.outcome_.message = decode_message(value);
  } else if (name == "grpc-encoding") {
    stream.outcome_.encoding = value.substr(0, kBodyExcerpt);
  }
}

void Session::on_data(Stream& stream, const std::uint8_t* data, std::size_t size) {
  if (stream.http_status_ != 200 || !stream.grpc_content_) {
    const std::size_t room = kBodyExcerpt - std::min(kBodyExcerpt, stream.body_.size());
    stream.body_.append(reinterpret_cast<const char*>(data), std::min(size, room));
    return;
  }
  while (size != 0) {
    if (stream.message_left_ == 0) {
      const std::size_t part = std::min(size, sizeof stream.message_prefix_ - stream.prefix_size_);
      std::memcpy(stream.message_prefix_ + stream.prefix_size_, data, part);
      stream.prefix_size_ += part;
      data += part;
      size -= part;
      if (stream.prefix_size_ < sizeof stream.message_prefix_) return;
      stream.prefix_size_ = 0;
      if (++stream.messages_ > 1 && !stream.streaming_) {
        stream.outcome_.message = "the server sent more than one message";
        cancel(&stream);
        stream.outcome_.status = Status::kInternal;
        return;
      }
      const std::uint8_t* const p = stream.message_prefix_;
      const bool encoded =
          !stream.outcome_.encoding.empty() && stream.outcome_.encoding != "identity";
      if (p[0] > 1 || (p[0] == 1 && !(encoded && stream.takes_compressed_))) {
        stream.outcome_.message =
            p[0] > 1  ? "the server sent a message with flags that gRPC does not have"
            : encoded ? "the server sent a compressed message though it was not asked to"
                      : "the server sent a compressed message and did not say how";
        cancel(&stream);
        stream.outcome_.status = Status::kInternal;
        return;
      }
      stream.outcome_.compressed = p[0] == 1;
      stream.message_left_ = std::uint64_t{p[1]} << 24 | std::uint64_t{p[2]} << 16 |
                             std::uint64_t{p[3]} << 8 | std::uint64_t{p[4]};
      stream.sink_->begin(stream.message_left_);
      if (sharing_ == Sharing::kManyCalls && !stream.streaming_ &&
          stream.message_left_ > kSharedWindow / 2) {
        // Somebody waits for all of it.
        nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, stream.id_,
                                              static_cast<std::int32_t>(kLargestWindow));
      }
      if (stream.message_left_ == 0) finish_message(stream);
      continue;
    }
    const auto part = static_cast<std::size_t>(std::min<std::uint64_t>(size, stream.message_left_));
    stream.sink_->feed({data, part});
    stream.message_left_ -= part;
    data += part;
    size -= part;
    if (stream.message_left_ == 0) finish_message(stream);
  }
}

void Session::finish_message(Stream& stream) {
  stream.sink_->finish();
  if (stream.streaming_) note(stream);
}

void Session::on_close(Stream& stream, std::uint32_t error_code) {
  Outcome& outcome = stream.outcome_;
  if (error_code != NGHTTP2_NO_ERROR && !stream.has_grpc_status_) {
    if (stream.reset_by_peer_ && !left_out(stream)) {
      outcome.safe_to_retry = error_code == NGHTTP2_REFUSED_STREAM && !stream.answered();
      fail(stream, status_from_reset(error_code),
           std::string("the server reset the stream: ") + nghttp2_http2_strerror(error_code));
    } else if (error_code == NGHTTP2_REFUSED_STREAM || left_out(stream)) {
      // GOAWAY leaves it out, or came before it was sent at all.
      outcome.safe_to_retry = !stream.answered();
      fail(stream, Status::kUnavailable, complaint());
    } else {
      fail(stream, Status::kInternal,
           fault_text(complaint_.empty() ? nghttp2_http2_strerror(error_code) : complaint_));
    }
    return;
  }
  const bool grpc = stream.http_status_ == 200 && stream.grpc_content_;
  if (!stream.has_grpc_status_ || (outcome.status == Status::kOk && !grpc)) {
    const std::string excerpt = stream.body_.empty() ? "" : ": " + printable(stream.body_);
    if (stream.http_status_ == 0) {
      fail(stream, Status::kInternal, "the server ended the call without an answer");
    } else if (stream.http_status_ != 200) {
      fail(stream, status_from_http(stream.http_status_),
           "HTTP status " + std::to_string(stream.http_status_) + excerpt +
               (stream.http_status_ == 404 ? " (no such name or path there: see authority)" : ""));
    } else if (!stream.broken_grpc_status_.empty()) {
      fail(stream, Status::kUnknown,
           "the answer's grpc-status is no number: " + stream.broken_grpc_status_);
    } else if (!grpc) {
      fail(stream, Status::kUnknown, "the answer is not gRPC" + excerpt);
    } else {
      fail(stream, Status::kInternal, "the answer ends without trailers");
    }
    return;
  }
  if (outcome.status == Status::kOk) {
    if (stream.message_left_ != 0 || stream.prefix_size_ != 0) {
      fail(stream, Status::kInternal, "the answer ends in the middle of its message");
      return;
    }
    if (stream.messages_ == 0 && !stream.streaming_) {
      fail(stream, Status::kInternal, "the answer has no message");
      return;
    }
  }
  stream.done_ = true;
  note(stream);
}

void Session::fail(Stream& stream, Status status, std::string message) {
  stream.outcome_.status = status;
  stream.outcome_.message = std::move(message);
  stream.done_ = true;
  note(stream);
}

}  // namespace triton_fast::http2
