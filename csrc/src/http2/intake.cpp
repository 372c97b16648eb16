// Receiving, with one copy of a large tensor on its way: the kernel's.
#include "triton_fast/http2/intake.hpp"

#include <algorithm>

namespace triton_fast::http2 {
namespace {

// Large enough that one call of the kernel's empties a full socket buffer, small enough to stay in
// the processor's second-level cache on its way to the tensor.
constexpr std::size_t kBuffer = std::size_t{256} << 10;
// What is left of a tensor and is not worth a place of its own.
constexpr std::size_t kLeast = std::size_t{16} << 10;
// In one call: while it copies, the kernel takes nothing more from the peer. 16 MiB took 5 % longer
// with a megabyte, and the processor a tenth more with half of one (2026-11).
constexpr std::size_t kMost = std::size_t{128} << 10;

}  // namespace

Intake::Intake() : buffer_(new std::uint8_t[kBuffer]) {}

std::size_t Intake::receive(Socket& socket, Session& session) {
  MutableBuffer place = session.landing();
  if (place.size < kLeast) place = {};
  place.size = std::min(place.size, kMost);
  const MutableBuffer rest{buffer_.get(), place.size == kMost ? 0 : kBuffer};
  const std::size_t size = socket.receive(place, rest);
  const std::size_t landed = std::min(size, place.size);
  if (landed != 0) session.feed({place.data, landed});
  if (size != landed) session.feed({rest.data, size - landed});
  return size;
}

}  // namespace triton_fast::http2
