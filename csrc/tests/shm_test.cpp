// Segments: made whole or not at all. Arenas: against a model, and from many threads.
#include <dirent.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "forked.hpp"
#include "thread.hpp"
#include "triton_fast/shm/arenas.hpp"
#include "triton_fast/shm/segment.hpp"

namespace {

std::atomic<int> fallocate_calls{0};
std::atomic<bool> signals_come{false};

}  // namespace

// In place of the C library's: as tmpfs is in older kernels, where a signal undoes a call's work.
// It has an end, too: a fault must not take all the memory of the machine that it is found on.
extern "C" int posix_fallocate(int descriptor, off_t offset, off_t size) {
  if (offset + size > 1 << 30) return EDOM;
  const int call = fallocate_calls++;
  if (signals_come && (call % 2 == 0 || size > 8 << 20)) return call < 1000 ? EINTR : EDEADLK;
  return ::fallocate(descriptor, 0, offset, size) == 0 ? 0 : errno;
}

namespace {

using namespace triton_fast;
using namespace triton_fast::shm;
using test::BesideThreads;
using test::Counter;
using test::in_child;
using test::Report;
using test::Thread;

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::uintptr_t kBase = 0x7000'0000'0000;  // memory that nobody touches

std::size_t entries(const std::string& folder, const std::string& part) {
  DIR* const opened = ::opendir(folder.c_str());
  std::size_t count = 0;
  while (const dirent* entry = ::readdir(opened)) {
    if (std::strstr(entry->d_name, part.c_str()) != nullptr) ++count;
  }
  ::closedir(opened);
  return count;
}

// As a segment's name has it between namespace and random part.
std::string own_part() { return "-" + std::to_string(::getpid()) + "-"; }

/// How many this process has made since. Those of one that had its number may lie about, which was
/// killed.
class OwnFiles {
 public:
  std::size_t operator()() const { return entries("/dev/shm", own_part()) - before_; }

 private:
  const std::size_t before_ = entries("/dev/shm", own_part());
};

std::size_t descriptors() { return entries("/proc/self/fd", ""); }

struct stat file_of(const Segment& segment) {
  struct stat file = {};
  REQUIRE(::stat(("/dev/shm" + segment.name()).c_str(), &file) == 0);
  return file;
}

template <typename Body>
int number_of(const Body& body) {
  try {
    body();
  } catch (const SharedMemoryError& error) {
    return error.number();
  }
  return 0;
}

#ifdef __linux__
/// Gives this process a /dev/shm of its own. @return false if that cannot be had
bool own_folder(const char* options) {
  return ::unshare(CLONE_NEWNS) == 0 && ::mount("", "/", "", MS_REC | MS_PRIVATE, "") == 0 &&
         ::mount("tmpfs", "/dev/shm", "tmpfs", 0, options) == 0;
}
#endif

std::int64_t in_ms(std::int64_t ms) {
  return (std::chrono::steady_clock::now().time_since_epoch() + std::chrono::milliseconds(ms)) /
         std::chrono::nanoseconds(1);
}

}  // namespace

TEST_CASE("segment is private allocated and gone after it") {
  const OwnFiles own_files;
  const std::size_t before = descriptors();
  std::string name;
  {
    const mode_t mask = ::umask(0377);
    Segment segment = Segment::create(3 * kMiB + 5);
    ::umask(mask);
    name = segment.name();
    CHECK(name.rfind("/triton_fast-", 0) == 0);
    CHECK(name.find(own_part()) + own_part().size() == name.rfind('-') + 1);
    CHECK(name.size() == name.rfind('-') + 1 + 32);
    const struct stat file = file_of(segment);
    CHECK((file.st_mode & 07777) == 0600);
    CHECK(file.st_size == 3 * kMiB + 5);
    CHECK(static_cast<std::size_t>(file.st_blocks) * 512 >= 3 * kMiB + 5);
    CHECK(segment.size() == 3 * kMiB + 5);
    CHECK(segment.data()[segment.size() - 1] == 0);
    segment.data()[segment.size() - 1] = 7;
    CHECK(descriptors() == before);

    const Segment other = Segment::attach(name, kMiB + 5, 2 * kMiB);
    CHECK(other.data() != segment.data());
    CHECK(other.data()[kMiB + 4] == 7);
    Segment moved = std::move(segment);
    CHECK(own_files() == 1);
    CHECK(segment.data() == nullptr);
    CHECK(moved.name() == name);
  }
  CHECK(own_files() == 0);
  CHECK(descriptors() == before);
}

