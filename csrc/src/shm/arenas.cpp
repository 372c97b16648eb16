// Best fit, lowest first; neighbours that are free are one block.
#include "triton_fast/shm/arenas.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <limits>
#include <utility>

namespace triton_fast::shm {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kPage = 4096;
// How long a caller may be deaf to signals.
constexpr std::int64_t kPatienceNs = 200'000'000;

constexpr std::size_t round_up(std::size_t size, std::size_t unit) noexcept {
  return (size + unit - 1) / unit * unit;
}

std::int64_t now_ns() noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

std::uint32_t Arenas::add(std::uintptr_t address, std::size_t size) {
  const std::size_t usable = size / kLine * kLine;
  const std::lock_guard lock(mutex_);
  const std::uint32_t number = next_;
  Arena arena;
  arena.address = address;
  arena.figures.byte_size = size;
  arena.blocks.emplace(0, Block{usable, State::kFree, {}});
  Holes hole;
  hole.insert({usable, number, 0});
  std::map<std::uintptr_t, std::uint32_t> where;
  where.emplace(address, number);
  arenas_.emplace(number, std::move(arena));
  by_address_.merge(where);
  holes_.merge(hole);
  ++next_;
  announce();
  return number;
}

std::optional<Slot> Arenas::take(std::size_t size) {
  if (size > std::numeric_limits<std::size_t>::max() / 2) return std::nullopt;
  std::size_t capacity = round_up(std::max(size, kLine), kLine);
  if (capacity >= kPage) capacity = round_up(capacity, kPage);
  const std::size_t alignment = capacity >= kPage ? kPage : kLine;

  const std::lock_guard lock(mutex_);
  for (auto hole = holes_.lower_bound({capacity, 0, 0}); hole != holes_.end(); ++hole) {
    const std::size_t before = round_up(hole->offset, alignment) - hole->offset;
    if (hole->size - capacity < before) continue;
    const std::uint32_t number = hole->arena;
    Arena& arena = arenas_.find(number)->second;
    auto block = arena.blocks.find(hole->offset);
    if (before != 0) {
      split(number, arena.blocks, block, before);
      ++block;
    }
    if (block->second.size != capacity) split(number, arena.blocks, block, capacity);
    block->second.state = State::kLeased;
    block->second.hole = holes_.extract({capacity, number, block->first});
    ++arena.figures.leased;
    arena.figures.leased_bytes += capacity;
    return Slot{number, block->first, capacity};
  }
  return std::nullopt;
}

void Arenas::give(const Slot& slot) noexcept {
  if (inherited()) return;
  const std::lock_guard lock(mutex_);
  const auto found = arenas_.find(slot.arena);
  if (found == arenas_.end()) return;
  Arena& arena = found->second;
  const auto block = arena.blocks.find(slot.offset);
  if (block->second.state == State::kQuarantined) {
    block->second.state = State::kAbandoned;
    return;
  }
  --arena.figures.leased;
  arena.figures.leased_bytes -= block->second.size;
  if (arena.retired) {
    block->second.state = State::kFree;
  } else {
    free(slot.arena, arena.blocks, block);
  }
  announce();
}

bool Arenas::quarantine(Place place) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = arenas_.find(place.arena);
  if (found == arenas_.end()) return false;
  Arena& arena = found->second;
  const auto block = block_at(arena, place.offset);
  if (block == arena.blocks.end()) return false;
  if (block->second.state == State::kLeased) {
    block->second.state = State::kQuarantined;
    --arena.figures.leased;
    arena.figures.leased_bytes -= block->second.size;
    ++arena.figures.quarantined;
    arena.figures.quarantined_bytes += block->second.size;
  }
  return block->second.state != State::kFree;
}

bool Arenas::retire(std::uint32_t arena) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = arenas_.find(arena);
  if (found == arenas_.end()) return false;
  retire(arena, found->second);
  return true;
}

bool Arenas::idle(std::uint32_t arena) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = arenas_.find(arena);
  return found == arenas_.end() || found->second.figures.leased == 0;
}

bool Arenas::remove(std::uint32_t arena) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = arenas_.find(arena);
  if (found == arenas_.end() || found->second.figures.leased != 0) return false;
  retire(arena, found->second);
  by_address_.erase(found->second.address);
  arenas_.erase(found);
  announce();
  return true;
}

std::optional<Place> Arenas::find(std::uintptr_t address, std::size_t size) noexcept {
  if (inherited()) return std::nullopt;
  const std::lock_guard lock(mutex_);
  const auto above = by_address_.upper_bound(address);
  if (above == by_address_.begin()) return std::nullopt;
  const std::uint32_t number = std::prev(above)->second;
  Arena& arena = arenas_.find(number)->second;
  const std::size_t offset = address - arena.address;
  const auto block = block_at(arena, offset);
  if (block == arena.blocks.end()) return std::nullopt;
  const bool leased =
      block->second.state == State::kLeased || block->second.state == State::kQuarantined;
  if (!leased || size > block->first + block->second.size - offset) return std::nullopt;
  return Place{number, offset};
}

