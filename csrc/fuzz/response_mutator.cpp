// A mutator that knows the shape of ModelInferResponse, and of the envelope that it has in a
// stream: it takes a message apart, changes one or two fields, and puts it together with lengths
// that are right again, mostly. Left to libFuzzer's own mutations alone, nearly every input dies of
// its first broken length.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "triton_fast/wire/datatype.hpp"
#include "triton_fast/wire/varint.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

using triton_fast::wire::append_tag;
using triton_fast::wire::append_varint;
using triton_fast::wire::datatype_from_name;
using triton_fast::wire::element_size;
using triton_fast::wire::WireType;

constexpr std::size_t kSettingSize = 4;

enum class Message { kEnvelope, kResponse, kOutput, kContents, kEntry, kValue, kNone };

/// Which message, if any, a length-delimited field of the schema holds.
Message inside(Message message, std::uint32_t field) {
  switch (message) {
    case Message::kEnvelope:
      return field == 2 ? Message::kResponse : Message::kNone;
    case Message::kResponse:
      return field == 4 ? Message::kEntry : field == 5 ? Message::kOutput : Message::kNone;
    case Message::kOutput:
      return field == 4 ? Message::kEntry : field == 5 ? Message::kContents : Message::kNone;
    case Message::kEntry:
      return field == 2 ? Message::kValue : Message::kNone;
    default:
      return Message::kNone;
  }
}

struct Field {
  std::uint32_t number = 0;
  std::uint32_t wire_type = 0;
  std::uint64_t value = 0;    // of a varint or a fixed number
  std::string bytes;          // of a length-delimited field that is no message
  std::vector<Field> fields;  // of one that is
  Message message = Message::kNone;
  std::int64_t length_error = 0;  // what to add to its length
};
using Fields = std::vector<Field>;

