# Finds or builds nghttp2 as TRITON_FAST_HTTP2 asks, and makes the target triton_fast_nghttp2 of it.
set(TRITON_FAST_NGHTTP2_SOURCE "" CACHE PATH
    "For BUNDLED: a folder with nghttp2's source (or set in the environment); else it is downloaded")

# The release that is downloaded. Upstream publishes the hash beside it, and Debian's 1.70.0-1 has
# the same.
set(nghttp2_release 1.70.0)
set(nghttp2_sha256 aa317e2cf9dca6afa0aed68f8fad6ff303ec6982e25a78c75c0b65e2b9b3ded5)
set(nghttp2_oldest 1.43)
# What is built in is as safe as its release: without a limit to CONTINUATION frames until 1.61.
set(nghttp2_oldest_source 1.61)

if(NOT TRITON_FAST_HTTP2 MATCHES "^(AUTO|SYSTEM|BUNDLED|OFF)$")
  message(FATAL_ERROR "TRITON_FAST_HTTP2 is AUTO, SYSTEM, BUNDLED or OFF, not ${TRITON_FAST_HTTP2}")
endif()

# Downloads the release, unless an earlier run did; sets nghttp2_source.
function(triton_fast_download_nghttp2)
  set(name "nghttp2-${nghttp2_release}")
  set(archive "${CMAKE_CURRENT_BINARY_DIR}/${name}.tar.gz")
  set(url "https://github.com/nghttp2/nghttp2/releases/download/v${nghttp2_release}/${name}.tar.gz")
  set(got "")
  if(EXISTS "${archive}")
    file(SHA256 "${archive}" got)
  endif()
  if(NOT got STREQUAL nghttp2_sha256)
    message(STATUS "Native channel: downloading ${url}")
    file(DOWNLOAD "${url}" "${archive}" STATUS status INACTIVITY_TIMEOUT 30)
    list(POP_FRONT status code problem)
    if(code EQUAL 0)
      file(SHA256 "${archive}" got)
      set(problem "what came is not the release: its SHA-256 is ${got}")
    endif()
    if(NOT got STREQUAL nghttp2_sha256)
      file(REMOVE "${archive}")
      message(FATAL_ERROR "TRITON_FAST_HTTP2=BUNDLED needs nghttp2's source, and ${url} could not be "
                          "had (${problem}). Unpack it yourself and name the folder with "
                          "TRITON_FAST_NGHTTP2_SOURCE, or use the system's: TRITON_FAST_HTTP2=SYSTEM")
    endif()
  endif()
  file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${CMAKE_CURRENT_BINARY_DIR}")
  set(nghttp2_source "${CMAKE_CURRENT_BINARY_DIR}/${name}" PARENT_SCOPE)
endfunction()

# Sets nghttp2_includes, and nghttp2_version to the source's. Only releases have nghttp2ver.h; it is
# made here for what comes from git.
function(triton_fast_nghttp2_headers source)
  set(includes "${source}/lib/includes")
  set(header "${includes}/nghttp2/nghttp2ver.h")
  if(NOT EXISTS "${includes}/nghttp2/nghttp2.h")
    message(FATAL_ERROR "TRITON_FAST_NGHTTP2_SOURCE=${source} is not nghttp2's source: it has no "
                        "lib/includes/nghttp2/nghttp2.h")
  endif()
  if(NOT EXISTS "${header}")
    file(STRINGS "${source}/CMakeLists.txt" project REGEX "^project\\(nghttp2 VERSION")
    string(REGEX MATCH "([0-9]+)\\.([0-9]+)\\.([0-9]+)" PACKAGE_VERSION "${project}")
    math(EXPR PACKAGE_VERSION_NUM
         "(${CMAKE_MATCH_1} << 16) + (${CMAKE_MATCH_2} << 8) + ${CMAKE_MATCH_3}"
         OUTPUT_FORMAT HEXADECIMAL)
    set(made "${CMAKE_CURRENT_BINARY_DIR}/nghttp2_includes")
    configure_file("${header}.in" "${made}/nghttp2/nghttp2ver.h" @ONLY)
    list(APPEND includes "${made}")
    set(header "${made}/nghttp2/nghttp2ver.h")
  endif()
  file(STRINGS "${header}" version REGEX "define NGHTTP2_VERSION \"")
  string(REGEX MATCH "[0-9]+\\.[0-9.]+" version "${version}")
  if(version VERSION_LESS nghttp2_oldest_source)
    message(FATAL_ERROR "TRITON_FAST_NGHTTP2_SOURCE=${source} is nghttp2 ${version}; to be built in "
                        "it has to be ${nghttp2_oldest_source} or newer")
  endif()
  set(nghttp2_includes "${includes}" PARENT_SCOPE)
  set(nghttp2_version "${version}" PARENT_SCOPE)
