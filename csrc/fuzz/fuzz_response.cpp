// Fuzzes ResponseReader with bytes that a hostile or broken server might send.
//
// An input is four bytes of setting and then the message:
//   0  how the message is cut into pieces; with the highest bit it is a stream's, in an envelope
//   1  which outputs the caller wants in memory of its own, or asked for in shared memory
//   2  whether the announced size is the real one, and if not, what it is
//   3  seed of the cuts, where they are at random
//
// Every message is read twice, in one piece and in pieces. What must hold is in check_results(),
// check_alike(), check_memory() and check_entries().
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "memory.hpp"
#include "require.hpp"
#include "triton_fast/error.hpp"
#include "triton_fast/wire/entries.hpp"
#include "triton_fast/wire/response_reader.hpp"
#include "triton_fast/wire/strings.hpp"

namespace {

using memory::Measurement;
using triton_fast::ConstBuffer;
using triton_fast::MutableBuffer;
using triton_fast::TensorError;
using triton_fast::WireError;
using triton_fast::wire::count_elements;
using triton_fast::wire::count_entries;
using triton_fast::wire::Datatype;
using triton_fast::wire::datatype_from_name;
using triton_fast::wire::element_size;
using triton_fast::wire::is_utf8;
using triton_fast::wire::next_element;
using triton_fast::wire::Output;
using triton_fast::wire::Parameter;
using triton_fast::wire::ResponseReader;

constexpr std::size_t kSettingSize = 4;
constexpr std::uint8_t kUntouched = 0xa5;

/// Memory is in proportion to what has come: at worst, two bytes make an output, whose record is
/// copied as the list of them grows. On the word of a length alone no more than 32 MiB are taken.
void check_memory(std::size_t come, std::uint64_t announced) {
  constexpr std::size_t kFactor = 512;
  constexpr std::size_t kBase = 4096;
  constexpr std::uint64_t kEager = std::uint64_t{32} << 20;
  REQUIRE(memory::peak <=
          kBase + kFactor * come + (announced > come ? std::min(announced, kEager) : 0));
}

// ---- Setting
// -------------------------------------------------------------------------------------

struct Wanted {
  const char* name;
  Datatype datatype;
  std::vector<std::int64_t> shape;
  std::size_t byte_size;
};

// The corpus (make_corpus.py) has outputs of these names. The last two bits of the setting ask for
// shared memory.
const std::vector<Wanted>& wanted() {
  static const std::vector<Wanted> table = {
      {"out", Datatype::kFp32, {1, 4}, 16}, {"int", Datatype::kInt32, {2, 2}, 16},
      {"text", Datatype::kBytes, {2}, 16},  {"byte", Datatype::kInt8, {3}, 3},
      {"none", Datatype::kFp32, {0}, 0},    {"half", Datatype::kFp16, {2, 1}, 4},
  };
  return table;
}
const char* const kShared[] = {"shared", "out"};

/// Memory for outputs, as exact blocks: a byte too much is a finding.
class Destinations {
 public:
  Destinations(ResponseReader& reader, std::uint8_t chosen) {
    for (std::size_t i = 0; i < wanted().size(); ++i) {
      blocks_.emplace_back();
      if ((chosen >> i & 1) == 0) continue;
      const Wanted& output = wanted()[i];
      blocks_.back().reset(new std::uint8_t[output.byte_size]);
      std::fill_n(blocks_.back().get(), output.byte_size, kUntouched);
      reader.place(output.name, output.datatype, output.shape,
                   {blocks_.back().get(), output.byte_size});
    }
    for (std::size_t i = 0; i < std::size(kShared); ++i) {
      if ((chosen >> (6 + i) & 1) != 0) reader.expect_shared_memory(kShared[i]);
    }
  }

  const std::uint8_t* block(std::size_t index) const { return blocks_[index].get(); }

