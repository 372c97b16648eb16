// A server end of HTTP/2 in memory, by nghttp2: the peer that the tests of http2 talk to. It keeps
// to the rules strictly, so that what it accepts is right, and answers as it is told.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "triton_fast/http2/nghttp2_compat.hpp"
#include "triton_fast/span.hpp"

namespace test {

using Fields = std::vector<std::pair<std::string, std::string>>;

inline const Fields kHeaders = {{":status", "200"}, {"content-type", "application/grpc"}};
inline const Fields kTrailers = {{"grpc-status", "0"}};

inline std::string with_prefix(const std::string& message, std::uint8_t flags = 0) {
  const auto size = static_cast<std::uint32_t>(message.size());
  std::string out(1, static_cast<char>(flags));
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(size >> shift));
  return out + message;
}

/// An HTTP/2 frame as it is on the wire. Source: RFC 9113, 4.1.
inline std::string frame(std::uint8_t type, std::uint8_t flags, std::uint32_t id,
                         const std::string& payload) {
  std::string out;
  for (int shift = 16; shift >= 0; shift -= 8) {
    out.push_back(static_cast<char>(payload.size() >> shift));
  }
  out.push_back(static_cast<char>(type));
  out.push_back(static_cast<char>(flags));
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(id >> shift));
  return out + payload;
}

class Server {
 public:
  struct Request {
    Fields fields;
    std::string body;
    bool complete = false;
    bool closed = false;
    std::uint32_t error_code = 0;  // that it was closed with

    std::string operator[](const std::string& name) const {
      for (const auto& field : fields) {
        if (field.first == name) return field.second;
      }
      return "(none)";
    }
  };