endfunction()

if(TRITON_FAST_HTTP2 MATCHES "^(AUTO|SYSTEM)$")
  find_package(PkgConfig QUIET)
  if(PkgConfig_FOUND)
    unset(NGHTTP2_FOUND CACHE) # it may have gone since this folder was configured
    pkg_check_modules(NGHTTP2 QUIET IMPORTED_TARGET "libnghttp2>=${nghttp2_oldest}")
  endif()
  if(NGHTTP2_FOUND)
    add_library(triton_fast_nghttp2 INTERFACE)
    target_link_libraries(triton_fast_nghttp2 INTERFACE PkgConfig::NGHTTP2)
    message(STATUS "Native channel: with the system's nghttp2 ${NGHTTP2_VERSION}")
  elseif(TRITON_FAST_HTTP2 STREQUAL "SYSTEM")
    message(FATAL_ERROR "TRITON_FAST_HTTP2=SYSTEM needs pkg-config and libnghttp2 "
                        "${nghttp2_oldest} or newer "
                        "(Debian: apt-get install pkg-config libnghttp2-dev)")
  else()
    message(STATUS "Native channel: left out, for there is no libnghttp2 >= ${nghttp2_oldest} "
                   "(Debian: apt-get install pkg-config libnghttp2-dev)")
  endif()
elseif(TRITON_FAST_HTTP2 STREQUAL "BUNDLED")
  # Their C files alone: their build looks for programs and libraries that only their tools need. The
  # symbols stay inside our module, so that another nghttp2 in the process (curl's) is no concern.
  enable_language(C)
  set(nghttp2_source "${TRITON_FAST_NGHTTP2_SOURCE}")
  if(NOT nghttp2_source)
    set(nghttp2_source "$ENV{TRITON_FAST_NGHTTP2_SOURCE}")
  endif()
  if(NOT nghttp2_source)
    triton_fast_download_nghttp2()
  endif()
  triton_fast_nghttp2_headers("${nghttp2_source}")
  file(GLOB nghttp2_sources "${nghttp2_source}/lib/*.c")
  add_library(triton_fast_nghttp2 STATIC ${nghttp2_sources})
  target_include_directories(triton_fast_nghttp2 SYSTEM PUBLIC ${nghttp2_includes})
  target_compile_definitions(
    triton_fast_nghttp2
    PUBLIC NGHTTP2_STATICLIB
    PRIVATE BUILDING_NGHTTP2 HAVE_ARPA_INET_H HAVE_NETINET_IN_H HAVE_CLOCK_GETTIME
            HAVE_DECL_CLOCK_MONOTONIC=1)
  set_target_properties(triton_fast_nghttp2 PROPERTIES C_STANDARD 11 C_VISIBILITY_PRESET hidden)
  # Its licence wants to be where it is; for a wheel that is beside our own.
  if(SKBUILD)
    install(FILES "${nghttp2_source}/COPYING" DESTINATION "${SKBUILD_METADATA_DIR}/licenses"
            RENAME nghttp2-COPYING)
  endif()
  message(STATUS "Native channel: with nghttp2 ${nghttp2_version}, built in")
else()
  message(STATUS "Native channel: left out, as asked")
endif()
