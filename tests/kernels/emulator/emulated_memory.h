// Which memory a kernel may access, and who accessed shared memory last; it knows no collective but their clocks.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <iterator>
#include <map>

constexpr int WARP = 32;
constexpr int MOST_THREADS = 1024;
constexpr size_t SHARED_BYTES = 227 << 10;  // the most that a block has on any architecture
constexpr unsigned char POISON = 0xff;      // NaN in every type, and an index far outside

typedef const unsigned char* Address;

struct Piece {
    Address start, end;
    size_t nbytes() const { return static_cast<size_t>(end - start); }
    bool holds(Address address, size_t count) const {
        return address >= start && address < end && count <= static_cast<size_t>(end - address);
    }
};

// Who accessed one byte of shared memory last, and when; times are the clock's, which ticks at every barrier.
struct Cell {
    uint32_t written, read;
    uint16_t writer, reader;  // a thread; of several readers WHOLE_WARP + their warp, or SEVERAL
    uint16_t filling;         // 1 + the thread whose copy_beside is under way
};
constexpr uint16_t WHOLE_WARP = 0x4000, SEVERAL = 0x7fff;

// Static or dynamic shared memory of the block that runs.
struct Shared {
    Piece memory;
    Cell* cells;
};

struct Memory {
    std::map<Address, Address> regions;  // of the device: start and end
    Piece image, place, stack;           // the kernel's constants; its indices; the running thread's
    Piece recent[4];                     // regions that were accessed last
    unsigned oldest;
    Shared shared[2];
    uint32_t clock, barrier, warp_barrier[MOST_THREADS / WARP];

    bool is_global(Address address, size_t nbytes) {
        for (const Piece& piece : recent)
            if (piece.holds(address, nbytes)) return true;
        auto after = regions.upper_bound(address);
        if (after == regions.begin()) return false;
        auto found = std::prev(after);
        Piece piece{found->first, found->second};
        if (!piece.holds(address, nbytes)) return false;
        recent[oldest++ % 4] = piece;
        return true;
    }

    void forget_region(Address start) {
        regions.erase(start);
        for (Piece& piece : recent) piece = {};
    }

    Shared* shared_at(Address address) {
        for (Shared& part : shared)
            if (address >= part.memory.start && address < part.memory.end) return &part;
        return nullptr;
    }

    // What is wrong with reading or writing this byte now, or nullptr; `other` gets the thread that it collides with.
    const char* touch(Cell& cell, int thread, bool writes, int& other) {
        if (cell.filling) {
            other = cell.filling - 1;
            return "copy_beside still fills what is accessed (no await_batches)";
        }
        if (cell.writer != thread && !ordered(cell.written, cell.writer / WARP, thread)) {
            other = cell.writer;
            return writes ? "two threads write the same shared memory with no barrier between them"
                          : "shared memory is read with no barrier since another thread wrote it";
        }
        return writes ? write(cell, thread, other) : read(cell, thread);
    }

    // The device forgets who accessed what: before its clock runs over, and after a launch that was cut short.
    void restart() {
        clock = barrier = 0;
        for (uint32_t& time : warp_barrier) time = 0;
    }

   private:
    // Whether an access at `time` by a thread of `warp` is over before what `thread` does now.
    bool ordered(uint32_t time, int warp, int thread) const {
        return time < barrier || (warp == thread / WARP && time < warp_barrier[warp]);
    }

    static int warp_of(uint16_t reader) {
        if (reader == SEVERAL) return -1;
        return reader >= WHOLE_WARP ? reader - WHOLE_WARP : reader / WARP;
    }

    const char* write(Cell& cell, int thread, int& other) {
        if (cell.reader != thread && !ordered(cell.read, warp_of(cell.reader), thread)) {
            other = cell.reader >= WHOLE_WARP ? -1 : cell.reader;
            return "shared memory is written with no barrier since another thread read it";
        }
        cell.writer = static_cast<uint16_t>(thread);
        cell.written = clock;
        return nullptr;
    }

    const char* read(Cell& cell, int thread) {
        int warp = warp_of(cell.reader);
        if (cell.reader == thread || ordered(cell.read, warp, thread))
            cell.reader = static_cast<uint16_t>(thread);
        else
            cell.reader = warp == thread / WARP ? static_cast<uint16_t>(WHOLE_WARP + warp) : SEVERAL;
        cell.read = clock;
        return nullptr;
    }
};
