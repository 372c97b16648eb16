// Making, mapping and unlinking segments. Source: shm_overview(7), open(2) on O_TMPFILE, tmpfs(5).
#include "triton_fast/shm/segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#ifdef __APPLE__
#include <sys/random.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <system_error>
#include <utility>
#include <vector>

namespace triton_fast::shm {
namespace {

// A file without a name is not left behind, whenever this process is killed; so on Linux a segment
// gets its name when it is ready. shm_open() looks in this folder.
constexpr char kFolder[] = "/dev/shm";
constexpr char kPrefix[] = "/triton_fast-";
// The length of a name is limited: 255 on Linux, 31 on macOS.
#ifdef __APPLE__
constexpr std::size_t kRandomBytes = 6;
#else
constexpr std::size_t kRandomBytes = 16;
#endif
// In older kernels a signal makes tmpfs give back what one call has allocated: hence small steps.
constexpr std::size_t kAllocationStep = std::size_t{4} << 20;
#if defined(__linux__) && !defined(MADV_POPULATE_WRITE)
#define MADV_POPULATE_WRITE 23  // Linux 5.14; an error before
#endif

[[noreturn]] void fail(const std::string& what, int number) {
  throw SharedMemoryError("cannot " + what + ": " + std::generic_category().message(number),
                          number);
}

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const noexcept { return number_; }