TEST_CASE("segment names differ") { CHECK(Segment::create(1).name() != Segment::create(1).name()); }

TEST_CASE("segment is unlinked once and by its creator") {
  const OwnFiles own_files;
  Segment segment = Segment::create(100);
  Segment attached = Segment::attach(segment.name(), 100, 0);
  CHECK(number_of([&] { attached.unlink(); }) == EPERM);
  CHECK(own_files() == 1);
  segment.unlink();
  CHECK(own_files() == 0);
  segment.unlink();
  attached.data()[0] = 1;
  CHECK(segment.data()[0] == 1);

  Segment robbed = Segment::create(100);
  ::shm_unlink(robbed.name().c_str());
  robbed.unlink();
}

TEST_CASE("segment unlinked early does not take the name of another") {
  const std::string path = [] {
    Segment segment = Segment::create(100);
    segment.unlink();
    const std::string taken = "/dev/shm" + segment.name();
    ::close(::open(taken.c_str(), O_CREAT | O_WRONLY, 0600));
    return taken;
  }();
  REQUIRE(::unlink(path.c_str()) == 0);
}

TEST_CASE("segment of impossible size is an error and leaves nothing") {
  const OwnFiles own_files;
  const std::size_t before = descriptors();
  CHECK(number_of([] { Segment::create(0); }) == EINVAL);
  CHECK(number_of([] { Segment::create(~std::size_t{0}); }) == EINVAL);
  CHECK(number_of([] { Segment::create(std::size_t{1} << 50); }) == ENOSPC);
  CHECK_THROWS_WITH_AS(Segment::create(std::size_t{1} << 50),
                       doctest::Contains("1125899906842624 bytes"), SharedMemoryError);
  CHECK(own_files() == 0);
  CHECK(descriptors() == before);
}

TEST_CASE("segment that fails half way leaves nothing") {
  const std::string wrong = in_child(BesideThreads::kNo, [](Report& report) {
    const OwnFiles own_files;
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {8 * kMiB, 8 * kMiB};
    report.expect(::setrlimit(RLIMIT_FSIZE, &limit) == 0, "no limit");
    const std::size_t before = descriptors();
    report.expect(number_of([] { Segment::create(16 * kMiB); }) == EFBIG, "no EFBIG");
    report.expect(own_files() == 0, "a file is left");
    report.expect(descriptors() == before, "a descriptor is left");
    report.expect(number_of([] { Segment::create(8 * kMiB); }) == 0, "what may be is refused");
  });
  CHECK(wrong == "");
}

#ifdef __linux__
TEST_CASE("segments fill the folder and no more") {
  const std::string wrong = in_child(BesideThreads::kNo, [](Report& report) {
    if (!own_folder("size=8m")) return;
    const OwnFiles own_files;
    report.expect(number_of([] { Segment::create(8 * kMiB + 1); }) == ENOSPC, "more than there is");
    report.expect(number_of([] { Segment::create(8 * kMiB); }) == 0, "less than there is");
    {
      const Segment held = Segment::create(5 * kMiB);
      report.expect(number_of([] { Segment::create(5 * kMiB); }) == ENOSPC, "more than is left");
    }
    // Both may find enough room at first, and one of them is late; neither may die of writing.
    std::atomic<int> errors{0};
    const auto fill = [&] {
      for (int round = 0; round < 200; ++round) {
        try {
          const Segment segment = Segment::create(5 * kMiB);
          std::memset(segment.data(), 1, segment.size());
        } catch (const SharedMemoryError& error) {
          errors += error.number() != ENOSPC;
        }
      }
    };
    {
      Thread other(fill);
      fill();
    }
    report.expect(errors == 0, "another error than ENOSPC");
    report.expect(own_files() == 0, "a file is left");
    report.expect(number_of([] { Segment::create(8 * kMiB); }) == 0, "room is lost");
  });
  CHECK(wrong == "");
}

TEST_CASE("segment larger than the machine is an error") {
  const std::string wrong = in_child(BesideThreads::kNo, [](Report& report) {
    if (!own_folder("size=1024g")) return;
    report.expect(number_of([] { Segment::create(std::size_t{1000} << 30); }) == ENOMEM,
                  "no ENOMEM");
  });
  CHECK(wrong == "");
}
#endif

TEST_CASE("segment is made among signals") {
  fallocate_calls = 0;
  signals_come = true;
  const Segment segment = Segment::create(20 * kMiB);
  signals_come = false;
  CHECK(static_cast<std::size_t>(file_of(segment).st_blocks) * 512 == 20 * kMiB);
}

