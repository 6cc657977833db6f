// Collectives of a warp: all lanes bring something, the last to come answers for all; it knows no block.
#pragma once
#include <algorithm>

#include "emulated_half.h"
#include "emulated_threads.h"

namespace {

enum Shuffle { SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };
enum Vote { VOTE_BALLOT, VOTE_ANY, VOTE_ALL };

bool takes_part(unsigned mask, int lane) { return mask >> lane & 1; }

void answer_shuffles(Thread* warp, unsigned mask) {
    for (int lane = 0; lane < WARP; ++lane) {
        if (!takes_part(mask, lane)) continue;
        const Call& call = warp[lane].call;
        int first = lane & ~(call.width - 1), other = lane;
        if (call.kind == SHUFFLE_INDEX) other = first | (call.argument & (call.width - 1));
        if (call.kind == SHUFFLE_UP && lane - call.argument >= first) other = lane - call.argument;
        if (call.kind == SHUFFLE_DOWN && lane + call.argument < first + call.width) other = lane + call.argument;
        if (call.kind == SHUFFLE_XOR && (lane ^ call.argument) < first + call.width) other = lane ^ call.argument;
        if (!takes_part(mask, other))
            fail(nullptr, "lane %d takes a value from lane %d, which takes no part (%s:%d)", lane, other, call.file,
                 call.line);
        warp[lane].answer = warp[other].call.value;
    }
}

void answer_votes(Thread* warp, unsigned mask) {
    unsigned votes = 0;
    for (int lane = 0; lane < WARP; ++lane)
        if (takes_part(mask, lane) && warp[lane].call.value) votes |= 1u << lane;
    for (int lane = 0; lane < WARP; ++lane) {
        if (!takes_part(mask, lane)) continue;
        int kind = warp[lane].call.kind;
        warp[lane].answer = kind == VOTE_BALLOT ? votes : kind == VOTE_ANY ? votes != 0 : votes == mask;
    }
}

// c (16, 8) += a (16, 16) b (16, 8), rounded once as devices of compute capability 9 do it: the order of the sixteen does
// not matter (in double precision, for numbers that are not too far apart). Who holds what is told in common.cuh.
void answer_products(Thread* warp) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < WARP; ++lane) {
        int row = lane / 4, column = lane % 4 * 2;
        for (int part = 0; part < 4; ++part)
            for (int place = 0; place < 2; ++place) {
                unsigned short bits = static_cast<unsigned short>(warp[lane].call.a[part] >> 16 * place);
                a[row + part % 2 * 8][column + part / 2 * 8 + place] = emulated_widened(bits);
            }
        for (int part = 0; part < 2; ++part)
            for (int place = 0; place < 2; ++place) {
                unsigned short bits = static_cast<unsigned short>(warp[lane].call.b[part] >> 16 * place);
                b[column + part * 8 + place][row] = emulated_widened(bits);
            }
    }
    for (int row = 0; row < 16; ++row) {
        double sums[8] = {};
        for (int inner = 0; inner < 16; ++inner)
            for (int column = 0; column < 8; ++column)
                sums[column] += static_cast<double>(a[row][inner]) * b[inner][column];
        for (int column = 0; column < 8; ++column)
            warp[row % 8 * 4 + column / 2].call.c[row / 8 * 2 + column % 2] = static_cast<float>(
                warp[row % 8 * 4 + column / 2].call.c[row / 8 * 2 + column % 2] + sums[column]);
    }
}

void answer_matrices(Thread* warp) {
    unsigned short element[4][8][8];
    for (int lane = 0; lane < WARP; ++lane) memcpy(element[lane / 8][lane % 8], warp[lane].call.row, 16);
    for (int lane = 0; lane < WARP; ++lane)
        for (int matrix = 0; matrix < 4; ++matrix) {
            auto& from = element[matrix];
            int row = lane / 4, column = lane % 4 * 2;
            bool transposed = warp[lane].call.kind != 0;
            unsigned first = transposed ? from[column][row] : from[row][column];
            unsigned second = transposed ? from[column + 1][row] : from[row][column + 1];
            warp[lane].call.result[matrix] = first | second << 16;
        }
}