std::optional<std::vector<Pages>> Arenas::leased_pages(bool wait) {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  std::unique_lock lock(mutex_, std::defer_lock);
  if (wait) {
    lock.lock();
  } else if (!lock.try_lock()) {
    return std::nullopt;
  }
  std::vector<Pages> found;
  for (const auto& [address, number] : by_address_) {
    for (const auto& [offset, block] : arenas_.find(number)->second.blocks) {
      if (block.state != State::kLeased && block.state != State::kQuarantined) continue;
      const std::uintptr_t first = (address + offset) / page * page;
      const std::uintptr_t end = round_up(address + offset + block.size, page);
      if (!found.empty() && found.back().address + found.back().size >= first) {
        found.back().size = end - found.back().address;
      } else {
        found.push_back({first, end - first});
      }
    }
  }
  return found;
}

std::uint64_t Arenas::generation() noexcept {
  const std::lock_guard lock(mutex_);
  return generation_;
}

Waited Arenas::wait_for_release(std::uint64_t seen, std::int64_t until_ns) {
  std::unique_lock lock(mutex_);
  const std::int64_t left = until_ns - now_ns();
  const auto changed = [&] { return generation_ != seen; };
  if (released_.wait_for(lock,
                         std::chrono::nanoseconds(std::clamp<std::int64_t>(left, 0, kPatienceNs)),
                         changed)) {
    return Waited::kReleased;
  }
  return left > kPatienceNs ? Waited::kInterrupted : Waited::kDeadline;
}

std::optional<Figures> Arenas::figures(std::uint32_t arena) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = arenas_.find(arena);
  if (found == arenas_.end()) return std::nullopt;
  return found->second.figures;
}

Figures Arenas::figures() noexcept {
  const std::lock_guard lock(mutex_);
  Figures all;
  for (const auto& [number, arena] : arenas_) {
    all.byte_size += arena.figures.byte_size;
    all.leased += arena.figures.leased;
    all.leased_bytes += arena.figures.leased_bytes;
    all.quarantined += arena.figures.quarantined;
    all.quarantined_bytes += arena.figures.quarantined_bytes;
  }
  return all;
}

/// Makes two free blocks of one, the first of the given size; nothing if it throws.
void Arenas::split(std::uint32_t number, Blocks& blocks, Blocks::iterator block, std::size_t size) {
  const std::size_t offset = block->first + size;
  const std::size_t rest = block->second.size - size;
  Holes hole;
  hole.insert({rest, number, offset});
  blocks.emplace_hint(std::next(block), offset, Block{rest, State::kFree, {}});
  holes_.merge(hole);
  auto first = holes_.extract({block->second.size, number, block->first});
  first.value().size = size;
  holes_.insert(std::move(first));
  block->second.size = size;
}

/// Makes a leased block a hole, one with the free blocks beside it.
void Arenas::free(std::uint32_t number, Blocks& blocks, Blocks::iterator block) noexcept {
  auto hole = std::move(block->second.hole);
  block->second.state = State::kFree;
  const auto after = std::next(block);
  if (after != blocks.end() && after->second.state == State::kFree) {
    holes_.erase({after->second.size, number, after->first});
    block->second.size += after->second.size;
    blocks.erase(after);
  }
  if (block != blocks.begin() && std::prev(block)->second.state == State::kFree) {
    const auto before = std::prev(block);
    holes_.erase({before->second.size, number, before->first});
    before->second.size += block->second.size;
    blocks.erase(block);
    block = before;
  }
  hole.value() = {block->second.size, number, block->first};
  holes_.insert(std::move(hole));
}

void Arenas::retire(std::uint32_t number, Arena& arena) noexcept {
  if (arena.retired) return;
  arena.retired = true;
  for (const auto& [offset, block] : arena.blocks) {
    if (block.state == State::kFree) holes_.erase({block.size, number, offset});
  }
}

void Arenas::announce() noexcept {
  ++generation_;
  released_.notify_all();
}

/// The block that an offset lies in, or the end.
Arenas::Blocks::iterator Arenas::block_at(Arena& arena, std::size_t offset) noexcept {
  const auto block = std::prev(arena.blocks.upper_bound(offset));
  return offset - block->first < block->second.size ? block : arena.blocks.end();
}

void dispose(Arenas* arenas) noexcept {
  if (!arenas->inherited()) delete arenas;
}

}  // namespace triton_fast::shm