TEST_CASE("segment that there is no room for takes none meanwhile") {
  fallocate_calls = 0;
  CHECK(number_of([] { Segment::create(std::size_t{1} << 50); }) == ENOSPC);
  CHECK(fallocate_calls.load() == 0);
  Segment::create(1);
  CHECK(fallocate_calls.load() == 1);
}

TEST_CASE("segment to attach to must be there and long enough") {
  const Segment segment = Segment::create(2 * kMiB);
  const std::string name = segment.name();
  CHECK(number_of([&] { Segment::attach(name + "x", 1, 0); }) == ENOENT);
  CHECK(number_of([&] { Segment::attach(name + std::string("\0x", 2), 1, 0); }) == EINVAL);
  CHECK(number_of([&] { Segment::attach(name, 0, 0); }) == EINVAL);
  CHECK_THROWS_WITH_AS(Segment::attach(name, 1, 100), doctest::Contains("where no page begins"),
                       SharedMemoryError);
  CHECK_THROWS_WITH_AS(Segment::attach(name, 2 * kMiB + 1, 0), doctest::Contains("2097152 bytes"),
                       SharedMemoryError);
  CHECK_THROWS_WITH_AS(Segment::attach(name, kMiB + 1, kMiB), doctest::Contains("2097152 bytes"),
                       SharedMemoryError);
  CHECK_THROWS_WITH_AS(Segment::attach(name, ~std::size_t{0}, kMiB),
                       doctest::Contains("2097152 bytes"), SharedMemoryError);
  CHECK_THROWS_WITH_AS(Segment::attach(name, 1, 4 * kMiB), doctest::Contains("2097152 bytes"),
                       SharedMemoryError);
}

TEST_CASE("segment of the parent is left alone by a child") {
  const OwnFiles own_files;
  Segment segment = Segment::create(100);
  CHECK(!segment.inherited());
  const std::string wrong = in_child(BesideThreads::kNo, [&](Report& report) {
    report.expect(segment.inherited(), "it does not know that it is a copy");
    segment.data()[0] = 9;
    segment.unlink();
    Segment dies = std::move(segment);
  });
  CHECK(wrong == "");
  CHECK(own_files() == 1);
  CHECK(segment.data()[0] == 9);
}

TEST_CASE("arenas hand out the smallest and lowest piece") {
  Arenas arenas;
  CHECK(!arenas.take(1));
  CHECK(arenas.add(kBase, 64 << 10) == 0);
  CHECK(arenas.add(kBase + kMiB, 32 << 10) == 1);
  const Slot small = *arenas.take(1);
  CHECK(small.arena == 1);
  CHECK(small.offset == 0);
  CHECK(small.capacity == 64);
  const Slot line = *arenas.take(65);
  CHECK(line.arena == 1);
  CHECK(line.offset == 64);
  CHECK(line.capacity == 128);
  const Slot page = *arenas.take(4033);
  CHECK(page.arena == 1);
  CHECK(page.offset == 4096);
  CHECK(page.capacity == 4096);
  const Slot pages = *arenas.take(4097);
  CHECK(pages.offset == 8192);
  CHECK(pages.capacity == 8192);
  // What is left of the first page is used up before others are begun.
  const Slot more = *arenas.take(3000);
  CHECK(more.arena == 1);
  CHECK(more.offset == 192);
  CHECK(more.capacity == 3008);
  const Slot all = *arenas.take(64 << 10);
  CHECK(all.arena == 0);
  CHECK(all.offset == 0);
  CHECK(!arenas.take(17 << 10));
  CHECK(!arenas.take(~std::size_t{0}));
  arenas.give(page);
  CHECK(arenas.take(4096)->offset == 4096);
  const Slot nothing = *arenas.take(0);
  CHECK(nothing.capacity == 64);
}

TEST_CASE("arenas make one piece of neighbours") {
  for (const std::vector<int>& order :
       std::vector<std::vector<int>>{{0, 1, 2}, {2, 1, 0}, {0, 2, 1}, {1, 0, 2}}) {
    Arenas arenas;
    arenas.add(kBase, 3 * 4096);
    std::vector<Slot> slots;
    for (int i = 0; i < 3; ++i) slots.push_back(*arenas.take(4096));
    CHECK(!arenas.take(1));
    for (const int i : order) arenas.give(slots[static_cast<std::size_t>(i)]);
    CHECK(arenas.take(3 * 4096));
  }
}

