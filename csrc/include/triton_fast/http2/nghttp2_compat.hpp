// nghttp2 under the names that it has since 1.60, on older releases too (Debian 12 has 1.52).
#pragma once

#include <nghttp2/nghttp2.h>

#if NGHTTP2_VERSION_NUM < 0x013c00
using nghttp2_ssize = ssize_t;
using nghttp2_data_provider2 = nghttp2_data_provider;
#define nghttp2_session_mem_send2 nghttp2_session_mem_send
#define nghttp2_session_mem_recv2 nghttp2_session_mem_recv
#define nghttp2_submit_request2 nghttp2_submit_request
#define nghttp2_session_callbacks_set_data_source_read_length_callback2 \
  nghttp2_session_callbacks_set_data_source_read_length_callback
#endif

// Since 1.61, and since the same security fix in distributions that have an older release: no
// version number tells, so whether it is there is asked of the library that is loaded.
#ifdef __linux__
extern "C" void nghttp2_option_set_max_continuations(nghttp2_option* option, std::size_t most)
    __attribute__((weak));
#endif

namespace triton_fast::http2 {

/// Has nghttp2 take any number of CONTINUATION frames, if it counts them at all.
inline void allow_continuations(nghttp2_option* option) {
  constexpr auto most = static_cast<std::size_t>(-1);
#ifdef __linux__
  if (nghttp2_option_set_max_continuations != nullptr) {
    nghttp2_option_set_max_continuations(option, most);
  }
#elif NGHTTP2_VERSION_NUM >= 0x013d00
  nghttp2_option_set_max_continuations(option, most);
#else
  static_cast<void>(option), static_cast<void>(most);
#endif
}

}  // namespace triton_fast::http2
