// What a stream's messages take while they wait to be read.
#include "triton_fast/bridge.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <memory>
#include <string>

#include "triton_fast/wire/varint.hpp"

namespace {

using namespace triton_fast;

/// A ModelStreamInferResponse with so many parameters, of two bytes each.
std::string with_parameters(std::size_t count) {
  std::string response;
  for (std::size_t i = 0; i < count; ++i) wire::append_length_delimited(response, 4, "");
  std::string message;
  wire::append_length_delimited(message, 2, response);
  return message;
}

/// How many such messages fill the queue.
std::size_t capacity(QueueSink& queue, const std::string& message) {
  std::size_t count = 0;
  while (!queue.full()) {
    queue.begin(message.size());
    queue.feed({reinterpret_cast<const std::uint8_t*>(message.data()), message.size()});
    queue.finish();
    ++count;
  }
  return count;
}

}  // namespace

TEST_CASE("queued messages count for what they take in memory") {
  // In bytes on the wire a thousand times as many would be no more than it holds.
  constexpr std::size_t kMost = 64 * (std::size_t{1} << 20);
  constexpr std::size_t kParameters = 16384;
  QueueSink queue;
  const std::size_t held = capacity(queue, with_parameters(kParameters));
  CHECK(held * kParameters * sizeof(wire::Parameter) < 2 * kMost);
  CHECK(held > 4);
  // And no more once they are taken.
  for (std::size_t i = 0; i < held; ++i) {
    const std::unique_ptr<wire::ResponseReader> taken(queue.take());
    REQUIRE(taken != nullptr);
    CHECK(queue.full() == false);
  }
  CHECK(queue.take() == nullptr);
  CHECK(capacity(queue, with_parameters(kParameters)) == held);
}
