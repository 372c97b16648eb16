// The computing backend of the test server: a few small models, told apart by their names.
//
// Owns what Triton calls the backend "triton_fast_computing". Being C++, its models need neither a
// Python in the server nor a process each.
//
// Compiled on demand by triton_fast.testing.

#include <cstdio>
#include <cstdlib>

#include "backend.hpp"

namespace triton_fast {
namespace {

/// OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1.
TRITONSERVER_Error* AddSub(Call& call) {
  const Input* left = nullptr;
  const Input* right = nullptr;
  RETURN_IF_ERROR(call.Find("INPUT0", &left));
  RETURN_IF_ERROR(call.Find("INPUT1", &right));
  if (left->shape != right->shape) {
    return Error(kInvalidArgument, "INPUT0 and INPUT1 must have the same shape");
  }
  std::vector<float> minuend;
  std::vector<float> subtrahend;
  RETURN_IF_ERROR(left->Read(&minuend));
  RETURN_IF_ERROR(right->Read(&subtrahend));
  std::vector<float> sum(minuend.size());
  std::vector<float> difference(minuend.size());
  for (size_t index = 0; index < minuend.size(); ++index) {
    sum[index] = minuend[index] + subtrahend[index];
    difference[index] = minuend[index] - subtrahend[index];
  }
  RETURN_IF_ERROR(call.Write("OUTPUT0", kFp32, left->shape, sum));
  return call.Write("OUTPUT1", kFp32, left->shape, difference);
}

/// TWICE = ROW, ROW; TILED = COUNT rows, each ROW.
TRITONSERVER_Error* Variable(Call& call) {
  const Input* row = nullptr;
  const Input* count = nullptr;
  RETURN_IF_ERROR(call.Find("ROW", &row));
  RETURN_IF_ERROR(call.Find("COUNT", &count));
  std::vector<float> values;
  int32_t rows = 0;
  RETURN_IF_ERROR(row->Read(&values));
  RETURN_IF_ERROR(count->ReadOne(&rows));
  if (rows < 0) return Error(kInvalidArgument, "COUNT must not be negative");
  const int64_t size = static_cast<int64_t>(values.size());
  const auto repeat = [&values](int32_t times) {
    std::vector<float> repeated;
    for (int32_t time = 0; time < times; ++time) {
      repeated.insert(repeated.end(), values.begin(), values.end());
    }
    return repeated;
  };
  RETURN_IF_ERROR(call.Write("TWICE", kFp32, {2 * size}, repeat(2)));
  return call.Write("TILED", kFp32, {rows, size}, repeat(rows));
}

/// UPPER = TEXT with ASCII letters in upper case; LENGTH = bytes of each.
TRITONSERVER_Error* Strings(Call& call) {
  const Input* text = nullptr;
  RETURN_IF_ERROR(call.Find("TEXT", &text));
  std::vector<std::string> values;
  RETURN_IF_ERROR(text->Read(&values));
  std::vector<int32_t> lengths;
  for (std::string& value : values) {
    lengths.push_back(static_cast<int32_t>(value.size()));
    for (char& letter : value) {
      if (letter >= 'a' && letter <= 'z') letter = static_cast<char>(letter - 'a' + 'A');
    }
  }
  RETURN_IF_ERROR(call.Write("UPPER", text->shape, values));
  return call.Write("LENGTH", kInt32, text->shape, lengths);
}

/// PARSED = TEXT as numbers; WRITTEN = VALUE as text that reads back as the same number.
TRITONSERVER_Error* TextNumbers(Call& call) {
  const Input* text = nullptr;
  const Input* value = nullptr;
  RETURN_IF_ERROR(call.Find("TEXT", &text));
  RETURN_IF_ERROR(call.Find("VALUE", &value));
  std::vector<std::string> texts;
  std::vector<double> values;
  RETURN_IF_ERROR(text->Read(&texts));
  RETURN_IF_ERROR(value->Read(&values));
  std::vector<double> parsed;
  for (const std::string& item : texts) {
    char* end = nullptr;
    parsed.push_back(std::strtod(item.c_str(), &end));
    if (item.empty() || end != item.c_str() + item.size()) {
      return Error(kInvalidArgument, "'" + item + "' is not a number");
    }
  }
  std::vector<std::string> written;
  for (const double number : values) {
    char digits[32];
    std::snprintf(digits, sizeof(digits), "%.17g", number);
    written.emplace_back(digits);
  }
  RETURN_IF_ERROR(call.Write("PARSED", kFp64, text->shape, parsed));
  return call.Write("WRITTEN", value->shape, written);
}

}  // namespace

TRITONSERVER_Error* Answer(Call& call) {
  if (call.model == "add_sub") return AddSub(call);
  if (call.model == "variable") return Variable(call);
  if (call.model == "strings") return Strings(call);
  if (call.model == "text_numbers") return TextNumbers(call);
  return Error(kInvalidArgument, "no computation is called '" + call.model + "'");
}

}  // namespace triton_fast

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                              TRITONBACKEND_Request** requests,
                                                              uint32_t count) {
  return triton_fast::ServeEach(instance, requests, count);
}
