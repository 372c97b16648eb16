// The backend of the test models that take time, notice when they are cancelled, and count that.
//
// Owns what Triton calls the backend "triton_fast_cancellable", and the two counts, which are the
// server process's: of requests that were cancelled while a model had them, and of those that a
// model has now. Its models, told apart by their names:
//
//   - repeat_int32 and square_int32, decoupled: many answers to a request, which come from a thread
//     of the model's own, so that any number of requests is answered at once;
//   - cancellations, which tells the counts;
//   - all others are identities (identity.hpp) that can take time.
//
// Compiled on demand by triton_fast.testing.

#include <atomic>

#include "identity.hpp"
#include "worker.hpp"

namespace triton_fast {
namespace {

constexpr uint32_t kMostMilliseconds = 3'600'000;
// After so many answers at a stretch, other requests have their turn.
constexpr int kTurn = 64;
// Up to so many answers to a request, square_int32 sends them without a pause; of more, which
// nobody wants to wait for, it sends one each millisecond. The server keeps answers for a slow
// reader without bound, and one that is answered at the moment in which it is cancelled may crash
// or hang the server (2.51: its stream handler takes two locks in two orders).
constexpr int32_t kBurst = 20'000;
// How often a request between two answers looks whether it was cancelled.
constexpr std::chrono::milliseconds kStreamCheck{10};
// How long it then waits with its end. The server (2.51) crashes now and then when a stream's
// request ends while it is about to cancel it; this makes it ten times rarer, and leaves none of
// those that were not in the middle of a burst.
constexpr std::chrono::milliseconds kSettling{20};
// What small_queue_fp32 takes when it is not told how long.
constexpr float kSlowSeconds = 0.2F;

std::atomic<int64_t> cancelled_requests{0};
std::atomic<int64_t> running_requests{0};

/// One request of a decoupled model on its way. The request is its own from the first Step() on.
class Stream {
 public:
  Stream(TRITONBACKEND_ModelInstance* instance, Call&& call)
      : instance_(instance), call_(std::move(call)) {
    ++running_requests;
  }

  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  ~Stream() {
    CountAsOver();
    if (factory_ != nullptr) Log(TRITONBACKEND_ResponseFactoryDelete(factory_));
  }

  /// Reads the request.
  TRITONSERVER_Error* Open() {
    const bool repeats = call_.model == "repeat_int32";
    const Input* in = nullptr;
    RETURN_IF_ERROR(call_.Find("IN", &in));
    if (repeats) {
      const Input* delay = nullptr;
      const Input* wait = nullptr;
      uint32_t milliseconds = 0;
      RETURN_IF_ERROR(call_.Find("DELAY", &delay));
      RETURN_IF_ERROR(call_.Find("WAIT", &wait));
      RETURN_IF_ERROR(in->Read(&values_));
      RETURN_IF_ERROR(delay->Read(&delays_));
      RETURN_IF_ERROR(wait->ReadOne(&milliseconds));
      if (delays_.size() != values_.size()) {
        return Error(kInvalidArgument, "IN has " + std::to_string(values_.size()) +
                                           " elements and DELAY has " +
                                           std::to_string(delays_.size()));
      }
      count_ = static_cast<int32_t>(values_.size());
      release_time_ = start_ + std::chrono::milliseconds(milliseconds);
      for (const uint32_t one : delays_) milliseconds = std::max(milliseconds, one);
      if (milliseconds > kMostMilliseconds) {
        return Error(kInvalidArgument, "DELAY and WAIT must be at most 3600000 ms");
      }
    } else {
      RETURN_IF_ERROR(in->ReadOne(&count_));
      if (count_ < 0) return Error(kInvalidArgument, "IN must not be negative");
      values_ = {count_};
    }
    final_with_last_ = !repeats && count_ > 0;
    due_ = start_ + Delay();
    return TRITONBACKEND_ResponseFactoryNew(&factory_, call_.request);
  }