// Ends the launch if a lane of the mask can never come to where the thread that runs is.
void check_can_come(Thread* warp, int lane) {
    const Call &mine = now().call, &other = warp[lane].call;
    int thread = thread_now / WARP * WARP + lane;
    if (thread >= threads)
        fail(nullptr, "%s of %s:%d names lane %d, which the block does not have", NAMES[mine.what], mine.file,
             mine.line, lane);
    bool waits_for_others = other.what >= AT_WARP_BARRIER && !takes_part(other.mask, thread_now % WARP);
    if (other.what == RUNNING || waits_for_others || (mine.same_place(other) && mine.mask == other.mask)) return;
    if (other.what == RETURNED)
        fail(nullptr, "waits at %s of %s:%d for thread %d, which has returned", NAMES[mine.what], mine.file, mine.line,
             thread);
    fail(nullptr, "waits at %s of %s:%d for thread %d, which waits at %s of %s:%d", NAMES[mine.what], mine.file,
         mine.line, thread, NAMES[other.what], other.file, other.line);
}

// Lanes of the mask that are where the thread that runs is. `others_run`: whether all the others of the mask run.
unsigned lanes_here(Thread* warp, bool& others_run) {
    const Call& mine = now().call;
    const int lanes = std::min(WARP, threads - thread_now / WARP * WARP);
    unsigned here = 0;
    others_run = true;
    for (int lane = 0; lane < WARP; ++lane) {
        if (!takes_part(mine.mask, lane)) continue;
        const Call& other = warp[lane].call;
        if (lane < lanes && other.what == mine.what && other.mask == mine.mask && mine.same_place(other)) {
            here |= 1u << lane;
            continue;
        }
        if (lane >= lanes || other.what != RUNNING) {
            others_run = false;
            check_can_come(warp, lane);
        }
    }
    return here;
}

// Whether the thread that runs is the last of its mask to come. Nobody is looked at where it comes to a gathering that
// nothing but such arrivals has changed since all lanes were looked at.
bool all_are_here(Thread* warp) {
    const Call& mine = now().call;
    Gathering& gathering = gatherings[thread_now / WARP];
    const Call& first = warp[gathering.lane].call;
    unsigned here = gathering.here | 1u << thread_now % WARP;
    bool others_run = true;
    if (!gathering.here || first.mask != mine.mask || !first.same_place(mine)) {
        here = lanes_here(warp, others_run);
        gathering.lane = thread_now % WARP;
    }
    gathering.here = here != mine.mask && others_run ? here : 0;
    return here == mine.mask;
}

// Waits until every lane of the call's mask is here; this lane's answer.
unsigned long long meet(const Call& call) {
    Thread* warp = all + thread_now / WARP * WARP;
    now().call = call;
    if (!takes_part(call.mask, thread_now % WARP))
        fail(nullptr, "is not in the mask %08x of %s of %s:%d", call.mask, NAMES[call.what], call.file, call.line);
    if (!all_are_here(warp)) {
        leave();
        return now().answer;
    }
    if (call.what == AT_WARP_BARRIER) memory.warp_barrier[thread_now / WARP] = ++memory.clock;
    if (call.what == AT_SHUFFLE) answer_shuffles(warp, call.mask);
    if (call.what == AT_VOTE) answer_votes(warp, call.mask);
    if (call.what == AT_PRODUCT) answer_products(warp);
    if (call.what == AT_MATRICES) answer_matrices(warp);
    for (int lane = 0; lane < WARP; ++lane)
        if (takes_part(call.mask, lane)) warp[lane].call.what = RUNNING;
    return now().answer;
}

}  // namespace