TEST_CASE("arenas agree with a model") {
  struct Leased {
    Slot slot;
    std::size_t end;
    bool quarantined;
  };
  std::mt19937 random(20261121);
  const auto pick = [&](std::size_t below) {
    return std::uniform_int_distribution<std::size_t>(0, below - 1)(random);
  };
  for (int round = 0; round < 30; ++round) {
    Arenas arenas;
    std::map<std::uint32_t, std::size_t> sizes;
    std::map<std::uint32_t, bool> retired;
    for (std::uint32_t i = 0; i < 3; ++i) {
      const std::size_t size = 4096 + pick(200'000);
      REQUIRE(arenas.add(kBase + i * kMiB, size) == i);
      sizes[i] = size;
    }
    std::vector<Leased> leased;
    std::vector<Slot> abandoned;
    for (int step = 0; step < 2000; ++step) {
      const std::size_t what = pick(100);
      if (what < 50) {
        const std::size_t size = pick(2) == 0 ? pick(600) : pick(30'000);
        // The model: every place in every arena, by trying.
        std::optional<Slot> best;
        std::size_t best_hole = 0;
        const std::size_t lines = std::max<std::size_t>((size + 63) / 64 * 64, 64);
        const std::size_t capacity = lines < 4096 ? lines : (lines + 4095) / 4096 * 4096;
        for (const auto& [number, length] : sizes) {
          if (retired[number]) continue;
          std::map<std::size_t, std::size_t> used;
          for (const Leased& one : leased) {
            if (one.slot.arena == number) used[one.slot.offset] = one.end;
          }
          for (const Slot& one : abandoned) {
            if (one.arena == number) used[one.offset] = one.offset + one.capacity;
          }
          used[length / 64 * 64] = length;
          std::size_t begin = 0;
          for (const auto& [offset, end] : used) {
            const std::size_t step_size = capacity < 4096 ? 64 : 4096;
            const std::size_t at = (begin + step_size - 1) / step_size * step_size;
            if (at + capacity <= offset && (!best || offset - begin < best_hole)) {
              best = Slot{number, at, capacity};
              best_hole = offset - begin;
            }
            begin = end;
          }
        }
        const std::optional<Slot> taken = arenas.take(size);
        REQUIRE(taken.has_value() == best.has_value());
        if (!taken) continue;
        REQUIRE(taken->arena == best->arena);
        REQUIRE(taken->offset == best->offset);
        REQUIRE(taken->capacity == capacity);
        leased.push_back({*taken, taken->offset + capacity, false});
      } else if (what < 97 && !leased.empty()) {
        std::swap(leased[pick(leased.size())], leased.back());
        Leased& one = leased.back();
        if (what < 52 && abandoned.size() < 5) {
          REQUIRE(arenas.quarantine({one.slot.arena, one.slot.offset + pick(one.slot.capacity)}));
          one.quarantined = true;
        } else {
          arenas.give(one.slot);
          if (one.quarantined) abandoned.push_back(one.slot);
          leased.pop_back();
        }
      } else if (step % 1000 == 999) {
        const auto number = static_cast<std::uint32_t>(pick(3));
        REQUIRE(arenas.retire(number));
        REQUIRE(arenas.retire(number));
        retired[number] = true;
      }
      // Places: those in one slot that somebody has, and no others.
      const std::size_t at = pick(3 * kMiB);
      const std::size_t size = pick(5000);
      std::optional<Place> place;
      for (const Leased& one : leased) {
        const std::size_t offset = at % kMiB;
        if (at / kMiB == one.slot.arena && offset >= one.slot.offset && offset < one.end &&
            offset + size <= one.end) {
          place = Place{one.slot.arena, offset};
        }
      }
      const std::optional<Place> found = arenas.find(kBase + at, size);
      REQUIRE(found.has_value() == place.has_value());
      REQUIRE((!found || (found->arena == place->arena && found->offset == place->offset)));

      Figures expected;
      for (const auto& [number, length] : sizes) expected.byte_size += length;
      for (const Leased& one : leased) {
        (one.quarantined ? expected.quarantined : expected.leased) += 1;
        (one.quarantined ? expected.quarantined_bytes : expected.leased_bytes) += one.slot.capacity;
      }
      for (const Slot& one : abandoned) expected.quarantined_bytes += one.capacity;
      expected.quarantined += abandoned.size();
      const Figures figures = arenas.figures();
      REQUIRE(figures.byte_size == expected.byte_size);
      REQUIRE(figures.leased == expected.leased);
      REQUIRE(figures.leased_bytes == expected.leased_bytes);
      REQUIRE(figures.quarantined == expected.quarantined);
      REQUIRE(figures.quarantined_bytes == expected.quarantined_bytes);
    }
  }
}

TEST_CASE("arenas keep quarantined slots") {
  Arenas arenas;
  arenas.add(kBase, 8192);
  const Slot slot = *arenas.take(4096);
  CHECK(arenas.quarantine({0, 100}));
  CHECK(arenas.quarantine({0, 0}));
  CHECK(arenas.idle(0));
  CHECK(arenas.find(kBase + 5, 10));  // what is on it is still there
  arenas.give(slot);
  CHECK(!arenas.find(kBase + 5, 10));
  CHECK(arenas.figures(0)->quarantined == 1);
  CHECK(arenas.figures(0)->quarantined_bytes == 4096);
  CHECK(arenas.take(4096)->offset == 4096);
  CHECK(!arenas.take(1));
  CHECK(!arenas.quarantine({0, 8192}));
  CHECK(!arenas.quarantine({1, 0}));
}

TEST_CASE("arenas let go of what is idle") {
  Arenas arenas;
  CHECK(arenas.add(kBase, 8192) == 0);
  const Slot slot = *arenas.take(1);
  CHECK(!arenas.idle(0));
  CHECK(!arenas.remove(0));
  CHECK(arenas.figures(0));
  CHECK(arenas.retire(0));
  CHECK(!arenas.take(1));
  CHECK(arenas.find(kBase, 1));
  arenas.give(slot);
  CHECK(!arenas.take(1));
  CHECK(arenas.idle(0));
  CHECK(arenas.remove(0));
  CHECK(!arenas.remove(0));
  CHECK(!arenas.retire(0));
  CHECK(!arenas.figures(0));
  CHECK(!arenas.find(kBase, 1));
  CHECK(arenas.figures().byte_size == 0);
  CHECK(arenas.add(kBase, 8192) == 1);
  const Slot held = *arenas.take(1);
  CHECK(arenas.quarantine({1, 0}));
  CHECK(arenas.remove(1));
  arenas.give(held);  // of an arena that is no more
  CHECK(arenas.add(kBase, 8192) == 2);
  CHECK(arenas.take(1)->offset == 0);
  CHECK(arenas.find(kBase, 1)->arena == 2);
}

TEST_CASE("arenas tell the pages of what somebody has") {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  Arenas arenas;
  CHECK(arenas.leased_pages(true)->empty());
  const std::uint32_t arena = arenas.add(kBase, kMiB);
  const Slot small = *arenas.take(64);
  const Slot one = *arenas.take(page);
  const Slot other = *arenas.take(page);
  const Slot last = *arenas.take(3 * page);
  REQUIRE(one.offset == page);
  arenas.give(other);
  const auto pages = arenas.leased_pages(true);
  REQUIRE(pages->size() == 2);
  CHECK((*pages)[0].address == kBase);
  CHECK((*pages)[0].size == 2 * page);  // two neighbours, as one
  CHECK((*pages)[1].address == kBase + last.offset);
  CHECK((*pages)[1].size == 3 * page);
  arenas.quarantine({arena, last.offset});
  CHECK(arenas.leased_pages(false)->size() == 2);  // an array may be on it still
  arenas.give(last);
  CHECK(arenas.leased_pages(false)->size() == 1);
  arenas.give(small);
  arenas.give(one);
  CHECK(arenas.leased_pages(false)->empty());
}

TEST_CASE("pages that are made private are as they were, and nobody else's") {
  Segment segment = Segment::create(3 * kMiB);
  std::memset(segment.data(), 1, segment.size());
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::string wrong = in_child(BesideThreads::kNo, [&](Report& report) {
    std::uint8_t* const data = segment.data();
    const std::size_t size = 2 * kMiB + page;
    make_private(reinterpret_cast<std::uintptr_t>(data + page), size);
    for (std::size_t at = 0; at < segment.size(); at += page / 2) {
      if (data[at] != 1) report.say("something has changed");
    }
    std::memset(data + page, 2, size);
    data[0] = 3;
    report.expect(data[page] == 2 && data[page + size - 1] == 2, "it cannot be written to");
  });
  CHECK(wrong == "");
  CHECK(segment.data()[0] == 3);  // a page that is shared still
  for (std::size_t at = page; at < segment.size(); at += page / 2) CHECK(segment.data()[at] == 1);
}

TEST_CASE("arenas tell those who wait") {
  Arenas arenas;
  const std::uint64_t empty = arenas.generation();
  arenas.add(kBase, 4096);
  CHECK(arenas.wait_for_release(empty, 0) == Waited::kReleased);
  const Slot slot = *arenas.take(4096);
  const std::uint64_t seen = arenas.generation();
  CHECK(arenas.wait_for_release(seen, in_ms(-5)) == Waited::kDeadline);
  CHECK(arenas.wait_for_release(seen, in_ms(20)) == Waited::kDeadline);
  CHECK(arenas.wait_for_release(seen, in_ms(60'000)) == Waited::kInterrupted);
  // Woken, and not merely looking now and then, which is every 200 ms: it would see what is given
  // 20 ms after it has begun to wait 180 ms late. A busy machine may be as late, but not every
  // time.
  std::int64_t soonest = INT64_MAX;
  for (int turn = 0; turn < 100 && soonest > 100'000'000; ++turn) {
    const std::uint64_t before = arenas.generation();
    Counter waiting;
    std::int64_t given = 0;
    Thread giver([&] {
      REQUIRE(waiting.reaches(1));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      given = in_ms(0);
      arenas.give(slot);
    });
    ++waiting;
    const std::int64_t until = in_ms(20'000);
    Waited waited = Waited::kInterrupted;
    while (waited == Waited::kInterrupted) waited = arenas.wait_for_release(before, until);
    const std::int64_t seen_at = in_ms(0);
    giver.join();
    REQUIRE(waited == Waited::kReleased);
    soonest = std::min(soonest, seen_at - given);
    REQUIRE(arenas.take(4096).has_value());
  }
  CHECK(soonest <= 100'000'000);
}

TEST_CASE("arenas serve threads") {
  constexpr int kThreads = 4;
  Arenas arenas;
  std::vector<std::uint8_t> memory(96 << 10);
  const auto base = reinterpret_cast<std::uintptr_t>(memory.data());
  arenas.add(base, 64 << 10);
  arenas.add(base + (64 << 10), 32 << 10);
  std::atomic<int> wrong{0};
  std::vector<std::unique_ptr<Thread>> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.push_back(std::make_unique<Thread>([&, i] {
      std::mt19937 random(static_cast<unsigned>(i));
      for (int round = 0; round < 3000; ++round) {
        const std::uint64_t seen = arenas.generation();
        const std::size_t size = random() % 40'000;
        const std::optional<Slot> slot = arenas.take(size);
        if (!slot) {
          arenas.wait_for_release(seen, in_ms(1));
          continue;
        }
        std::uint8_t* const mine = memory.data() + (slot->arena << 16) + slot->offset;
        // Two that have the same memory are a race, for ThreadSanitizer, and overwrite each other.
        std::memset(mine, i, slot->capacity);
        if (!arenas.find(reinterpret_cast<std::uintptr_t>(mine), size)) ++wrong;
        for (std::size_t k = 0; k < slot->capacity; ++k) wrong += mine[k] != i;
        arenas.give(*slot);
      }
    }));
  }
  for (const auto& thread : threads) thread->join();
  CHECK(wrong.load() == 0);
  CHECK(arenas.figures().leased == 0);
  CHECK(arenas.figures().leased_bytes == 0);
  CHECK(arenas.take(64 << 10));
  CHECK(arenas.take(32 << 10));
}

TEST_CASE("arenas of the parent are left alone by a child") {
  auto* const arenas = new Arenas;
  arenas->add(kBase, 1 << 20);
  const Slot slot = *arenas->take(1);
  std::atomic<bool> stop{false};
  {
    const auto end = [&] { stop = true; };
    // So that some child finds the lock taken, which would hang it.
    Thread other(
        [&] {
          while (!stop) arenas->give(*arenas->take(4096));
        },
        end);
    // And one that waits: the condition cannot be destroyed then.
    Thread waiting(
        [&] {
          while (!stop) arenas->wait_for_release(arenas->generation(), in_ms(10'000));
        },
        end);
    for (int i = 0; i < 50; ++i) {
      const std::string wrong = in_child(BesideThreads::kYes, [&](Report& report) {
        report.expect(arenas->inherited(), "it does not know that it is a copy");
        report.expect(!arenas->find(kBase, 1), "it finds what is the parent's");
        arenas->give(slot);
        dispose(arenas);
      });
      REQUIRE(wrong == "");
    }
  }
  CHECK(!arenas->inherited());
  CHECK(arenas->figures().leased == 1);
  dispose(arenas);
}
