// Runs a kernel's blocks one after another on a CPU: the threads of a block are fibers that change places at
// collectives, and every access to memory is checked. It knows no kernel; emulated_common.h is its other half.
//
// What is found ends the launch with a message: memory accessed beyond an allocation or at a wrong alignment; a barrier
// or collective that not all threads reach, or that they reach at different places; shared memory that two threads
// access, one of them writing, with no barrier between; shared memory used while `copy_beside` still fills it.
#include <signal.h>

#include "emulated_blocks.h"
#include "emulated_half.h"
#include "emulated_memory.h"
#include "emulated_threads.h"
#include "emulated_warps.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALLER __builtin_return_address(0)

namespace {

Cell cells[2][SHARED_BYTES];
alignas(1024) unsigned char dynamic_shared[SHARED_BYTES];

Call call_at(What what, unsigned mask, const char* file, int line) {
    Call call{};
    call.what = what, call.mask = mask, call.file = file, call.line = line;
    return call;
}

// Ends the launch unless 16 bytes at `address` are shared memory, and a multiple of 16.
Shared& shared_row(Address address, const char* what, const char* file, int line, unsigned nbytes = 16) {
    Shared* part = memory.shared_at(address);
    if (!part) fail(nullptr, "%s at %p, which is no shared memory (%s:%d)", what, (const void*)address, file, line);
    if (reinterpret_cast<uintptr_t>(address) % nbytes)
        fail(nullptr, "%s at byte %td of shared memory, no multiple of %u (%s:%d)", what,
             address - part->memory.start, nbytes, file, line);
    return *part;
}

void mark_filling(Shared& part, Address target, unsigned nbytes, int thread_or_none) {
    for (unsigned byte = 0; byte < nbytes; ++byte)
        part.cells[target - part.memory.start + byte].filling = static_cast<uint16_t>(1 + thread_or_none);
}

}  // namespace

// --- What kernels call ---

EXPORT int emulated_barrier(int kind, int predicate, const char* file, int line) {
    now().call = call_at(AT_BARRIER, ~0u, file, line);
    now().call.kind = kind, now().call.value = predicate != 0;
    leave_gathering();
    leave();
    return static_cast<int>(now().answer);
}

EXPORT void emulated_warp_barrier(unsigned mask, const char* file, int line) {
    meet(call_at(AT_WARP_BARRIER, mask, file, line));
}

EXPORT unsigned long long emulated_shuffle(int kind, unsigned mask, unsigned long long value, int argument, int width,
                                           const char* file, int line) {
    Call call = call_at(AT_SHUFFLE, mask, file, line);
    call.kind = kind, call.value = value, call.argument = argument, call.width = width;
    return meet(call);
}

EXPORT unsigned emulated_vote(int kind, unsigned mask, int predicate, const char* file, int line) {
    Call call = call_at(AT_VOTE, mask, file, line);
    call.kind = kind, call.value = predicate != 0;
    return static_cast<unsigned>(meet(call));
}

EXPORT void emulated_multiply_tiles(float* c, const unsigned* a, const unsigned* b, const char* file, int line) {
    Call call = call_at(AT_PRODUCT, ~0u, file, line);
    call.c = c, call.a = a, call.b = b;
    meet(call);
}

EXPORT void emulated_load_matrices(unsigned* result, const void* row, int transposed, const char* file, int line) {
    Address address = static_cast<Address>(row);
    touch_shared(shared_row(address, "load_matrices reads", file, line), address, 16, false, CALLER);
    Call call = call_at(AT_MATRICES, ~0u, file, line);
    call.kind = transposed, call.result = result, call.row = address;
    meet(call);
}

EXPORT void emulated_copy_beside(void* shared, const void* global, unsigned nbytes, const char* file, int line) {
    Address target = static_cast<Address>(shared), source = static_cast<Address>(global);
    Shared& part = shared_row(target, "copy_beside writes", file, line, nbytes);
    if (reinterpret_cast<uintptr_t>(source) % nbytes)
        fail(nullptr, "copy_beside reads at %p, no multiple of %u (%s:%d)", global, nbytes, file, line);
    touch_global(source, nbytes, false, CALLER);
    touch_shared(part, target, nbytes, true, CALLER);
    memset(shared, POISON, nbytes);
    mark_filling(part, target, nbytes, thread_now);
    now().copies.push_back({static_cast<unsigned char*>(shared), source, nbytes, now().closed_batches});
}

EXPORT void emulated_close_batch() { ++now().closed_batches; }

// The copies of all but the last `under_way` batches arrive now, as late as a device may let them.
EXPORT void emulated_await_batches(int under_way) {
    std::vector<Copy>& copies = now().copies;
    size_t left = 0;
    for (Copy copy : copies) {
        if (copy.batch >= now().closed_batches - under_way) {
            copies[left++] = copy;
            continue;
        }
        Shared& part = *memory.shared_at(copy.target);
        mark_filling(part, copy.target, copy.nbytes, -1);
        touch_shared(part, copy.target, copy.nbytes, true, CALLER);
        memcpy(copy.target, copy.source, copy.nbytes);
    }
    copies.resize(left);
}

