// Switches from one stack to another in a few instructions, without the operating system.
#pragma once

// Saves the callee-saved registers on the stack and the stack pointer in *from. Then continues
// where the stack `to` was saved.
extern "C" void emulator_switch(void** from, void* to);

#if defined(__APPLE__)
#define EMULATOR_SYMBOL "_emulator_switch"
#else
#define EMULATOR_SYMBOL "emulator_switch"
#endif

#if defined(__x86_64__)
asm(".text\n.globl " EMULATOR_SYMBOL "\n" EMULATOR_SYMBOL ":\n" R"(
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
)");

// A new stack; the first switch to it calls `function`.
inline void* emulator_new_stack(char* memory, unsigned long bytes, void (*function)()) {
    void** top = (void**)(memory + bytes);
    *--top = nullptr;  // return address of `function`; it also aligns the stack as a call does
    *--top = (void*)function;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    return top;
}

#elif defined(__aarch64__)
asm(".text\n.globl " EMULATOR_SYMBOL "\n" EMULATOR_SYMBOL ":\n" R"(
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");

inline void* emulator_new_stack(char* memory, unsigned long bytes, void (*function)()) {
    void** frame = (void**)(memory + bytes - 160);
    for (int i = 0; i < 20; i++) frame[i] = nullptr;
    frame[11] = (void*)function;  // x30, the address that `ret` jumps to
    return frame;
}

#else
#error "fiber.h supports x86-64 and aarch64"
#endif
