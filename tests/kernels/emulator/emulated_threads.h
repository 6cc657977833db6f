// The threads of the block that runs, what each waits for, and how a launch ends early; memory is checked here.
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <vector>

#include "emulated_fibers.h"
#include "emulated_memory.h"

namespace {

constexpr size_t STACK_BYTES = 1 << 17;

// A launch that accesses memory more often is taken to wait for another block, which runs only when it has returned.
constexpr unsigned long long MOST_ACCESSES = 4ull << 30;

enum What { RUNNING, RETURNED, AT_BARRIER, AT_WARP_BARRIER, AT_SHUFFLE, AT_VOTE, AT_PRODUCT, AT_MATRICES };
const char* const NAMES[] = {"runs",          "has returned", "__syncthreads",  "__syncwarp",
                             "__shfl_..._sync", "a vote",       "multiply_tiles", "load_matrices"};

// What a thread brings to a collective.
struct Call {
    What what;
    int kind;
    unsigned mask;
    const char* file;
    int line;
    unsigned long long value;
    int argument, width;
    float* c;
    const unsigned *a, *b;
    unsigned* result;
    Address row;

    bool same_place(const Call& other) const {
        return what == other.what && kind == other.kind && line == other.line &&
               (file == other.file || !strcmp(file, other.file));
    }
};

struct Copy {
    unsigned char* target;
    Address source;
    unsigned nbytes;
    int batch;
};

struct Thread {
    Context context;
    unsigned char* stack;
    Call call;
    unsigned long long answer;
    int closed_batches;
    std::vector<Copy> copies;
};

// Lanes of a warp that wait for the others of their mask, which run; none are known while `here` is 0.
struct Gathering {
    unsigned here;
    int lane;  // one of them: its call is that of all
};

Thread all[MOST_THREADS];
Gathering gatherings[MOST_THREADS / WARP];
Context scheduler;
int thread_now, threads;
Memory memory;
unsigned long long accesses;
bool failed;
char* message;
size_t message_bytes;
void* message_place;

}  // namespace

struct Index {
    unsigned x, y, z;
};
struct EmulatedPlace {
    Index thread, block, threads, blocks;
    unsigned char* dynamic_shared;
};
extern "C" {
EmulatedPlace emulated_place;
}

namespace {

Thread& now() { return all[thread_now]; }

void leave() { change(now().context, scheduler); }

// Whoever goes where no other lane looks, to a barrier or its end, lets the next to come look at all again.
void leave_gathering() { gatherings[thread_now / WARP].here = 0; }

__attribute__((format(printf, 1, 2))) void say(const char* form, ...) {
    Index block = emulated_place.block;
    int start = snprintf(message, message_bytes, "block (%u, %u, %u), ", block.x, block.y, block.z);
    va_list values;
    va_start(values, form);
    vsnprintf(message + start, message_bytes - static_cast<size_t>(start), form, values);
    va_end(values);
    failed = true;
}

// Ends the launch: the thread that runs never does so again. `place` is an instruction, whose line Python finds.
__attribute__((noreturn, format(printf, 2, 3))) void fail(void* place, const char* form, ...) {
    char what[512];
    va_list values;
    va_start(values, form);
    vsnprintf(what, sizeof what, form, values);
    va_end(values);
    message_place = place;
    say("thread %d: %s", thread_now, what);
    for (;;) leave();
}

void touch_shared(Shared& part, Address address, size_t nbytes, bool writes, void* place) {
    ptrdiff_t first = address - part.memory.start;
    if (!part.memory.holds(address, nbytes))
        fail(place, "%zu bytes are %s at byte %td of %zu bytes of shared memory", nbytes, writes ? "written" : "read",
             first, part.memory.nbytes());
    int other = -1;
    for (size_t byte = 0; byte < nbytes; ++byte) {
        const char* wrong = memory.touch(part.cells[first + static_cast<ptrdiff_t>(byte)], thread_now, writes, other);
        if (!wrong) continue;
        if (other < 0) fail(place, "%s (byte %td; several threads did)", wrong, first + static_cast<ptrdiff_t>(byte));
        fail(place, "%s (byte %td; it was thread %d)", wrong, first + static_cast<ptrdiff_t>(byte), other);
    }
}

void touch_global(Address address, size_t nbytes, bool writes, void* place) {
    if (memory.is_global(address, nbytes)) return;
    const char* done = writes ? "written" : "read";
    auto after = memory.regions.upper_bound(address);
    if (after == memory.regions.begin())
        fail(place, "%zu bytes are %s at %p, which is no memory of the device", nbytes, done, (const void*)address);
    auto found = std::prev(after);
    fail(place, "%zu bytes are %s at byte %td of an allocation of %td", nbytes, done, address - found->first,
         found->second - found->first);
}

// Any access of a kernel, of `nbytes` at `where`.
inline void touch(const void* where, size_t nbytes, bool writes, void* place) {
    Address address = static_cast<Address>(where);
    if (++accesses > MOST_ACCESSES) fail(place, "does not end: it may wait for a block that has not started");
    if (Shared* part = memory.shared_at(address)) return touch_shared(*part, address, nbytes, writes, place);
    if (memory.stack.holds(address, nbytes) || memory.place.holds(address, nbytes)) return;
    if (!writes && memory.image.holds(address, nbytes)) return;
    touch_global(address, nbytes, writes, place);
}

}  // namespace
