// Segments: made whole or not at all. Arenas: against a model, and from many threads.
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
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

std::size_t own_files() { return entries("/dev/shm", own_part()); }

std::size_t descriptors() { return entries("/proc/self/fd", ""); }

struct stat file_of(const Segment& segment) {
  struct stat file = {};
  CHECK(::stat(("/dev/shm" + segment.name()).c_str(), &file) == 0);
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

/// Runs a body in a forked child. @return its exit status, 0 if all was well
template <typename Body>
int in_child(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    try {
      body();
      ::_exit(0);
    } catch (...) {
      ::_exit(1);
    }
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
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

TEST(segment_is_private_allocated_and_gone_after_it) {
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
    CHECK(other.data() != segment.data() && other.data()[kMiB + 4] == 7);
    Segment moved = std::move(segment);
    CHECK(own_files() == 1);
    CHECK(segment.data() == nullptr && moved.name() == name);
  }
  CHECK(own_files() == 0);
  CHECK(descriptors() == before);
}

TEST(segment_names_differ) { CHECK(Segment::create(1).name() != Segment::create(1).name()); }

TEST(segment_is_unlinked_once_and_by_its_creator) {
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

TEST(segment_unlinked_early_does_not_take_the_name_of_another) {
  const std::string path = [] {
    Segment segment = Segment::create(100);
    segment.unlink();
    const std::string taken = "/dev/shm" + segment.name();
    ::close(::open(taken.c_str(), O_CREAT | O_WRONLY, 0600));
    return taken;
  }();
  CHECK(::unlink(path.c_str()) == 0);
}

TEST(segment_of_impossible_size_is_an_error_and_leaves_nothing) {
  const std::size_t before = descriptors();
  CHECK(number_of([] { Segment::create(0); }) == EINVAL);
  CHECK(number_of([] { Segment::create(~std::size_t{0}); }) == EINVAL);
  CHECK(number_of([] { Segment::create(std::size_t{1} << 50); }) == ENOSPC);
  CHECK_THROWS(SharedMemoryError, "1125899906842624 bytes", Segment::create(std::size_t{1} << 50));
  CHECK(own_files() == 0);
  CHECK(descriptors() == before);
}

TEST(segment_that_fails_half_way_leaves_nothing) {
  CHECK(in_child([] {
          ::signal(SIGXFSZ, SIG_IGN);
          const rlimit limit = {8 * kMiB, 8 * kMiB};
          CHECK(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
          const std::size_t before = descriptors();
          CHECK(number_of([] { Segment::create(16 * kMiB); }) == EFBIG);
          CHECK(own_files() == 0);
          CHECK(descriptors() == before);
          CHECK(number_of([] { Segment::create(8 * kMiB); }) == 0);
        }) == 0);
}

#ifdef __linux__
TEST(segments_fill_the_folder_and_no_more) {
  const int status = in_child([] {
    if (!own_folder("size=8m")) return;
    CHECK(number_of([] { Segment::create(8 * kMiB + 1); }) == ENOSPC);
    CHECK(number_of([] { Segment::create(8 * kMiB); }) == 0);
    // Both find enough room at first, and one of them is late; neither may die of writing.
    std::atomic<int> refused{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        for (int round = 0; round < 300; ++round) {
          try {
            const Segment segment = Segment::create(5 * kMiB);
            std::memset(segment.data(), 1, segment.size());
          } catch (const SharedMemoryError& error) {
            refused += error.number() == ENOSPC ? 1 : 1'000'000;
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(refused > 0 && refused < 1'000'000);
    CHECK(own_files() == 0);
    CHECK(number_of([] { Segment::create(8 * kMiB); }) == 0);
  });
  CHECK(status == 0);
}
#endif

#ifdef __linux__
TEST(segment_larger_than_the_machine_is_an_error) {
  const int status = in_child([] {
    if (own_folder("size=1024g")) {
      CHECK(number_of([] { Segment::create(std::size_t{1000} << 30); }) == ENOMEM);
    }
  });
  CHECK(status == 0);
}
#endif

TEST(segment_is_made_among_signals) {
  fallocate_calls = 0;
  signals_come = true;
  const Segment segment = Segment::create(20 * kMiB);
  signals_come = false;
  CHECK(static_cast<std::size_t>(file_of(segment).st_blocks) * 512 == 20 * kMiB);
}

TEST(segment_that_there_is_no_room_for_takes_none_meanwhile) {
  fallocate_calls = 0;
  CHECK(number_of([] { Segment::create(std::size_t{1} << 50); }) == ENOSPC);
  CHECK(fallocate_calls == 0);
  Segment::create(1);
  CHECK(fallocate_calls == 1);
}

TEST(segment_to_attach_to_must_be_there_and_long_enough) {
  const Segment segment = Segment::create(2 * kMiB);
  const std::string name = segment.name();
  CHECK(number_of([&] { Segment::attach(name + "x", 1, 0); }) == ENOENT);
  CHECK(number_of([&] { Segment::attach(name + std::string("\0x", 2), 1, 0); }) == EINVAL);
  CHECK(number_of([&] { Segment::attach(name, 0, 0); }) == EINVAL);
  CHECK_THROWS(SharedMemoryError, "where no page begins", Segment::attach(name, 1, 100));
  CHECK_THROWS(SharedMemoryError, "2097152 bytes", Segment::attach(name, 2 * kMiB + 1, 0));
  CHECK_THROWS(SharedMemoryError, "2097152 bytes", Segment::attach(name, kMiB + 1, kMiB));
  CHECK_THROWS(SharedMemoryError, "2097152 bytes", Segment::attach(name, ~std::size_t{0}, kMiB));
  CHECK_THROWS(SharedMemoryError, "2097152 bytes", Segment::attach(name, 1, 4 * kMiB));
}

TEST(segment_of_the_parent_is_left_alone_by_a_child) {
  Segment segment = Segment::create(100);
  CHECK(!segment.inherited());
  CHECK(in_child([&] {
          CHECK(segment.inherited());
          segment.data()[0] = 9;
          segment.unlink();
          Segment dies = std::move(segment);
        }) == 0);
  CHECK(own_files() == 1);
  CHECK(segment.data()[0] == 9);
}

TEST(arenas_hand_out_the_smallest_and_lowest_piece) {
  Arenas arenas;
  CHECK(!arenas.take(1));
  CHECK(arenas.add(kBase, 64 << 10) == 0);
  CHECK(arenas.add(kBase + kMiB, 32 << 10) == 1);
  const Slot small = *arenas.take(1);
  CHECK(small.arena == 1 && small.offset == 0 && small.capacity == 64);
  const Slot line = *arenas.take(65);
  CHECK(line.arena == 1 && line.offset == 64 && line.capacity == 128);
  const Slot page = *arenas.take(4033);
  CHECK(page.arena == 1 && page.offset == 4096 && page.capacity == 4096);
  const Slot pages = *arenas.take(4097);
  CHECK(pages.offset == 8192 && pages.capacity == 8192);
  // What is left of the first page is used up before others are begun.
  const Slot more = *arenas.take(3000);
  CHECK(more.arena == 1 && more.offset == 192 && more.capacity == 3008);
  const Slot all = *arenas.take(64 << 10);
  CHECK(all.arena == 0 && all.offset == 0);
  CHECK(!arenas.take(17 << 10) && !arenas.take(~std::size_t{0}));
  arenas.give(page);
  CHECK(arenas.take(4096)->offset == 4096);
  const Slot nothing = *arenas.take(0);
  CHECK(nothing.capacity == 64);
}

TEST(arenas_make_one_piece_of_neighbours) {
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

TEST(arenas_agree_with_a_model) {
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
      CHECK(arenas.add(kBase + i * kMiB, size) == i);
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
        CHECK(taken.has_value() == best.has_value());
        if (!taken) continue;
        CHECK(taken->arena == best->arena && taken->offset == best->offset);
        CHECK(taken->capacity == capacity);
        leased.push_back({*taken, taken->offset + capacity, false});
      } else if (what < 97 && !leased.empty()) {
        std::swap(leased[pick(leased.size())], leased.back());
        Leased& one = leased.back();
        if (what < 52 && abandoned.size() < 5) {
          CHECK(arenas.quarantine({one.slot.arena, one.slot.offset + pick(one.slot.capacity)}));
          one.quarantined = true;
        } else {
          arenas.give(one.slot);
          if (one.quarantined) abandoned.push_back(one.slot);
          leased.pop_back();
        }
      } else if (step % 1000 == 999) {
        const auto number = static_cast<std::uint32_t>(pick(3));
        CHECK(arenas.retire(number) && arenas.retire(number));
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
      CHECK(found.has_value() == place.has_value());
      CHECK(!found || (found->arena == place->arena && found->offset == place->offset));

      Figures expected;
      for (const auto& [number, length] : sizes) expected.byte_size += length;
      for (const Leased& one : leased) {
        (one.quarantined ? expected.quarantined : expected.leased) += 1;
        (one.quarantined ? expected.quarantined_bytes : expected.leased_bytes) += one.slot.capacity;
      }
      for (const Slot& one : abandoned) expected.quarantined_bytes += one.capacity;
      expected.quarantined += abandoned.size();
      const Figures figures = arenas.figures();
      CHECK(figures.byte_size == expected.byte_size);
      CHECK(figures.leased == expected.leased && figures.leased_bytes == expected.leased_bytes);
      CHECK(figures.quarantined == expected.quarantined);
      CHECK(figures.quarantined_bytes == expected.quarantined_bytes);
    }
  }
}

TEST(arenas_keep_quarantined_slots) {
  Arenas arenas;
  arenas.add(kBase, 8192);
  const Slot slot = *arenas.take(4096);
  CHECK(arenas.quarantine({0, 100}) && arenas.quarantine({0, 0}));
  CHECK(arenas.idle(0));
  CHECK(arenas.find(kBase + 5, 10));  // what is on it is still there
  arenas.give(slot);
  CHECK(!arenas.find(kBase + 5, 10));
  CHECK(arenas.figures(0)->quarantined == 1 && arenas.figures(0)->quarantined_bytes == 4096);
  CHECK(arenas.take(4096)->offset == 4096);
  CHECK(!arenas.take(1));
  CHECK(!arenas.quarantine({0, 8192}) && !arenas.quarantine({1, 0}));
}

TEST(arenas_let_go_of_what_is_idle) {
  Arenas arenas;
  CHECK(arenas.add(kBase, 8192) == 0);
  const Slot slot = *arenas.take(1);
  CHECK(!arenas.idle(0) && !arenas.remove(0) && arenas.figures(0));
  CHECK(arenas.retire(0) && !arenas.take(1));
  CHECK(arenas.find(kBase, 1));
  arenas.give(slot);
  CHECK(!arenas.take(1));
  CHECK(arenas.idle(0) && arenas.remove(0));
  CHECK(!arenas.remove(0) && !arenas.retire(0) && !arenas.figures(0) && !arenas.find(kBase, 1));
  CHECK(arenas.figures().byte_size == 0);
  CHECK(arenas.add(kBase, 8192) == 1);
  const Slot held = *arenas.take(1);
  CHECK(arenas.quarantine({1, 0}) && arenas.remove(1));
  arenas.give(held);  // of an arena that is no more
  CHECK(arenas.add(kBase, 8192) == 2);
  CHECK(arenas.take(1)->offset == 0);
  CHECK(arenas.find(kBase, 1)->arena == 2);
}

TEST(arenas_tell_those_who_wait) {
  Arenas arenas;
  const std::uint64_t empty = arenas.generation();
  arenas.add(kBase, 4096);
  CHECK(arenas.wait_for_release(empty, 0) == Waited::kReleased);
  const Slot slot = *arenas.take(4096);
  const std::uint64_t seen = arenas.generation();
  CHECK(arenas.wait_for_release(seen, in_ms(-5)) == Waited::kDeadline);
  CHECK(arenas.wait_for_release(seen, in_ms(20)) == Waited::kDeadline);
  CHECK(arenas.wait_for_release(seen, in_ms(60'000)) == Waited::kInterrupted);
  // Woken, and not merely looking now and then; a busy machine may be late, but not every time.
  bool prompt = false;
  for (int i = 0; i < 10 && !prompt; ++i) {
    const std::uint64_t before = arenas.generation();
    const std::int64_t begin = in_ms(0);
    std::thread giver([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      arenas.give(slot);
    });
    Waited waited = Waited::kInterrupted;
    while (waited == Waited::kInterrupted) waited = arenas.wait_for_release(before, in_ms(10'000));
    giver.join();
    CHECK(waited == Waited::kReleased);
    prompt = in_ms(0) - begin < 150'000'000;
    CHECK(arenas.take(4096));
  }
  CHECK(prompt);
}

TEST(arenas_serve_threads) {
  constexpr int kThreads = 4;
  Arenas arenas;
  std::vector<std::uint8_t> memory(96 << 10);
  const auto base = reinterpret_cast<std::uintptr_t>(memory.data());
  arenas.add(base, 64 << 10);
  arenas.add(base + (64 << 10), 32 << 10);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
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
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(arenas.figures().leased == 0 && arenas.figures().leased_bytes == 0);
  CHECK(arenas.take(64 << 10) && arenas.take(32 << 10));
}

TEST(arenas_of_the_parent_are_left_alone_by_a_child) {
  auto* const arenas = new Arenas;
  arenas->add(kBase, 1 << 20);
  const Slot slot = *arenas->take(1);
  std::atomic<bool> stop{false};
  // So that some child finds the lock taken, which hangs it until its alarm.
  std::thread other([&] {
    while (!stop) arenas->give(*arenas->take(4096));
  });
  // And one that waits: the condition cannot be destroyed then.
  std::thread waiting([&] {
    while (!stop) arenas->wait_for_release(arenas->generation(), in_ms(10'000));
  });
  int failed = 0;
  for (int i = 0; i < 50 && failed == 0; ++i) {
    failed += in_child([&] {
      CHECK(arenas->inherited());
      CHECK(!arenas->find(kBase, 1));
      arenas->give(slot);
      dispose(arenas);
    });
  }
  stop = true;
  other.join();
  waiting.join();
  CHECK(failed == 0);
  CHECK(!arenas->inherited() && arenas->figures().leased == 1);
  dispose(arenas);
}
