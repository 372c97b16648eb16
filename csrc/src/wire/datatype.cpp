// The table of Triton's datatypes.
#include "triton_fast/wire/datatype.hpp"

namespace triton_fast::wire {
namespace {

struct Entry {
  std::string_view name;
  Datatype datatype;
  std::size_t size;
};

constexpr Entry kTable[] = {
    {"BOOL", Datatype::kBool, 1},     {"INT8", Datatype::kInt8, 1},
    {"INT16", Datatype::kInt16, 2},   {"INT32", Datatype::kInt32, 4},
    {"INT64", Datatype::kInt64, 8},   {"UINT8", Datatype::kUint8, 1},
    {"UINT16", Datatype::kUint16, 2}, {"UINT32", Datatype::kUint32, 4},
    {"UINT64", Datatype::kUint64, 8}, {"FP16", Datatype::kFp16, 2},
    {"BF16", Datatype::kBf16, 2},     {"FP32", Datatype::kFp32, 4},
    {"FP64", Datatype::kFp64, 8},     {"BYTES", Datatype::kBytes, 0},
};

}  // namespace

Datatype datatype_from_name(std::string_view name) noexcept {
  for (const Entry& entry : kTable) {
    if (entry.name == name) return entry.datatype;
  }
  return Datatype::kUnknown;
}

std::string_view datatype_name(Datatype datatype) noexcept {
  for (const Entry& entry : kTable) {
    if (entry.datatype == datatype) return entry.name;
  }
  return "?";
}

std::size_t element_size(Datatype datatype) noexcept {
  for (const Entry& entry : kTable) {
    if (entry.datatype == datatype) return entry.size;
  }
  return 0;
}

}  // namespace triton_fast::wire