  Clock::time_point Step(Clock::time_point now) noexcept {
    if (factory_ != nullptr) {
      TRITONSERVER_Error* error = Guard([&] { return SendWhatIsDue(now); });
      if (error != nullptr || sent_ == count_) End(error);
    }
    if (call_.request != nullptr && (failed_ || now >= release_time_)) {
      Release(instance_, call_.request, !failed_, start_ns_, Now());
      call_.request = nullptr;
    }
    if (factory_ == nullptr) return call_.request == nullptr ? kNever : release_time_;
    return std::min<Clock::time_point>(due_, now + kStreamCheck);
  }

 private:
  std::chrono::milliseconds Delay() const {
    if (sent_ == count_) return std::chrono::milliseconds(0);
    if (!delays_.empty()) return std::chrono::milliseconds(delays_[sent_]);
    return std::chrono::milliseconds(count_ > kBurst ? 1 : 0);
  }

  TRITONSERVER_Error* SendWhatIsDue(Clock::time_point now) {
    for (int turn = 0; turn < kTurn; ++turn) {
      bool cancelled = false;
      RETURN_IF_ERROR(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &cancelled));
      if (cancelled) {
        if (!settling_) due_ = now + kSettling;
        settling_ = true;
        if (now < due_) break;
        ++cancelled_requests;
        return Error(kCancelled, "cancelled after " + std::to_string(sent_) + " answers");
      }
      if (sent_ == count_ || now < due_) break;
      RETURN_IF_ERROR(SendOne());
      ++sent_;
      due_ = now + Delay();
    }
    return nullptr;
  }

  TRITONSERVER_Error* SendOne() {
    RETURN_IF_ERROR(TRITONBACKEND_ResponseNewFromFactory(&call_.response, factory_));
    TRITONSERVER_Error* error = Guard([this]() -> TRITONSERVER_Error* {
      const int32_t value = delays_.empty() ? values_[0] : values_[sent_];
      RETURN_IF_ERROR(call_.Write<int32_t>("OUT", kInt32, {1}, {value}));
      if (delays_.empty()) return nullptr;
      return call_.Write<uint32_t>("IDX", kUint32, {1}, {static_cast<uint32_t>(sent_)});
    });
    if (error != nullptr) {
      Log(TRITONBACKEND_ResponseDelete(call_.response));
      return error;
    }
    const bool last = final_with_last_ && sent_ + 1 == count_;
    if (last) CountAsOver();
    return TRITONBACKEND_ResponseSend(call_.response, last ? kFinalResponse : 0, nullptr);
  }

  /// Says to the caller that no more will come; with an error, that this is why.
  void End(TRITONSERVER_Error* error) noexcept {
    failed_ = error != nullptr;
    CountAsOver();
    if (failed_) {
      TRITONSERVER_Error* unmade = TRITONBACKEND_ResponseNewFromFactory(&call_.response, factory_);
      if (unmade == nullptr) {
        Log(TRITONBACKEND_ResponseSend(call_.response, kFinalResponse, error));
      }
      Log(unmade);
      TRITONSERVER_ErrorDelete(error);
    } else if (!final_with_last_) {
      Log(TRITONBACKEND_ResponseFactorySendFlags(factory_, kFinalResponse));
    }
    Log(TRITONBACKEND_ResponseFactoryDelete(factory_));
    factory_ = nullptr;
  }

  /// Before the caller can know it, so that who has seen the end finds it counted.
  void CountAsOver() noexcept {
    if (!over_) --running_requests;
    over_ = true;
  }