 private:
  std::vector<std::unique_ptr<std::uint8_t[]>> blocks_;
};

std::uint64_t announced_size(std::uint8_t choice, std::size_t real) {
  if (choice < 0xe0) return real;
  const std::uint64_t size = real;
  const std::uint64_t sizes[] = {0,          size / 2, size - std::min<std::uint64_t>(size, 1),
                                 size + 1,   size * 2, std::uint64_t{1} << 20,
                                 0x7fffffff, 1u << 31, UINT64_MAX};
  return sizes[choice % std::size(sizes)];
}

/// Where the pieces end, from the setting.
class Cuts {
 public:
  Cuts(std::uint8_t pattern, std::uint8_t seed) : pattern_(pattern % 8), random_(seed + 1u) {}

  std::size_t next(std::size_t left) {
    static constexpr std::size_t kSizes[] = {1, 2, 3, 4, 7, 16, 64};
    const std::size_t size = pattern_ < std::size(kSizes) ? kSizes[pattern_] : random_() % 24;
    return std::min(size, left);  // 0 now and then: an empty piece must do no harm
  }

 private:
  std::size_t pattern_;
  std::minstd_rand random_;
};

// ---- Reading
// -------------------------------------------------------------------------------------

enum class Outcome { kRead, kWireError, kTensorError };

struct Reading {
  ResponseReader reader;
  Outcome outcome = Outcome::kRead;
  std::string error;
};

template <typename Feed>
void read(Reading& reading, bool enveloped, std::uint64_t announced, const Feed& feed) {
  try {
    if (enveloped) reading.reader.expect_envelope();
    reading.reader.begin(announced);
    feed(reading.reader);
    reading.reader.finish();
  } catch (const WireError& error) {
    reading.outcome = Outcome::kWireError;
    reading.error = error.what();
  } catch (const TensorError& error) {
    reading.outcome = Outcome::kTensorError;
    reading.error = error.what();
  }
}

/// Feeds pieces of a copy, of which nothing is readable before its turn and nothing is left after.
void feed_pieces(ResponseReader& reader, std::vector<std::uint8_t>& copy, Cuts cuts) {
  for (std::size_t at = 0; at != copy.size();) {
    const std::size_t size = cuts.next(copy.size() - at);
#ifdef TRITON_FAST_FUZZ_ASAN
    ASAN_UNPOISON_MEMORY_REGION(copy.data() + at, size);
#endif
    // Written where it belongs, as far as that is known.
    const MutableBuffer place = reader.landing();
    const std::size_t landed = std::min(size, place.size);
    std::copy_n(copy.data() + at, landed, place.data);
    if (landed != 0) reader.feed({place.data, landed});
    reader.feed({copy.data() + at + landed, size - landed});
    if (size != 0) std::memset(copy.data() + at, 0xee, size);
    at += size;
  }
}

// ---- What must hold
// --------------------------------------------------------------------------------

bool is_text(const std::string& text) {
  return is_utf8({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
}

void check_parameters(const std::vector<Parameter>& parameters) {
  for (const Parameter& parameter : parameters) {
    REQUIRE(is_text(parameter.key) && is_text(parameter.text));
    REQUIRE(parameter.kind == Parameter::Kind::kString || parameter.text.empty());
    REQUIRE(parameter.kind != Parameter::Kind::kBool || parameter.bits <= 1);
  }
}

void check_elements(const Output& output, ConstBuffer payload) {
  unsigned __int128 expected = 1;
  for (const std::int64_t dimension : output.shape) {
    expected *= static_cast<std::uint64_t>(dimension);
    if (expected > UINT64_MAX) expected = UINT64_MAX;  // only a zero can still make it right
  }
  if (output.datatype != Datatype::kBytes) {
    REQUIRE(expected * element_size(output.datatype) == payload.size);
    return;
  }
  std::size_t count = 0;
  REQUIRE(count_elements(payload, count) && count == expected);
  const std::uint8_t* const end = payload.data + payload.size;
  unsigned sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const ConstBuffer element = next_element(payload);
    for (std::size_t k = 0; k < element.size; ++k) sum += element.data[k];
  }
  volatile unsigned keep = sum;  // so that the bytes are really read
  static_cast<void>(keep);
  REQUIRE(payload.size == 0 && payload.data == end);
}

void check_output(const Output& output, const Destinations& destinations, std::uint8_t chosen) {
  REQUIRE(is_text(output.name));
  REQUIRE(output.datatype != Datatype::kUnknown);
  REQUIRE(datatype_from_name(output.datatype_name) == output.datatype);
  REQUIRE(output.shape.size() <= 32);
  for (const std::int64_t dimension : output.shape) REQUIRE(dimension >= 0);
  check_parameters(output.parameters);

  ConstBuffer payload{output.payload.data(), output.payload.size()};
  if (output.source == Output::Source::kSharedMemory) {
    REQUIRE(payload.size == 0);
    bool asked = false;
    for (std::size_t i = 0; i < std::size(kShared); ++i) {
      asked = asked || ((chosen >> (6 + i) & 1) != 0 && output.name == kShared[i]);
    }
    REQUIRE(asked);
    return;
  }
  bool placed = false;
  for (std::size_t i = 0; i < wanted().size(); ++i) {
    const Wanted& place = wanted()[i];
    if (destinations.block(i) == nullptr || output.name != place.name) continue;
    REQUIRE(output.datatype == place.datatype && output.shape == place.shape);
    if (place.datatype == Datatype::kBytes) continue;
    placed = true;
    REQUIRE(payload.size == 0);
    payload = {destinations.block(i), place.byte_size};
  }
  REQUIRE(placed == (output.source == Output::Source::kPlaced));
  check_elements(output, payload);
}

void check_results(Reading& reading, bool enveloped, const Destinations& destinations,
                   std::uint8_t chosen) {
  if (reading.outcome != Outcome::kRead) {
    const auto starts = [&](const char* text) { return reading.error.rfind(text, 0) == 0; };
    REQUIRE(reading.outcome == Outcome::kWireError
                ? starts("ModelInferResponse") || (enveloped && starts("ModelStreamInferResponse"))
                : starts("out['"));
    REQUIRE(is_text(reading.error));
    // Names of the peer's are cut short; the shape and a name that the caller gave are not.
    REQUIRE(reading.error.size() < 2048);
    return;
  }
  ResponseReader& reader = reading.reader;
  REQUIRE(is_text(reader.error_message()) && (enveloped || reader.error_message().empty()));
  REQUIRE(is_text(reader.model_name()) && is_text(reader.model_version()) && is_text(reader.id()));
  check_parameters(reader.parameters());
  for (std::size_t i = 0; i < reader.outputs().size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      REQUIRE(reader.outputs()[k].name != reader.outputs()[i].name);
    }
    check_output(reader.outputs()[i], destinations, chosen);
  }
  // What was not placed was not written to.
  for (std::size_t i = 0; i < wanted().size(); ++i) {
    if (destinations.block(i) == nullptr) continue;
    bool placed = false;
    for (const Output& output : reader.outputs()) {
      placed =
          placed || (output.source == Output::Source::kPlaced && output.name == wanted()[i].name);
    }
    for (std::size_t k = 0; !placed && k < wanted()[i].byte_size; ++k) {
      REQUIRE(destinations.block(i)[k] == kUntouched);
    }
  }
}

void check_alike(const std::vector<Parameter>& one, const std::vector<Parameter>& two) {
  REQUIRE(one.size() == two.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    REQUIRE(one[i].key == two[i].key && one[i].kind == two[i].kind);
    REQUIRE(one[i].bits == two[i].bits && one[i].text == two[i].text);
  }
}

void check_alike(Reading& one, Reading& two) {
  REQUIRE(one.outcome == two.outcome);
  REQUIRE(one.error == two.error);
  if (one.outcome != Outcome::kRead) return;
  REQUIRE(one.reader.error_message() == two.reader.error_message());
  REQUIRE(one.reader.model_name() == two.reader.model_name());
  REQUIRE(one.reader.model_version() == two.reader.model_version());
  REQUIRE(one.reader.id() == two.reader.id());
  check_alike(one.reader.parameters(), two.reader.parameters());
  REQUIRE(one.reader.outputs().size() == two.reader.outputs().size());
  for (std::size_t i = 0; i < one.reader.outputs().size(); ++i) {
    const Output& a = one.reader.outputs()[i];
    const Output& b = two.reader.outputs()[i];
    REQUIRE(a.name == b.name && a.datatype_name == b.datatype_name && a.shape == b.shape);
    REQUIRE(a.source == b.source && a.payload.size() == b.payload.size());
    check_alike(a.parameters, b.parameters);
    REQUIRE(a.payload.size() == 0 ||
            std::memcmp(a.payload.data(), b.payload.data(), a.payload.size()) == 0);
  }
}

void check_alike(const Destinations& one, const Destinations& two) {
  for (std::size_t i = 0; i < wanted().size(); ++i) {
    const std::size_t size = wanted()[i].byte_size;
    if (one.block(i) == nullptr || size == 0) continue;
    REQUIRE(std::memcmp(one.block(i), two.block(i), size) == 0);
  }
}

/// The walk without a schema sees at least what the reader has made, and stops where it is told to.
void check_entries(ConstBuffer message, Reading& reading) {
  const std::size_t found = count_entries(message, SIZE_MAX - 1);
  REQUIRE(found <= 5 * message.size);  // two bytes each, nine messages deep
  REQUIRE(count_entries(message, found) == found);
  REQUIRE(found == 0 || count_entries(message, found - 1) == found);
  if (reading.outcome != Outcome::kRead) return;
  std::size_t made = reading.reader.outputs().size() + reading.reader.parameters().size();
  for (const Output& output : reading.reader.outputs()) made += output.parameters.size();
  REQUIRE(found >= made);
}

// ---- How much of it gets through
// -----------------------------------------------------------------

std::uint64_t inputs = 0;
std::uint64_t accepted = 0;

void print_share() {
  std::fprintf(stderr, "responses read without an error: %llu of %llu\n",
               static_cast<unsigned long long>(accepted), static_cast<unsigned long long>(inputs));
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  memory::install();
  std::atexit(print_share);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < kSettingSize) return -1;
  const std::uint8_t* const message = data + kSettingSize;
  const std::size_t message_size = size - kSettingSize;
  const bool enveloped = (data[0] & 0x80) != 0;
  const std::uint64_t announced = announced_size(data[2], message_size);

