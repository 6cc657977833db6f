// Threads that change places only when they say so, each on a stack of its own; they know nothing of kernels.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)

struct Context {
    void* stack_pointer;
};

// Saves what a call must preserve on the stack that is left, and takes it from the stack that is entered.
extern "C" void emulated_switch(void** left, void* entered) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, .-emulated_switch
)");

// The next switch to `context` calls `start` on the stack, which must never return.
inline void prepare(Context& context, unsigned char* stack, size_t nbytes, void (*start)()) {
    void** top = reinterpret_cast<void**>(stack + nbytes);
    *--top = nullptr;  // where `start` would return to; it also aligns the stack as a call does
    *--top = reinterpret_cast<void*>(start);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    context.stack_pointer = top;
}

inline void change(Context& left, Context& entered) { emulated_switch(&left.stack_pointer, entered.stack_pointer); }

#else  // slower, as every change is a call of the system, but the same on every processor

#include <ucontext.h>

struct Context {
    ucontext_t state;
};

inline void prepare(Context& context, unsigned char* stack, size_t nbytes, void (*start)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = nbytes;
    context.state.uc_link = nullptr;
    makecontext(&context.state, start, 0);
}

inline void change(Context& left, Context& entered) { swapcontext(&left.state, &entered.state); }

#endif
