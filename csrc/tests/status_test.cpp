// gRPC's tables and encodings of text. Source: gRPC's "gRPC over HTTP2", "HTTP to gRPC Status Code
// Mapping".
#include "triton_fast/http2/status.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

using triton_fast::http2::decode_message;
using triton_fast::http2::encode_timeout;
using triton_fast::http2::parse_status;
using triton_fast::http2::Status;
using triton_fast::http2::status_from_http;
using triton_fast::http2::status_from_reset;

TEST_CASE("http statuses") {
  CHECK(status_from_http(400) == Status::kInternal);
  CHECK(status_from_http(401) == Status::kUnauthenticated);
  CHECK(status_from_http(403) == Status::kPermissionDenied);
  CHECK(status_from_http(404) == Status::kUnimplemented);
  for (const int status : {429, 502, 503, 504}) {
    CHECK(status_from_http(status) == Status::kUnavailable);
  }
  for (const int status : {0, 100, 200, 204, 301, 402, 405, 418, 500, 501, 505, 999}) {
    CHECK(status_from_http(status) == Status::kUnknown);
  }
}

TEST_CASE("reset codes") {
  for (std::uint32_t code = 0; code < 40; ++code) {
    const Status expected = code == 0x7   ? Status::kUnavailable
                            : code == 0x8 ? Status::kCancelled
                            : code == 0xb ? Status::kResourceExhausted
                            : code == 0xc ? Status::kPermissionDenied
                                          : Status::kInternal;
    CHECK(status_from_reset(code) == expected);
  }
  CHECK(status_from_reset(0xffffffff) == Status::kInternal);
}

TEST_CASE("grpc statuses") {
  Status status = Status::kOk;
  for (unsigned number = 0; number <= 16; ++number) {
    REQUIRE(parse_status(std::to_string(number), status));
    CHECK(status == static_cast<Status>(number));
  }
  REQUIRE(parse_status("007", status));
  CHECK(status == Status::kPermissionDenied);
  for (const char* unknown : {"17", "99", "256", "65536", "999999999"}) {
    REQUIRE(parse_status(unknown, status));
    CHECK(status == Status::kUnknown);
  }
  for (const char* broken : {"", " ", "-1", "+1", "1 ", " 1", "0x1", "one", "1.0", "4294967296"}) {
    REQUIRE(!parse_status(broken, status));
  }
}

TEST_CASE("percent encoding") {
  const std::pair<const char*, const char*> cases[] = {
      {"", ""},
      {"plain text", "plain text"},
      {"%41%42", "AB"},
      {"%e2%9C%93", "\xe2\x9c\x93"},
      {"100%", "100%"},
      {"%", "%"},
      {"%4", "%4"},
      {"%%41", "%A"},
      {"%4g%g4%41", "%4g%g4A"},
      {"%2541", "%41"},
      {"%ff", "\xff"},
      {"%0a", "\n"},
      {"raw \xc3\xa9", "raw \xc3\xa9"},
  };
  for (const auto& [sent, read] : cases) REQUIRE((decode_message(sent) == read));
  CHECK(decode_message(std::string("a%00b")) == std::string("a\0b", 3));
}

TEST_CASE("timeouts") {
  const std::pair<std::int64_t, const char*> cases[] = {
      {INT64_MIN, "1n"},
      {-1, "1n"},
      {0, "1n"},
      {1, "1n"},
      {999, "999n"},
      {99999999, "99999999n"},
      {100000000, "100000u"},
      {100000001, "100001u"},  // never less than there is
      {99999999000, "99999999u"},
      {99999999001, "100000m"},
      {1000000000000, "1000000m"},
      {99999999000000, "99999999m"},
      {99999999000001, "100000S"},
      {99999999000000000, "99999999S"},
      {99999999000000001, "1666667M"},
      {5999999940000000000, "99999999M"},
      {5999999940000000001, "1666667H"},
      {INT64_MAX, "2562048H"},
  };
  for (const auto& [nanoseconds, text] : cases) REQUIRE(encode_timeout(nanoseconds) == text);
  // Rounded up, and by less than one of the unit.
  const std::int64_t units[] = {1, 1000, 1000000, 1000000000, 60000000000, 3600000000000};
  const std::string letters = "numSMH";
  for (std::int64_t timeout = 1; timeout < INT64_MAX / 3; timeout = timeout * 3 + 1) {
    const std::string text = encode_timeout(timeout);
    CHECK(text.size() <= 9);
    const std::int64_t unit = units[letters.find(text.back())];
    const std::int64_t count = std::stoll(text);
    CHECK((count * unit >= timeout || count > INT64_MAX / unit));
    CHECK((count - 1) * unit < timeout);
  }
}