bool parse_varint(const std::string& from, std::size_t& at, std::uint64_t& value) {
  value = 0;
  for (unsigned shift = 0; shift < 70 && at < from.size(); shift += 7) {
    const auto byte = static_cast<std::uint8_t>(from[at++]);
    if (shift < 64) value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

/// Takes a message apart as far as it can be.
Fields parse(const std::string& from, Message message) {
  Fields fields;
  std::size_t at = 0;
  while (at < from.size()) {
    Field field;
    std::uint64_t tag = 0;
    if (!parse_varint(from, at, tag) || tag > 0xffffffff || tag < 8) break;
    field.number = static_cast<std::uint32_t>(tag >> 3);
    field.wire_type = static_cast<std::uint32_t>(tag & 7);
    if (field.wire_type == triton_fast::wire::kVarintType) {
      if (!parse_varint(from, at, field.value)) break;
    } else if (field.wire_type == triton_fast::wire::kFixed64Type ||
               field.wire_type == triton_fast::wire::kFixed32Type) {
      const std::size_t size = field.wire_type == triton_fast::wire::kFixed64Type ? 8 : 4;
      if (from.size() - at < size) break;
      std::memcpy(&field.value, from.data() + at, size);
      at += size;
    } else if (field.wire_type == triton_fast::wire::kLengthType) {
      std::uint64_t size = 0;
      if (!parse_varint(from, at, size)) break;
      const auto taken = static_cast<std::size_t>(std::min<std::uint64_t>(size, from.size() - at));
      field.bytes = from.substr(at, taken);
      field.message = inside(message, field.number);
      if (field.message != Message::kNone) {
        field.fields = parse(field.bytes, field.message);
        field.bytes.clear();
      }
      at += taken;
    }
    fields.push_back(std::move(field));
  }
  return fields;
}

void render(const Fields& fields, std::string& out) {
  for (const Field& field : fields) {
    append_tag(out, field.number, static_cast<WireType>(field.wire_type));
    if (field.wire_type == triton_fast::wire::kVarintType) {
      append_varint(out, field.value);
    } else if (field.wire_type == triton_fast::wire::kFixed64Type) {
      out.append(reinterpret_cast<const char*>(&field.value), 8);
    } else if (field.wire_type == triton_fast::wire::kFixed32Type) {
      out.append(reinterpret_cast<const char*>(&field.value), 4);
    } else if (field.wire_type == triton_fast::wire::kLengthType) {
      std::string content = field.bytes;
      render(field.fields, content);
      append_varint(out, content.size() + static_cast<std::uint64_t>(field.length_error));
      out += content;
    }
  }
}

/// One mutation after the other, on one message.
class Mutation {
 public:
  Mutation(Fields& message, Message kind, unsigned seed)
      : message_(message), kind_(kind), random_(seed) {}

  void apply() {
    switch (below(12)) {
      case 0:
        return remove();
      case 1:
        return duplicate();
      case 2:
        return swap();
      case 3:
        return break_length();
      case 4:
        return insert();
      case 5:
        return add_output();
      case 6:
        return change_shape();
      case 7:
        return pack();
      case 8:
      case 9:
        return make_sound();
      default:
        return change();
    }
  }

 private:
  std::size_t below(std::size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  /// The fields of one message.
  struct List {
    Fields* fields;
    Message message;
  };

  void collect(Fields& fields, Message message, std::vector<List>& lists) {
    lists.push_back({&fields, message});
    for (Field& field : fields) {
      if (field.message != Message::kNone) collect(field.fields, field.message, lists);
    }
  }

  /// That of the response or of any message in it.
  List some_list() {
    std::vector<List> lists;
    collect(message_, kind_, lists);
    return lists[below(lists.size())];
  }

  Field* some_field() {
    Fields& list = *some_list().fields;
    return list.empty() ? nullptr : &list[below(list.size())];
  }

  Fields::iterator place_in(Fields& list) {
    return list.begin() + static_cast<std::ptrdiff_t>(below(list.size() + 1));
  }

  void remove() {
    Fields& list = *some_list().fields;
    if (!list.empty()) list.erase(list.begin() + static_cast<std::ptrdiff_t>(below(list.size())));
  }

  void duplicate() {
    Fields& list = *some_list().fields;
    if (list.empty()) return;
    const Field copy = list[below(list.size())];
    list.insert(place_in(list), copy);
  }

  void swap() {
    Fields& list = *some_list().fields;
    if (list.size() > 1) std::swap(list[below(list.size())], list[below(list.size())]);
  }

  void break_length() {
    static constexpr std::int64_t kErrors[] = {-1, 1, 4, 127, 1 << 16, 0x7fffff00, INT64_MAX};
    Field* const field = some_field();
    if (field != nullptr) field->length_error = kErrors[below(std::size(kErrors))];
  }

  std::uint64_t some_number() {
    static constexpr std::uint64_t kNumbers[] = {0,
                                                 1,
                                                 2,
                                                 3,
                                                 4,
                                                 7,
                                                 8,
                                                 16,
                                                 31,
                                                 32,
                                                 33,
                                                 127,
                                                 128,
                                                 255,
                                                 256,
                                                 0x7fffffff,
                                                 0x80000000,
                                                 0xffffffff,
                                                 0x7fffffffffffffff,
                                                 0x8000000000000000,
                                                 0xffffffffffffffff,
                                                 0xffffffff80000000};
    return kNumbers[below(std::size(kNumbers))];
  }

  std::string some_text() {
    static const char* const kTexts[] = {
        "out",    "int",    "text",        "byte",         "none",
        "half",   "shared", "BOOL",        "INT8",         "INT16",
        "INT32",  "INT64",  "UINT8",       "UINT16",       "UINT32",
        "UINT64", "FP16",   "BF16",        "FP32",         "FP64",
        "BYTES",  "",       "caf\xc3\xa9", "\xed\xa0\x80", "\xf4\x90\x80\x80",
        "\xff"};
    return kTexts[below(std::size(kTexts))];
  }

  static Field text(std::uint32_t number, std::string value) {
    Field field;
    field.number = number;
    field.wire_type = triton_fast::wire::kLengthType;
    field.bytes = std::move(value);
    return field;
  }

  /// A field of any kind, at random in a random place. Groups come of it too, mostly unbalanced.
  void insert() {
    const List place = some_list();
    Fields& list = *place.fields;
    Field field;
    field.number = static_cast<std::uint32_t>(1 + below(9));
    field.wire_type = static_cast<std::uint32_t>(below(7));
    field.value = some_number();
    if (field.wire_type == triton_fast::wire::kLengthType) {
      field.message = inside(place.message, field.number);
      if (field.message == Message::kNone) {
        field.bytes = below(2) == 0 ? some_text() : std::string(below(20), '\1');
      }
    }
    if (field.wire_type == triton_fast::wire::kStartGroupType) {
      Field end = field;
      end.wire_type = triton_fast::wire::kEndGroupType;
      list.insert(place_in(list), end);
    }
    list.insert(place_in(list), field);
  }

  void change() {
    Field* const field = some_field();
    if (field == nullptr) return;
    if (field->wire_type == triton_fast::wire::kLengthType) {
      if (field->message != Message::kNone) return;
      if (below(3) == 0) {
        field->bytes = some_text();
        return;
      }
      std::string bytes = field->bytes;
      bytes.resize(bytes.size() + 16);
      bytes.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(bytes.data()),
                                    field->bytes.size(), bytes.size()));
      field->bytes = std::move(bytes);
    } else if (below(2) == 0) {
      field->value = some_number();
    } else {
      field->value ^= std::uint64_t{1} << below(64);
    }
  }

  /// Repeated numbers: from packed to one by one.
  void pack() {
    Fields& list = *some_list().fields;
    for (std::size_t i = 0; i < list.size(); ++i) {
      const bool is_shape = list[i].number == 3;
      if (list[i].wire_type != triton_fast::wire::kLengthType || list[i].bytes.empty()) continue;
      if (!is_shape && below(3) != 0) continue;
      const std::string packed = list[i].bytes;
      Field one;
      one.number = list[i].number;
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
      for (std::size_t at = 0; at < packed.size();) {
        if (!parse_varint(packed, at, one.value)) break;
        list.insert(list.begin() + static_cast<std::ptrdiff_t>(i++), one);
      }
      return;
    }
  }

  /// The fields of the response, whatever it is in.
  Fields& response() {
    if (kind_ == Message::kResponse) return message_;
    for (Field& field : message_) {
      if (field.message == Message::kResponse) return field.fields;
    }
    message_.push_back(text(2, ""));
    message_.back().message = Message::kResponse;
    return message_.back().fields;
  }

  std::vector<Field*> outputs() {
    std::vector<Field*> found;
    for (Field& field : response()) {
      if (field.message == Message::kOutput) found.push_back(&field);
    }
    return found;
  }

  void change_shape() {
    const std::vector<Field*> all = outputs();
    if (all.empty()) return;
    Field* const output = all[below(all.size())];
    std::string packed;
    for (std::size_t rank = below(4); rank != 0; --rank) append_varint(packed, below(4));
    if (below(16) == 0) append_varint(packed, some_number());
    for (Field& field : output->fields) {
      if (field.number == 3) {
        field.wire_type = triton_fast::wire::kLengthType;
        field.bytes = packed;
        return;
      }
    }
    output->fields.push_back(text(3, packed));
  }

  void add_output() {
    Field output = text(5, "");
    output.message = Message::kOutput;
    output.fields.push_back(text(1, some_text()));
    output.fields.push_back(text(2, some_text()));
    std::string shape;
    for (std::size_t rank = below(3); rank != 0; --rank) append_varint(shape, below(4));
    output.fields.push_back(text(3, shape));
    if (below(2) == 0) {
      Field contents = text(5, "");
      contents.message = Message::kContents;
      Field elements = text(static_cast<std::uint32_t>(1 + below(8)), std::string(below(17), '\1'));
      contents.fields.push_back(elements);
      output.fields.push_back(contents);
    } else {
      response().push_back(text(6, std::string(below(17), '\0')));
    }
    response().insert(place_in(response()), output);
  }

  /// Gives every output the raw contents that its datatype and shape ask for.
  void make_sound() {
    std::vector<std::string> raws;
    Fields others;
    for (Field& field : response()) {
      if (field.number == 6 && field.wire_type == triton_fast::wire::kLengthType) {
        raws.push_back(std::move(field.bytes));
      } else {
        others.push_back(std::move(field));
      }
    }
    response() = std::move(others);
    const std::vector<Field*> all = outputs();
    raws.resize(all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      std::uint64_t count = 1;
      std::string datatype;
      for (const Field& field : all[i]->fields) {
        if (field.number == 2) datatype = field.bytes;
        if (field.number != 3) continue;
        std::uint64_t dimension = field.value;
        if (field.wire_type == triton_fast::wire::kVarintType) count *= dimension;
        for (std::size_t at = 0; at < field.bytes.size();) {
          if (!parse_varint(field.bytes, at, dimension)) break;
          count *= dimension;
        }
      }
      count = std::min<std::uint64_t>(count, 64);
      const auto elements = static_cast<std::size_t>(count);
      if (datatype != "BYTES") {
        raws[i].resize(elements * element_size(datatype_from_name(datatype)), '\2');
        continue;
      }
      raws[i].clear();
      for (std::size_t k = 0; k < elements; ++k) {
        const std::string element(below(6), 'x');
        raws[i].push_back(static_cast<char>(element.size()));
        raws[i].append(3, '\0');
        raws[i] += element;
      }
    }
    for (std::string& raw : raws) response().push_back(text(6, std::move(raw)));
  }

  Fields& message_;
  const Message kind_;
  std::minstd_rand random_;
};

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  if (size < kSettingSize || max_size < 16 || random() % 4 == 0) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  if (random() % 8 == 0) {
    const auto which = random() % kSettingSize;
    data[which] = static_cast<std::uint8_t>(random());
    return size;
  }
  const Message kind = (data[0] & 0x80) != 0 ? Message::kEnvelope : Message::kResponse;
  Fields message =
      parse(std::string(reinterpret_cast<char*>(data) + kSettingSize, size - kSettingSize), kind);
  Mutation mutation(message, kind, static_cast<unsigned>(random()));
  do {
    mutation.apply();
  } while (random() % 3 == 0);
  std::string rendered;
  render(message, rendered);
  rendered.resize(std::min(rendered.size(), max_size - kSettingSize));
  std::memcpy(data + kSettingSize, rendered.data(), rendered.size());
  return kSettingSize + rendered.size();
}