  /// With `updates`, windows open as data comes; without, by open_windows() alone.
  explicit Server(std::vector<nghttp2_settings_entry> settings = {}, bool updates = true) {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_option* option = nullptr;
    nghttp2_option_new(&option);
    nghttp2_option_set_max_send_header_block_length(option, std::size_t{64} << 20);
    if (!updates) nghttp2_option_set_no_auto_window_update(option, 1);
    nghttp2_session_server_new2(&session_, callbacks, this, option);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings.data(), settings.size());
  }
  ~Server() { nghttp2_session_del(session_); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  void feed(triton_fast::ConstBuffer bytes) {
    const auto taken = nghttp2_session_mem_recv2(session_, bytes.data, bytes.size);
    if (taken != static_cast<nghttp2_ssize>(bytes.size)) {
      throw std::runtime_error("the server refuses what it is sent");
    }
  }

  /// What it has to send.
  std::string take() {
    std::string out;
    const std::uint8_t* data = nullptr;
    for (nghttp2_ssize size = 0; (size = nghttp2_session_mem_send2(session_, &data)) > 0;) {
      out.append(reinterpret_cast<const char*>(data), static_cast<std::size_t>(size));
    }
    return out;
  }

  /// Sends headers, and a body and trailers if there are any.
  void answer(std::int32_t id, const Fields& fields, std::string body = {},
              const Fields& trailers = {}) {
    Answer& answer = answers_[id];
    answer.body = std::move(body);
    answer.trailers = trailers;
    if (answer.body.empty() && trailers.empty()) {
      nghttp2_submit_headers(session_, NGHTTP2_FLAG_END_STREAM, id, nullptr, names(fields).data(),
                             fields.size(), nullptr);
      return;
    }
    nghttp2_submit_headers(session_, NGHTTP2_FLAG_NONE, id, nullptr, names(fields).data(),
                           fields.size(), nullptr);
    submit_body(id);
  }

  /// Sends headers; what say() gives follows, and end() has the last word.
  void begin(std::int32_t id, const Fields& fields = kHeaders) {
    nghttp2_submit_headers(session_, NGHTTP2_FLAG_NONE, id, nullptr, names(fields).data(),
                           fields.size(), nullptr);
    answers_[id].open = true;
    submit_body(id);
  }

  void say(std::int32_t id, const std::string& body) {
    answers_[id].body += body;
    nghttp2_session_resume_data(session_, id);
  }

  /// Without trailers, the last data frame ends the answer.
  void end(std::int32_t id, const Fields& trailers = kTrailers) {
    answers_[id].open = false;
    answers_[id].trailers = trailers;
    nghttp2_session_resume_data(session_, id);
  }

  /// How many bytes of an answer's body the peer's windows let pass.
  std::size_t said(std::int32_t id) { return answers_[id].sent; }

  void informational(std::int32_t id, const Fields& fields) {
    nghttp2_submit_headers(session_, NGHTTP2_FLAG_NONE, id, nullptr, names(fields).data(),
                           fields.size(), nullptr);
  }

  void reset(std::int32_t id, std::uint32_t code) {
    nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, id, code);
  }

  void go_away(std::int32_t last, std::uint32_t code, const std::string& text) {
    nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, last, code,
                          reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
  }

  void change(std::vector<nghttp2_settings_entry> settings) {
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings.data(), settings.size());
  }

  void open_windows(std::int32_t id, std::int32_t size) {
    nghttp2_submit_window_update(session_, NGHTTP2_FLAG_NONE, id, size);
    nghttp2_submit_window_update(session_, NGHTTP2_FLAG_NONE, 0, size);
  }

  std::map<std::int32_t, Request> requests;
  std::vector<nghttp2_frame_hd> frames;  // all that came

 private:
  struct Answer {
    std::string body;
    std::size_t sent = 0;
    bool open = false;  // there may be more of the body
    Fields trailers;
  };

  void submit_body(std::int32_t id) {
    nghttp2_data_provider2 provider{};
    provider.source.ptr = this;
    provider.read_callback = read;
#if NGHTTP2_VERSION_NUM < 0x013c00
    nghttp2_submit_data(session_, NGHTTP2_FLAG_END_STREAM, id, &provider);
#else
    nghttp2_submit_data2(session_, NGHTTP2_FLAG_END_STREAM, id, &provider);
#endif
  }

  static std::vector<nghttp2_nv> names(const Fields& fields) {
    std::vector<nghttp2_nv> out;
    for (const auto& [name, value] : fields) {
      out.push_back({reinterpret_cast<std::uint8_t*>(const_cast<char*>(name.data())),
                     reinterpret_cast<std::uint8_t*>(const_cast<char*>(value.data())), name.size(),
                     value.size(), NGHTTP2_NV_FLAG_NONE});
    }
    if (out.empty()) out.reserve(1);  // so that data() is something
    return out;
  }

  static Server& self(void* user_data) { return *static_cast<Server*>(user_data); }

  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name,
                       std::size_t name_size, const std::uint8_t* value, std::size_t value_size,
                       std::uint8_t, void* user_data) {
    self(user_data).requests[frame->hd.stream_id].fields.emplace_back(
        std::string(reinterpret_cast<const char*>(name), name_size),
        std::string(reinterpret_cast<const char*>(value), value_size));
    return 0;
  }

  static int on_data(nghttp2_session*, std::uint8_t, std::int32_t id, const std::uint8_t* data,
                     std::size_t size, void* user_data) {
    self(user_data).requests[id].body.append(reinterpret_cast<const char*>(data), size);
    return 0;
  }

  static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* user_data) {
    self(user_data).frames.push_back(frame->hd);
    if ((frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS) &&
        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
      self(user_data).requests[frame->hd.stream_id].complete = true;
    }
    return 0;
  }

  static int on_close(nghttp2_session*, std::int32_t id, std::uint32_t code, void* user_data) {
    Request& request = self(user_data).requests[id];
    request.closed = true;
    request.error_code = code;
    return 0;
  }

  static nghttp2_ssize read(nghttp2_session* session, std::int32_t id, std::uint8_t* out,
                            std::size_t length, std::uint32_t* flags, nghttp2_data_source* source,
                            void*) {
    Answer& answer = static_cast<Server*>(source->ptr)->answers_[id];
    const std::size_t size = std::min(length, answer.body.size() - answer.sent);
    std::memcpy(out, answer.body.data() + answer.sent, size);
    answer.sent += size;
    if (size == 0 && answer.open) return NGHTTP2_ERR_DEFERRED;
    if (answer.sent == answer.body.size() && !answer.open) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
      if (!answer.trailers.empty()) {
        *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
        nghttp2_submit_trailer(session, id, names(answer.trailers).data(), answer.trailers.size());
      }
    }
    return static_cast<nghttp2_ssize>(size);
  }

  nghttp2_session* session_ = nullptr;
  std::map<std::int32_t, Answer> answers_;
};

}  // namespace test