EXPORT unsigned long long emulated_atomic_load(const void* address, int size, const char* file, int line) {
    size_t nbytes = static_cast<size_t>(size);
    if (reinterpret_cast<uintptr_t>(address) % nbytes)
        fail(nullptr, "an atomic access of %d bytes at %p (%s:%d)", size, address, file, line);
    // Atomic accesses of shared memory collide with no other: only their place is checked.
    if (!memory.shared_at(static_cast<Address>(address))) touch(address, nbytes, true, CALLER);
    unsigned long long value = 0;
    memcpy(&value, address, nbytes);
    return value;
}

EXPORT void emulated_atomic_store(void* address, int size, unsigned long long value) {
    memcpy(address, &value, static_cast<size_t>(size));
}

EXPORT void emulated_trap(const char* file, int line) { fail(nullptr, "__trap (%s:%d)", file, line); }

// --- What the compiler puts before every access: -fsanitize=thread, and the parts of undefined that are asked for ---

#define ACCESS(name, bytes)                                                                      \
    EXPORT void __tsan_read##name(void* where) { touch(where, bytes, false, CALLER); }           \
    EXPORT void __tsan_write##name(void* where) { touch(where, bytes, true, CALLER); }           \
    EXPORT void __tsan_unaligned_read##name(void* where) { touch(where, bytes, false, CALLER); } \
    EXPORT void __tsan_unaligned_write##name(void* where) { touch(where, bytes, true, CALLER); }
ACCESS(1, 1)
ACCESS(2, 2)
ACCESS(4, 4)
ACCESS(8, 8)
ACCESS(16, 16)
EXPORT void __tsan_read_range(void* where, unsigned long nbytes) { touch(where, nbytes, false, CALLER); }
EXPORT void __tsan_write_range(void* where, unsigned long nbytes) { touch(where, nbytes, true, CALLER); }
EXPORT void __tsan_init() {}
EXPORT void __tsan_func_entry(void*) {}
EXPORT void __tsan_func_exit(void*) {}

namespace {

struct Source {
    const char* file;
    unsigned line, column;
};

struct Mismatch {
    Source source;
    const void* type;
    unsigned char log2_alignment, kind;
};

}  // namespace

EXPORT void __ubsan_handle_type_mismatch_v1_abort(Mismatch* found, void* where) {
    fail(nullptr, "%p is accessed as a type of alignment %u (%s:%u)", where, 1u << found->log2_alignment,
         found->source.file, found->source.line);
}
EXPORT void __ubsan_handle_out_of_bounds_abort(Source* source, uintptr_t index) {
    fail(nullptr, "element %td of an array that has none such (%s:%u)", static_cast<ptrdiff_t>(index), source->file,
         source->line);
}
// --- What Python calls ---

namespace {

// What the processor finds, while kernels run: a division by zero, or a stack that is full.
struct Faults {
    Faults() {
        stack_t other{};
        other.ss_sp = stack, other.ss_size = sizeof stack;
        sigaltstack(&other, &old_stack);
        struct sigaction found{};
        found.sa_flags = SA_NODEFER | SA_ONSTACK;
        found.sa_handler = [](int number) {
            fail(nullptr, number == SIGFPE ? "an integer is divided by 0" : "its stack is full");
        };
        sigaction(SIGFPE, &found, &old_division);
        sigaction(SIGSEGV, &found, &old_segment);
    }
    ~Faults() {
        sigaction(SIGFPE, &old_division, nullptr);
        sigaction(SIGSEGV, &old_segment, nullptr);
        sigaltstack(&old_stack, nullptr);
    }
    struct sigaction old_division, old_segment;
    stack_t old_stack;
    static unsigned char stack[1 << 16];
};
unsigned char Faults::stack[1 << 16];

}  // namespace

EXPORT void emulated_region(Address start, size_t nbytes) { memory.regions[start] = start + nbytes; }

EXPORT void emulated_no_region(Address start) { memory.forget_region(start); }

// 1 if the bytes are of one allocation of the device, 0 if none is the device's, else -1.
EXPORT int emulated_owner(Address start, size_t nbytes) {
    if (memory.is_global(start, nbytes)) return 1;
    auto after = memory.regions.lower_bound(start + nbytes);
    return after != memory.regions.begin() && std::prev(after)->second > start ? -1 : 0;
}

struct Launch {
    void (*entry)(const void*);
    const void* arguments;
    unsigned grid[3], block, shared_bytes, seed;
    Piece static_shared, image;
    char* message;
    size_t message_bytes;
    void* message_place;
};

// 0, or 1 with a message.
EXPORT int emulated_launch(Launch* launch) {
    entry = launch->entry, arguments = launch->arguments;
    message = launch->message, message_bytes = launch->message_bytes, message_place = nullptr;
    failed = false, accesses = 0;
    threads = static_cast<int>(launch->block);
    Address place = reinterpret_cast<Address>(&emulated_place);
    memory.place = {place, place + sizeof emulated_place};
    memory.image = launch->image;
    memory.shared[0] = {launch->static_shared, cells[0]};
    memory.shared[1] = {{dynamic_shared, dynamic_shared + launch->shared_bytes}, cells[1]};
    emulated_place.dynamic_shared = dynamic_shared;
    emulated_place.threads = {launch->block, 1, 1};
    emulated_place.blocks = {launch->grid[0], launch->grid[1], launch->grid[2]};
    if (make_stacks()) {
        Faults faults;
        run_blocks(launch->seed);
    }
    if (failed || memory.clock > 1u << 31) {
        memset(cells, 0, sizeof cells);
        memory.restart();
        for (Thread& thread : all) thread.copies.clear();
    }
    launch->message_place = message_place;
    return failed;
}
