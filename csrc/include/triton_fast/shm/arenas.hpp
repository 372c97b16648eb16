// Arenas: which parts of which segments are in use. Knows addresses, and never touches the memory.
//
// Any thread. The lock is held for bookkeeping only: nothing blocks under it, and whoever waits for
// a slot waits without it. In a forked child, where another thread may have had it, give(), find()
// and leased_pages(false) are harmless, nothing else may be called, and nothing is destroyed (see
// dispose()).
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <tuple>
#include <vector>

#include "triton_fast/process.hpp"

namespace triton_fast::shm {

/// A piece of an arena that one user has.
struct Slot {
  std::uint32_t arena = 0;
  std::size_t offset = 0;
  std::size_t capacity = 0;
};

/// Where a piece of memory is: its arena, and how far from the arena's beginning.
struct Place {
  std::uint32_t arena = 0;
  std::size_t offset = 0;
};

/// Whole pages of memory.
struct Pages {
  std::uintptr_t address = 0;
  std::size_t size = 0;
};

/// How much there is of what, in bytes and in slots. A quarantined slot is not a leased one.
struct Figures {
  std::size_t byte_size = 0;
  std::size_t leased = 0;
  std::size_t leased_bytes = 0;
  std::size_t quarantined = 0;
  std::size_t quarantined_bytes = 0;
};

enum class Waited { kReleased, kDeadline, kInterrupted };

class Arenas {
 public:
  Arenas() = default;
  ~Arenas() = default;
  Arenas(const Arenas&) = delete;
  Arenas& operator=(const Arenas&) = delete;

  /// @brief Adds memory to cut slots from.
  /// @param address a multiple of 4096, so that offsets and addresses are aligned alike
  /// @return its number, never used for another one @throws std::bad_alloc
  std::uint32_t add(std::uintptr_t address, std::size_t size);

  /// @brief Takes the smallest free piece that is large enough, and of several the first: so the
  /// same memory is used again while it is in the caches.
  ///
  /// Capacities are whole cache lines, and from 4 KiB on whole pages at their own boundaries.
  /// @return nothing if there is no such piece @throws std::bad_alloc
  std::optional<Slot> take(std::size_t size);

  /// @brief Gives a slot back; once for each take(). A quarantined one stays out of use, and one of
  /// an arena that was removed is forgotten.
  void give(const Slot& slot) noexcept;

  /// @brief Has the slot that a place lies in never be handed out again.
  /// @return false if nobody has such a slot
  bool quarantine(Place place) noexcept;

  /// @brief Takes nothing more from an arena; its slots may still come back. Idempotent.
  /// @return false if there is no such arena
  bool retire(std::uint32_t arena) noexcept;

  /// @brief Whether no slot is leased; quarantined ones do not count. True of what is not there.
  bool idle(std::uint32_t arena) noexcept;

  /// @brief Forgets an arena that is idle. @return false if it is not, or not there
  bool remove(std::uint32_t arena) noexcept;

  /// @brief Says where memory is that lies within a single slot which somebody has.
  std::optional<Place> find(std::uintptr_t address, std::size_t size) noexcept;

  /// @brief The pages on which somebody has a slot, neighbours as one.
  /// @param wait whether to wait for the lock; in a forked child nobody may be there to open it
  /// @return nothing if the lock is taken, and was not waited for @throws std::bad_alloc
  std::optional<std::vector<Pages>> leased_pages(bool wait);

  /// @brief Another number whenever there may be more to take: after give(), add() and remove().
  std::uint64_t generation() noexcept;

  /// @brief Waits until generation() is not `seen`, or a deadline has passed.
  /// @param until_ns of std::chrono::steady_clock
  /// @return kInterrupted now and then, for the caller to look at signals
  Waited wait_for_release(std::uint64_t seen, std::int64_t until_ns);

  std::optional<Figures> figures(std::uint32_t arena) noexcept;
  Figures figures() noexcept;

  /// Whether this is a copy, in a forked child, of the parent's.
  bool inherited() const noexcept { return process_ != process_generation(); }

 private:
  struct Hole {
    std::size_t size;
    std::uint32_t arena;
    std::size_t offset;
    bool operator<(const Hole& other) const noexcept {
      return std::tie(size, arena, offset) < std::tie(other.size, other.arena, other.offset);
    }
  };
  using Holes = std::set<Hole>;

  enum class State : std::uint8_t { kFree, kLeased, kQuarantined, kAbandoned };

  struct Block {
    std::size_t size;
    State state;
    // A leased block keeps the node of the hole that it will be: giving back needs no memory.
    Holes::node_type hole;
  };
  using Blocks = std::map<std::size_t, Block>;  // by offset; they cover the arena without gaps

  struct Arena {
    std::uintptr_t address = 0;
    bool retired = false;
    Blocks blocks;
    Figures figures;
  };
  using Numbered = std::map<std::uint32_t, Arena>;

  void split(std::uint32_t number, Blocks& blocks, Blocks::iterator block, std::size_t size);
  void free(std::uint32_t number, Blocks& blocks, Blocks::iterator block) noexcept;
  void retire(std::uint32_t number, Arena& arena) noexcept;
  void announce() noexcept;
  static Blocks::iterator block_at(Arena& arena, std::size_t offset) noexcept;

  const std::uint64_t process_ = process_generation();
  std::mutex mutex_;
  std::condition_variable released_;
  Numbered arenas_;
  std::map<std::uintptr_t, std::uint32_t> by_address_;
  Holes holes_;  // the free blocks of arenas that are not retired
  std::uint32_t next_ = 0;
  std::uint64_t generation_ = 0;
};

/// @brief Destroys arenas, or leaves them as they are in a forked child.
void dispose(Arenas* arenas) noexcept;

}  // namespace triton_fast::shm