  Reading whole;
  const Destinations whole_destinations(whole.reader, data[1]);
  {
    const Measurement measurement;
    read(whole, enveloped, announced,
         [&](ResponseReader& reader) { reader.feed({message, message_size}); });
  }
  check_memory(message_size, announced);
  check_results(whole, enveloped, whole_destinations, data[1]);
  check_entries({message, message_size}, whole);

  Reading pieces;
  const Destinations pieces_destinations(pieces.reader, data[1]);
  std::vector<std::uint8_t> copy(message, message + message_size);
#ifdef TRITON_FAST_FUZZ_ASAN
  ASAN_POISON_MEMORY_REGION(copy.data(), copy.size());
#endif
  {
    const Measurement measurement;
    read(pieces, enveloped, announced,
         [&](ResponseReader& reader) { feed_pieces(reader, copy, Cuts(data[0], data[3])); });
  }
#ifdef TRITON_FAST_FUZZ_ASAN
  ASAN_UNPOISON_MEMORY_REGION(copy.data(), copy.size());
#endif
  check_memory(message_size, announced);
  check_results(pieces, enveloped, pieces_destinations, data[1]);

  check_alike(whole, pieces);
  if (whole.outcome == Outcome::kRead) {
    check_alike(whole_destinations, pieces_destinations);
    ++accepted;
  }
  ++inputs;
  return 0;
}
