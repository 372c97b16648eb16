# Bugs on purpose. Each is a copy of one source file of the core with one thing changed, linked with
# the harness that has to find it. A fuzzer that finds none of them is itself broken.

# triton_fast_planted_bug(NAME HARNESS SOURCE FIND REPLACE): a target planted_NAME, not part of
# `all`. FIND must be in the file just once: a bug whose place has moved is an error here and not a
# check that no longer checks anything.
add_custom_target(planted)
function(triton_fast_planted_bug name harness source find replace)
  set(original "${PROJECT_SOURCE_DIR}/csrc/${source}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${original}")
  file(READ "${original}" text)
  string(FIND "${text}" "${find}" first)
  string(FIND "${text}" "${find}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "planted bug ${name}: ${source} must have this just once: ${find}")
  endif()
  string(REPLACE "${find}" "${replace}" text "${text}")
  set(patched "${CMAKE_CURRENT_BINARY_DIR}/planted/${name}.cpp")
  set(before "")
  if(EXISTS "${patched}")
    file(READ "${patched}" before)
  endif()
  if(NOT before STREQUAL text)
    file(WRITE "${patched}" "${text}")  # only then, so that it is not compiled again for nothing
  endif()

  # Objects come before the archive, so the patched file's symbols are the ones that are linked.
  add_executable(planted_${name} EXCLUDE_FROM_ALL "${patched}")
  target_link_libraries(planted_${name} PRIVATE ${harness}_harness triton_fast_fuzz_core)
  target_link_options(planted_${name} PRIVATE -fsanitize=fuzzer)
  add_dependencies(planted planted_${name})
  set_property(GLOBAL APPEND_STRING PROPERTY planted_list "${name} ${harness}\n")
endfunction()

set(reader src/wire/response_reader.cpp)

# Written past the caller's array.
triton_fast_planted_bug(
  destination_size fuzz_response ${reader} "size == destination->memory.size &&" "size != 0 &&")
# A place that is larger than the tensor.
triton_fast_planted_bug(
  landing fuzz_response ${reader} "const auto left = static_cast<std::size_t>(token_end_ - position_);"
  "const auto left = static_cast<std::size_t>(token_end_ - position_) + 1;")
# A number cut in two by a piece's end is read as two.
triton_fast_planted_bug(split_number fuzz_response ${reader} "if (shift_ != 0) return false;" "")
# Memory taken on the word of a length.
triton_fast_planted_bug(
  eager fuzz_response ${reader} "std::min(whole, kEagerSize)" "std::min(whole, 2 * kEagerSize)")
# Lengths not held against what is left.
triton_fast_planted_bug(
  length fuzz_response ${reader} "if (size > frame_end() - position_) {" "if (false) {")
# A walk over a message that loses its way.
triton_fast_planted_bug(
  entries fuzz_response src/wire/entries.cpp "size = 4;" "size = 8;")
# A payload that is too long for its shape.
triton_fast_planted_bug(
  payload_size fuzz_response ${reader} "expected * size != payload.size"
  "expected * size > payload.size")
# Text that is not looked at.
triton_fast_planted_bug(
  text fuzz_response ${reader} "if (!is_utf8({reinterpret_cast" "if (text_->size() < 4 && !is_utf8({reinterpret_cast")
# A shape that no array can have, for an output in shared memory.
triton_fast_planted_bug(
  negative_shape fuzz_response ${reader} "if (dimension < 0) return false;"
  "if (dimension < 0) continue;")
# The wrong name for what is broken, in a message that has no envelope.
triton_fast_planted_bug(
  envelope fuzz_response ${reader} "const bool outside = enveloped_ && depth_ <= 1;"
  "const bool outside = depth_ <= 1;")
# The text of an envelope that is not looked at.
triton_fast_planted_bug(
  envelope_text fuzz_response ${reader} "if (!is_utf8({reinterpret_cast"
  "if (text_ != &error_message_ && !is_utf8({reinterpret_cast")
# Reading past the end of a BYTES tensor.
triton_fast_planted_bug(
  element fuzz_strings src/wire/strings.cpp "if (size > encoded.size - kPrefix) return false;"
  "if (size > encoded.size) return false;")
# Surrogates let through.
triton_fast_planted_bug(
  surrogate fuzz_strings src/wire/strings.cpp "if (lead == 0xed) high = 0x9f;" "")
# Two bytes reserved where three are written.
triton_fast_planted_bug(
  ucs4_size fuzz_strings src/wire/strings.cpp "c < 0x800 ? 2 : c < 0x10000"
  "c < 0x900 ? 2 : c < 0x10000")
# A gather list that repeats the tags of earlier payloads.
triton_fast_planted_bug(
  gather fuzz_request src/wire/request_writer.cpp "begin = end;" "begin = fixed;")
# The length of a negative dimension, wrong.
triton_fast_planted_bug(
  shape_size fuzz_request src/wire/request_writer.cpp "shape_size += varint_size("
  "shape_size += varint_size(INT64_MAX & ")

if(TARGET triton_fast_nghttp2)
  set(session src/http2/session.cpp)
  set(heads src/http2/frame_heads.cpp)

  # A prefix that is cut in two is read past its piece.
  triton_fast_planted_bug(
    prefix fuzz_session ${session}
    "std::min(size, sizeof stream.message_prefix_ - stream.prefix_size_)"
    "sizeof stream.message_prefix_ - stream.prefix_size_")
  # The head of the next frame, taken for the tensor's.
  triton_fast_planted_bug(
    next_head fuzz_session ${session} "place.size = std::min(place.size, left);" "")
  # A second message goes to the sink of the first.
  triton_fast_planted_bug(
    two_messages fuzz_session ${session} "++stream.messages_ > 1" "++stream.messages_ > 2")
  # A message that was cut off passes for whole.
  triton_fast_planted_bug(
    cut_off fuzz_session ${session} "if (stream.message_left_ != 0 || stream.prefix_size_ != 0) {"
    "if (stream.prefix_size_ != 0) {")
  # A call that the end of the connection leaves hanging.
  triton_fast_planted_bug(
    left_hanging fuzz_session ${session} "if (stream->done_) continue;"
    "if (stream->done_ || stream->messages_ != 0) continue;")
  # Sent again though it was answered.
  triton_fast_planted_bug(
    sent_twice fuzz_session ${session}
    "outcome.safe_to_retry = error_code == NGHTTP2_REFUSED_STREAM && !stream.answered();"
    "outcome.safe_to_retry = error_code == NGHTTP2_REFUSED_STREAM;")
  # The same part of a payload in frame after frame.
  triton_fast_planted_bug(
    same_part fuzz_session ${session} "stream->offset_ += size;"
    "stream->offset_ += size < 16384 ? size : size - 1;")
  # The caller's memory, given back while some of it is still to be sent.
  triton_fast_planted_bug(
    borrowed fuzz_session ${session} "++session.borrowed_;" "session.borrowed_ = 1;")
  # What is left of a call that was answered early, read on.
  triton_fast_planted_bug(
    read_on fuzz_session ${session} "if (stream->done_ || (stream->left_ == 0 &&"
    "if ((stream->left_ == 0 &&")
  # A call that is forgotten before its prefix is sent.
  triton_fast_planted_bug(
    prefix_gone fuzz_session ${session} "if (stream->lent_ == 0) {" "if (true) {")
  # A stream that ends before its last message does.
  triton_fast_planted_bug(
    early_end fuzz_session ${session} "if (stream->left_ == size && stream->half_closed_)"
    "if (stream->half_closed_)")
  # A message over one that is not sent yet.
  triton_fast_planted_bug(
    overlapping fuzz_session ${session} "if (!stream->listed() || stream->lent() ||"
    "if (!stream->listed() ||")
  # An end that nobody is told of.
  triton_fast_planted_bug(
    untold fuzz_session ${session} "  stream.done_ = true;
  note(stream);
}

void Session::fail(" "  stream.done_ = true;
}

void Session::fail(")
  # News of a call that is forgotten.
  triton_fast_planted_bug(
    old_news fuzz_session ${session} "if (stream->noted_) news_.erase("
    "if (stream->noted_ && stream->lent()) news_.erase(")
  # An escape that is cut off at the end of its text.
  triton_fast_planted_bug(
    escape fuzz_session src/http2/status.cpp "text[i] == '%' && i + 2 < text.size()"
    "text[i] == '%' && i < text.size()")
  # A head that has not come whole.
  triton_fast_planted_bug(
    head fuzz_session ${heads} "rest >= kHead)" "rest >= kHead - 1)")
endif()

get_property(planted_list GLOBAL PROPERTY planted_list)
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/planted/list" "${planted_list}")
