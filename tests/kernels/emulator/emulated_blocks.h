// The blocks of a launch one after another, the threads of a block in turns from barrier to barrier.
#pragma once
#include <sys/mman.h>

#include <algorithm>

#include "emulated_threads.h"

namespace {

enum Barrier { BARRIER, BARRIER_OR, BARRIER_AND, BARRIER_COUNT };

void (*entry)(const void*);
const void* arguments;

void run_thread() {
    entry(arguments);
    if (!now().copies.empty())
        fail(nullptr, "returns while %zu copies of copy_beside are under way", now().copies.size());
    now().call.what = RETURNED;
    leave_gathering();
    for (;;) leave();
}

void resume(int thread) {
    thread_now = thread;
    emulated_place.thread.x = static_cast<unsigned>(thread);
    memory.stack = {now().stack, now().stack + STACK_BYTES};
    change(scheduler, now().context);
}

// Runs every thread of a warp until it waits for other warps or has returned.
void run_warp(int warp, bool backward) {
    int first = warp * WARP, lanes = std::min(WARP, threads - first);
    for (bool ran = true; ran && !failed; backward = !backward) {
        ran = false;
        for (int step = 0; step < lanes && !failed; ++step) {
            int thread = first + (backward ? lanes - 1 - step : step);
            if (all[thread].call.what != RUNNING) continue;
            resume(thread);
            ran = true;
        }
    }
}

// When no thread can go on: all have returned, or all wait at one barrier; anything else ends the launch.
void check_all_agree() {
    const Call& first = all[0].call;
    for (int thread = 0; thread < threads; ++thread) {
        const Call& call = all[thread].call;
        if (call.what == RETURNED && first.what == RETURNED) continue;
        if (call.what == AT_BARRIER && call.same_place(first)) continue;
        const Call& waiting = call.what == RETURNED ? first : call;
        const Call& other = call.what == RETURNED ? call : first;
        const char* file = other.what == RETURNED ? "its end" : other.file;
        say("thread %d: waits at %s of %s:%d, where thread %d never comes: it is at %s:%d",
            call.what == RETURNED ? 0 : thread, NAMES[waiting.what], waiting.file, waiting.line,
            call.what == RETURNED ? thread : 0, file, other.line);
        return;
    }
}

void open_barrier() {
    int count = 0;
    for (int thread = 0; thread < threads; ++thread) count += all[thread].call.value != 0;
    int kind = all[0].call.kind;
    int answer = kind == BARRIER_OR ? count != 0 : kind == BARRIER_AND ? count == threads : count;
    for (int thread = 0; thread < threads; ++thread) {
        all[thread].answer = static_cast<unsigned long long>(answer);
        all[thread].call.what = RUNNING;
    }
    memory.barrier = ++memory.clock;
}

void run_block() {
    for (Shared& part : memory.shared)
        if (part.memory.nbytes()) memset(const_cast<unsigned char*>(part.memory.start), POISON, part.memory.nbytes());
    memory.barrier = ++memory.clock;
    for (Gathering& gathering : gatherings) gathering = {};
    for (int thread = 0; thread < threads; ++thread) {
        prepare(all[thread].context, all[thread].stack, STACK_BYTES, run_thread);
        all[thread].call = Call{};
        all[thread].closed_batches = 0;
    }
    int warps = (threads + WARP - 1) / WARP;
    for (bool backward = true;; backward = !backward) {
        for (int step = 0; step < warps && !failed; ++step)
            run_warp(backward ? warps - 1 - step : step, backward);
        if (!failed) check_all_agree();
        if (failed || all[0].call.what == RETURNED) return;
        open_barrier();
    }
}

bool make_stacks() {
    constexpr size_t GUARD_BYTES = 4096;
    constexpr int KIND = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    for (int thread = 0; thread < threads; ++thread) {
        if (all[thread].stack) continue;
        void* place = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE, KIND, -1, 0);
        if (place == MAP_FAILED || mprotect(place, GUARD_BYTES, PROT_NONE)) {
            say("thread %d: there is no memory for its stack", thread);
            return false;
        }
        all[thread].stack = static_cast<unsigned char*>(place) + GUARD_BYTES;
    }
    return true;
}

// All blocks, in an order that `seed` decides.
void run_blocks(unsigned seed) {
    Index grid = emulated_place.blocks;
    std::vector<unsigned long long> order(static_cast<size_t>(grid.x) * grid.y * grid.z);
    for (size_t number = 0; number < order.size(); ++number) order[number] = number;
    unsigned long long random = seed;
    for (size_t left = order.size(); left > 1; --left) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order[left - 1], order[(random >> 33) % left]);
    }
    for (unsigned long long number : order) {
        emulated_place.block = {static_cast<unsigned>(number % grid.x),
                                static_cast<unsigned>(number / grid.x % grid.y),
                                static_cast<unsigned>(number / grid.x / grid.y)};
        run_block();
        if (failed) return;
    }
}

}  // namespace