  TRITONBACKEND_ModelInstance* instance_;
  Call call_;  // its inputs are gone with the request
  TRITONBACKEND_ResponseFactory* factory_ = nullptr;
  std::vector<int32_t> values_;
  std::vector<uint32_t> delays_;  // none: one value for all answers, and no index
  int32_t count_ = 0;
  int32_t sent_ = 0;
  const uint64_t start_ns_ = Now();
  const Clock::time_point start_ = Clock::now();
  Clock::time_point release_time_ = start_;
  Clock::time_point due_;  // of the next answer
  bool final_with_last_ = false;
  bool settling_ = false;
  bool over_ = false;
  bool failed_ = false;
};

using Streams = Worker<Stream>;

void ServeStream(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) {
  const uint64_t start = Now();
  TRITONSERVER_Error* error = Guard([&]() -> TRITONSERVER_Error* {
    Call call;
    call.request = request;
    RETURN_IF_ERROR(call.Open(instance));
    Streams* streams = static_cast<Streams*>(call.state);
    auto stream = std::make_unique<Stream>(instance, std::move(call));
    RETURN_IF_ERROR(stream->Open());
    streams->Add(stream);
    return nullptr;
  });
  if (error == nullptr) return;
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* unmade = TRITONBACKEND_ResponseNew(&response, request);
  if (unmade == nullptr) Log(TRITONBACKEND_ResponseSend(response, kFinalResponse, error));
  Log(unmade);
  TRITONSERVER_ErrorDelete(error);
  Release(instance, request, false, start, Now());
}

/// CANCELLED and RUNNING = the counts; RESET sets CANCELLED to zero after that.
TRITONSERVER_Error* Cancellations(Call& call) {
  const Input* input = nullptr;
  uint8_t reset = 0;
  RETURN_IF_ERROR(call.Find("RESET", &input));
  RETURN_IF_ERROR(input->ReadOne(&reset));
  const int64_t cancelled = reset != 0 ? cancelled_requests.exchange(0) : cancelled_requests.load();
  RETURN_IF_ERROR(call.Write<int64_t>("CANCELLED", kInt64, {1}, {cancelled}));
  return call.Write<int64_t>("RUNNING", kInt64, {1}, {running_requests.load()});
}

struct Running {
  Running() { ++running_requests; }
  ~Running() { --running_requests; }
};

TRITONSERVER_Error* SlowIdentity(Call& call) {
  const Running running;
  TRITONSERVER_Error* error = Identity(call, call.model == "small_queue_fp32" ? kSlowSeconds : 0);
  if (error != nullptr && TRITONSERVER_ErrorCode(error) == kCancelled) ++cancelled_requests;
  return error;
}

bool IsDecoupled(const std::string& model) {
  return model == "repeat_int32" || model == "square_int32";
}

}  // namespace

TRITONSERVER_Error* Answer(Call& call) {
  return call.model == "cancellations" ? Cancellations(call) : SlowIdentity(call);
}

}  // namespace triton_fast

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  using namespace triton_fast;
  return Guard([model]() -> TRITONSERVER_Error* {
    const char* name = nullptr;
    RETURN_IF_ERROR(TRITONBACKEND_ModelName(model, &name));
    if (!IsDecoupled(name)) return nullptr;
    auto streams = std::make_unique<Streams>("triton_fast");
    RETURN_IF_ERROR(TRITONBACKEND_ModelSetState(model, streams.get()));
    streams.release();  // TRITONBACKEND_ModelFinalize deletes it
    return nullptr;
  });
}

// Called when no request of the model and no response factory is left: no stream is on its way.
EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  RETURN_IF_ERROR(TRITONBACKEND_ModelState(model, &state));
  delete static_cast<triton_fast::Streams*>(state);
  return nullptr;
}

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                              TRITONBACKEND_Request** requests,
                                                              uint32_t count) {
  using namespace triton_fast;
  TRITONBACKEND_Model* model = nullptr;
  void* state = nullptr;
  RETURN_IF_ERROR(TRITONBACKEND_ModelInstanceModel(instance, &model));
  RETURN_IF_ERROR(TRITONBACKEND_ModelState(model, &state));
  if (state == nullptr) return ServeEach(instance, requests, count);
  for (uint32_t index = 0; index < count; ++index) ServeStream(instance, requests[index]);
  return nullptr;
}
