# What Cython may use of csrc/shm.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libcpp cimport bool as cbool
from libcpp.optional cimport optional
from libcpp.string cimport string
from libcpp.vector cimport vector

from triton_fast._core._errors cimport translate


cdef extern from "triton_fast/shm/segment.hpp" namespace "triton_fast::shm" nogil:
    cdef cppclass Segment:
        Segment() noexcept

        @staticmethod
        Segment create(size_t size) except +translate

        @staticmethod
        Segment attach(string name, size_t size, size_t offset) except +translate
        uint8_t* data() noexcept
        size_t size() noexcept
        const string& name() noexcept
        cbool created() noexcept
        cbool inherited() noexcept
        void unlink() except +translate


    void make_private(uintptr_t address, size_t size) except +translate


cdef extern from "<utility>" namespace "std" nogil:
    Segment move(Segment) noexcept


cdef extern from "triton_fast/shm/arenas.hpp" namespace "triton_fast::shm" nogil:
    cdef cppclass Slot:
        uint32_t arena
        size_t offset
        size_t capacity

    cdef cppclass Place:
        uint32_t arena
        size_t offset

    cdef cppclass Figures:
        size_t byte_size
        size_t leased
        size_t leased_bytes
        size_t quarantined
        size_t quarantined_bytes

    cdef cppclass Pages:
        uintptr_t address
        size_t size

    cdef enum class Waited:
        kReleased
        kDeadline
        kInterrupted

    cdef cppclass Arenas:
        Arenas() except +translate
        uint32_t add(uintptr_t address, size_t size) except +translate
        optional[Slot] take(size_t size) except +translate
        void give(const Slot& slot) noexcept
        cbool quarantine(Place place) noexcept
        cbool retire(uint32_t arena) noexcept
        cbool idle(uint32_t arena) noexcept
        cbool remove(uint32_t arena) noexcept
        optional[Place] find(uintptr_t address, size_t size) noexcept
        optional[vector[Pages]] leased_pages(cbool wait) except +translate
        uint64_t generation() noexcept
        Waited wait_for_release(uint64_t seen, int64_t until_ns) except +translate
        optional[Figures] figures(uint32_t arena) noexcept
        Figures figures() noexcept
        cbool inherited() noexcept

    void dispose(Arenas* arenas) noexcept