 private:
  const int number_;
};

/// The name says whose file it is, for those who find it when its maker was killed. The number of a
/// process means something only together with its namespace (pid_namespaces(7)).
std::string new_name() {
  unsigned char random[kRandomBytes];
  if (::getentropy(random, sizeof random) != 0) fail("name shared memory", errno);
  std::string name = kPrefix;
#ifdef __linux__
  struct stat space;
  name += std::to_string(::stat("/proc/self/ns/pid", &space) == 0 ? space.st_ino : 0) + "-";
#endif
  name += std::to_string(::getpid()) + "-";
  for (const unsigned char byte : random) {
    char hex[3];
    std::snprintf(hex, sizeof hex, "%02x", byte);
    name += hex;
  }
  return name;
}

#ifdef __linux__
std::string path_of(int descriptor) { return "/proc/self/fd/" + std::to_string(descriptor); }
#endif

/// Opens a file that has no name yet; -1 where there is no such thing.
int open_unnamed() noexcept {
#ifdef __linux__
  if (::access("/proc/self/fd", X_OK) == 0) {
    return ::open(kFolder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  }
#endif
  return -1;
}

/// What the machine can still give without ending programs for it, in bytes; all if it does not
/// say.
std::size_t available_memory() noexcept {
  std::size_t kib = 0;
  int found = 0;
  if (std::FILE* const figures = std::fopen("/proc/meminfo", "re")) {
    char line[128];
    std::size_t one = 0;
    while (std::fgets(line, sizeof line, figures) != nullptr) {
      if (std::sscanf(line, "MemAvailable: %zu kB", &one) == 1 ||
          std::sscanf(line, "SwapFree: %zu kB", &one) == 1) {
        kib += one;
        ++found;
      }
    }
    std::fclose(figures);
  }
  return found == 2 ? kib * 1024 : std::numeric_limits<std::size_t>::max();
}

void allocate(int descriptor, std::size_t size, const std::string& what) {
#ifdef __APPLE__
  if (::ftruncate(descriptor, static_cast<off_t>(size)) != 0) fail(what, errno);
#else
  // What cannot succeed is not tried: it would take all the memory that others need meanwhile, and
  // where /dev/shm may be larger than the machine is, the system would end programs for it.
  struct statvfs folder;
  if (::fstatvfs(descriptor, &folder) == 0 && folder.f_blocks != 0 &&
      (size - 1) / folder.f_frsize >= folder.f_bavail) {
    fail(what + ", " + std::to_string(folder.f_bavail * folder.f_frsize) + " are free", ENOSPC);
  }
  if (size > available_memory()) fail(what, ENOMEM);
  for (std::size_t done = 0; done < size;) {
    const std::size_t step = std::min(size - done, kAllocationStep);
    const int error =
        ::posix_fallocate(descriptor, static_cast<off_t>(done), static_cast<off_t>(step));
    if (error == 0) done += step;
    if (error != 0 && error != EINTR) fail(what, error);
  }
#endif
}

}  // namespace

void make_private(std::uintptr_t address, std::size_t size) {
  constexpr std::size_t kStep = std::size_t{1} << 20;
  std::vector<std::uint8_t> contents(std::min(size, kStep));
  for (std::size_t done = 0; done < size; done += kStep) {
    const std::size_t step = std::min(size - done, kStep);
    void* const pages = reinterpret_cast<void*>(address + done);
    std::memcpy(contents.data(), pages, step);
    if (::mmap(pages, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
               0) == MAP_FAILED) {
      fail("copy " + std::to_string(size) + " bytes of shared memory for a forked child", errno);
    }
    std::memcpy(pages, contents.data(), step);
  }
}

Segment Segment::create(std::size_t size) {
  const std::string what = "create " + std::to_string(size) + " bytes of shared memory";
  if (size == 0 || size > std::numeric_limits<std::ptrdiff_t>::max()) fail(what, EINVAL);
  Segment segment(new_name(), true);
  int opened = open_unnamed();
  if (opened < 0) {
    opened = ::shm_open(segment.name_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    if (opened < 0) fail(what, errno);
    segment.named_ = true;
  }
  const Descriptor descriptor(opened);
  if (::fchmod(descriptor.get(), 0600) != 0) fail(what, errno);  // whatever the umask is
  allocate(descriptor.get(), size, what);
  segment.map(descriptor.get(), size, 0);
#ifdef __linux__
  // Entered here in one go, pages cost half of what they do one by one at the first write (13 ms
  // against 25 ms, 64 MiB, 2026-11). No MADV_HUGEPAGE: /dev/shm is mounted without, and where it is
  // not, copying was no faster. Only a hint, whatever it answers.
  ::madvise(segment.data_, size, MADV_POPULATE_WRITE);
  if (!segment.named_) {
    const std::string path = kFolder + segment.name_;
    if (::linkat(AT_FDCWD, path_of(descriptor.get()).c_str(), AT_FDCWD, path.c_str(),
                 AT_SYMLINK_FOLLOW) != 0) {
      fail(what, errno);
    }
    segment.named_ = true;
  }
#endif
  return segment;
}

Segment Segment::attach(std::string name, std::size_t size, std::size_t offset) {
  const std::string what = "attach to shared memory '" + name + "'";
  if (name.find('\0') != std::string::npos || size == 0) fail(what, EINVAL);
  if (offset % static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) != 0) {
    fail(what + " from " + std::to_string(offset) + " on, where no page begins", EINVAL);
  }
  Segment segment(std::move(name), false);
  const Descriptor descriptor(::shm_open(segment.name_.c_str(), O_RDWR, 0));
  if (descriptor.get() < 0) fail(what, errno);
  struct stat file;
  if (::fstat(descriptor.get(), &file) != 0) fail(what, errno);
  const auto length = static_cast<std::size_t>(file.st_size);
  if (offset > length || size > length - offset) {
    throw SharedMemoryError("cannot " + what + ": it has " + std::to_string(length) +
                                " bytes, and " + std::to_string(size) + " from " +
                                std::to_string(offset) + " on were asked for",
                            EINVAL);
  }
  segment.map(descriptor.get(), size, offset);
  return segment;
}

Segment::~Segment() {
  if (named_ && !inherited()) ::shm_unlink(name_.c_str());
  if (data_ != nullptr) ::munmap(data_, size_);
}

void Segment::unlink() {
  if (inherited()) return;
  const std::string what = "unlink shared memory '" + name_ + "'";
  if (!created_) fail(what + ", which belongs to another", EPERM);
  if (!named_) return;
  if (::shm_unlink(name_.c_str()) != 0 && errno != ENOENT) fail(what, errno);
  named_ = false;
}

void Segment::swap(Segment& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(created_, other.created_);
  std::swap(named_, other.named_);
  std::swap(generation_, other.generation_);
}

void Segment::map(int descriptor, std::size_t size, std::size_t offset) {
  void* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor,
                              static_cast<off_t>(offset));
  if (memory == MAP_FAILED) {
    fail("map " + std::to_string(size) + " bytes of shared memory '" + name_ + "'", errno);
  }
  data_ = static_cast<std::uint8_t*>(memory);
  size_ = size;
}

}  // namespace triton_fast::shm
