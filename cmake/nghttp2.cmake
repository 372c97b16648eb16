# Finds nghttp2 as TRITON_FAST_HTTP2 asks, and makes the target triton_fast_nghttp2 of it.

if(NOT TRITON_FAST_HTTP2 MATCHES "^(AUTO|SYSTEM|BUNDLED|OFF)$")
  message(FATAL_ERROR "TRITON_FAST_HTTP2 is AUTO, SYSTEM, BUNDLED or OFF, not ${TRITON_FAST_HTTP2}")
endif()

if(TRITON_FAST_HTTP2 MATCHES "^(AUTO|SYSTEM)$")
  find_package(PkgConfig QUIET)
  if(PkgConfig_FOUND)
    pkg_check_modules(NGHTTP2 QUIET IMPORTED_TARGET "libnghttp2>=1.43")
  endif()
  if(NGHTTP2_FOUND)
    add_library(triton_fast_nghttp2 INTERFACE)
    target_link_libraries(triton_fast_nghttp2 INTERFACE PkgConfig::NGHTTP2)
    message(STATUS "Native channel: with the system's nghttp2 ${NGHTTP2_VERSION}")
  elseif(TRITON_FAST_HTTP2 STREQUAL "SYSTEM")
    message(FATAL_ERROR "TRITON_FAST_HTTP2=SYSTEM needs pkg-config and libnghttp2 1.43 or newer "
                        "(Debian: apt-get install pkg-config libnghttp2-dev)")
  else()
    message(STATUS "Native channel: left out, for there is no libnghttp2 >= 1.43 "
                   "(Debian: apt-get install pkg-config libnghttp2-dev)")
  endif()
elseif(TRITON_FAST_HTTP2 STREQUAL "OFF")
  message(STATUS "Native channel: left out, as asked")
endif()
