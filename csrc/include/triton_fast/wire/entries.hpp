// How many things a protobuf message is going to be, before anybody makes them.
//
// Source: protobuf.dev, "Encoding".
#pragma once

#include <cstddef>

#include "triton_fast/span.hpp"

namespace triton_fast::wire {

/// @brief Counts the texts and messages in a protobuf message, those in its messages too.
///
/// Two bytes of it make one, which takes some seventy once it is decoded. The schema is not known
/// here: whatever may be a message is looked into, so that a text counts for what it would be as
/// one. What is broken counts as far as it could be read.
///
/// @return no more than `most` + 1
std::size_t count_entries(ConstBuffer message, std::size_t most) noexcept;

}  // namespace triton_fast::wire
