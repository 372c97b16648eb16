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
