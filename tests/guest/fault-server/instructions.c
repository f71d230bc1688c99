/* Instructions that user code may not execute, or not so. Some change flags or segments before they fault. */
#include "faults.h"

#include <fenv.h>
#include <stddef.h>

#define FAULT(function, ...)                                                                                          \
    static void function(void) { __asm__ volatile(__VA_ARGS__); }
#define CLOBBERS ::: "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "memory", "cc"

FAULT(divide, "xor %%ecx, %%ecx\n\tmov $1, %%eax\n\tcltd\n\tidiv %%ecx" CLOBBERS)
FAULT(divide_overflow, "mov $0x80000000, %%eax\n\tcltd\n\tmov $-1, %%ecx\n\tidiv %%ecx" CLOBBERS)
FAULT(ud0, ".byte 0x0f, 0xff, 0xc0" CLOBBERS)
FAULT(ud2, "ud2" CLOBBERS)
FAULT(bad_lock, ".byte 0xf0, 0x90" CLOBBERS)
FAULT(invalid_opcode, ".byte 0x06" CLOBBERS)
FAULT(into, ".byte 0xce" CLOBBERS)
FAULT(f00f, ".byte 0xf0, 0x0f, 0xc7, 0xc8" CLOBBERS)
FAULT(too_long, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90" CLOBBERS)
FAULT(hlt, "hlt" CLOBBERS)
FAULT(cli, "cli" CLOBBERS)
FAULT(sti, "sti" CLOBBERS)
FAULT(in, "mov $0x80, %%edx\n\tin %%dx, %%al" CLOBBERS)
FAULT(out, "mov $0x80, %%edx\n\tout %%al, %%dx" CLOBBERS)
/* The port that the monitor's own stub uses. */
FAULT(out_monitor, "out %%al, $0x10" CLOBBERS)
FAULT(ins, "mov $0x80, %%edx\n\tlea -64(%%rsp), %%rdi\n\tinsb" CLOBBERS)
FAULT(read_cr0, "mov %%cr0, %%rax" CLOBBERS)
FAULT(write_cr0, "xor %%eax, %%eax\n\tmov %%rax, %%cr0" CLOBBERS)
FAULT(write_cr3, "xor %%eax, %%eax\n\tmov %%rax, %%cr3" CLOBBERS)
FAULT(write_dr7, "xor %%eax, %%eax\n\tmov %%rax, %%db7" CLOBBERS)
FAULT(rdmsr, "mov $0xc0000082, %%ecx\n\trdmsr" CLOBBERS)
FAULT(wrmsr, "mov $0xc0000082, %%ecx\n\twrmsr" CLOBBERS)
FAULT(rdpmc, "mov $0x7fff, %%ecx\n\trdpmc" CLOBBERS)
FAULT(xsetbv, "xor %%ecx, %%ecx\n\txor %%edx, %%edx\n\tmov $3, %%eax\n\txsetbv" CLOBBERS)
FAULT(lgdt, "lgdt -16(%%rsp)" CLOBBERS)
FAULT(lidt, "lidt -16(%%rsp)" CLOBBERS)
FAULT(lldt, "mov $0x28, %%eax\n\tlldt %%ax" CLOBBERS)
FAULT(ltr, "mov $0x40, %%eax\n\tltr %%ax" CLOBBERS)
FAULT(lmsw, "xor %%eax, %%eax\n\tlmsw %%ax" CLOBBERS)
FAULT(clts, "clts" CLOBBERS)
FAULT(invd, "invd" CLOBBERS)
FAULT(wbinvd, "wbinvd" CLOBBERS)
FAULT(invlpg, "invlpg (%%rsp)" CLOBBERS)
FAULT(swapgs, "swapgs" CLOBBERS)
FAULT(sysret, "sysretq" CLOBBERS)
FAULT(sysexit, ".byte 0x0f, 0x35" CLOBBERS)
FAULT(rsm, ".byte 0x0f, 0xaa" CLOBBERS)
FAULT(vmxon, "vmxon (%%rsp)" CLOBBERS)
FAULT(vmrun, ".byte 0x0f, 0x01, 0xd8" CLOBBERS)
/* Under a hypervisor these are answered; the instruction behind them is not. */
FAULT(vmcall, "mov $1, %%eax\n\tvmcall\n\tud2" CLOBBERS)
FAULT(vmmcall, "mov $1, %%eax\n\tvmmcall\n\tud2" CLOBBERS)
FAULT(sysenter, "sysenter\n\tud2" CLOBBERS)
/* 32-bit getpid, where there is such a thing. */
FAULT(int_0x80, "mov $20, %%eax\n\tint $0x80\n\tud2" CLOBBERS)
FAULT(int1, ".byte 0xf1" CLOBBERS)
FAULT(int3, "int3" CLOBBERS)
FAULT(int_0, "int $0" CLOBBERS)
FAULT(int_1, "int $1" CLOBBERS)
FAULT(int_2, "int $2" CLOBBERS)
FAULT(int_6, "int $6" CLOBBERS)
FAULT(int_8, "int $8" CLOBBERS)
FAULT(int_13, "int $13" CLOBBERS)
FAULT(int_14, "int $14" CLOBBERS)
FAULT(int_16, "int $16" CLOBBERS)
FAULT(int_18, "int $18" CLOBBERS)
FAULT(int_0x20, "int $0x20" CLOBBERS)
FAULT(int_0xff, "int $0xff" CLOBBERS)
FAULT(iret_kernel, "push $0x18\n\tpush %%rsp\n\tpushfq\n\tpush $0x10\n\tpush $0\n\tiretq" CLOBBERS)
FAULT(iret_nowhere, "push $0x2b\n\tpush %%rsp\n\tpushfq\n\tpush $0x33\n\tpush $0\n\tiretq" CLOBBERS)
FAULT(iret_selector, "push $0x2b\n\tpush %%rsp\n\tpushfq\n\tpush $0xdea3\n\tpush $0\n\tiretq" CLOBBERS)
FAULT(retf_kernel, "push $0x10\n\tpush $0\n\tlretq" CLOBBERS)
FAULT(retf_selector, "push $0xdea3\n\tpush $0\n\tlretq" CLOBBERS)
FAULT(retf_task, "push $0x40\n\tpush $0\n\tlretq" CLOBBERS)
FAULT(retf_null, "push $0\n\tpush $0\n\tlretq" CLOBBERS)
FAULT(retf_32bit, "push $0x23\n\tpush $0\n\tlretq" CLOBBERS)
FAULT(load_ds, "mov $0xdea3, %%eax\n\tmov %%ax, %%ds" CLOBBERS)
FAULT(load_ds_kernel, "mov $0x18, %%eax\n\tmov %%ax, %%ds" CLOBBERS)
FAULT(load_ss, "mov $0xdea3, %%eax\n\tmov %%ax, %%ss" CLOBBERS)
FAULT(load_ss_null, "xor %%eax, %%eax\n\tmov %%ax, %%ss" CLOBBERS)
FAULT(load_fs, "mov $0xdea3, %%eax\n\tmov %%ax, %%fs" CLOBBERS)
FAULT(load_gs, "mov $0xdea3, %%eax\n\tmov %%ax, %%gs" CLOBBERS)
FAULT(load_cs, "mov $0x33, %%eax\n\t.byte 0x8e, 0xc8" CLOBBERS)
/* Valid selectors: the bases of FS and GS go with them. */
FAULT(lose_segments,
      "mov $0x2b, %%eax\n\tmov %%ax, %%es\n\tmov %%ax, %%gs\n\tmov %%ax, %%fs\n\txor %%eax, %%eax\n\tmov %%ax, %%ds\n\t"
      "mov %%fs:0, %%rax" CLOBBERS)
/* The same, and then a fault that is a system call: tgkill(getpid(), gettid(), SIGABRT). */
FAULT(lose_segments_and_abort,
      "mov $0x2b, %%eax\n\tmov %%ax, %%es\n\tmov %%ax, %%gs\n\tmov %%ax, %%fs\n\txor %%eax, %%eax\n\tmov %%ax, %%ds\n\t"
      "mov $39, %%eax\n\tsyscall\n\tmov %%eax, %%ebx\n\tmov $186, %%eax\n\tsyscall\n\tmov %%eax, %%esi\n\t"
      "mov %%ebx, %%edi\n\tmov $6, %%edx\n\tmov $234, %%eax\n\tsyscall" ::: "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r11", "memory")
FAULT(trap_flag, "pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\tnop\n\tnop" CLOBBERS)
FAULT(trap_flag_syscall, "mov $39, %%eax\n\tpushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\tsyscall\n\tnop" ::: "rax", "rcx", "r11", "memory")
FAULT(alignment, "pushfq\n\torq $0x40000, (%%rsp)\n\tpopfq\n\tmov -13(%%rsp), %%rax" CLOBBERS)
FAULT(nested_task, "pushfq\n\torq $0x4000, (%%rsp)\n\tpopfq\n\tpush $0x2b\n\tpush %%rsp\n\tpushfq\n\tpush $0x33\n\tpush $0\n\tiretq" CLOBBERS)
FAULT(io_privilege, "pushfq\n\torq $0x3000, (%%rsp)\n\tpopfq\n\tcli" CLOBBERS)
FAULT(direction, "std\n\tud2" CLOBBERS)
FAULT(all_flags, "push $0x4cd5\n\tpopfq\n\tud2" CLOBBERS)
FAULT(misaligned_vector, "movaps -17(%%rsp), %%xmm0" ::: "xmm0", "memory")
FAULT(noncanonical_stack_base, "push %%rbp\n\tmovabs $0x8000000000001000, %%rbp\n\tmov (%%rbp), %%rax\n\tpop %%rbp" ::: "rax", "memory")

static void vector_exception(void)
{
    feenableexcept(FE_DIVBYZERO);
    __asm__ volatile("xorps %%xmm1, %%xmm1\n\tmov $1, %%eax\n\tcvtsi2sd %%eax, %%xmm0\n\tdivsd %%xmm1, %%xmm0"
                     ::: "rax", "xmm0", "xmm1");
}

static void x87_exception(void)
{
    feenableexcept(FE_DIVBYZERO);
    __asm__ volatile("fld1\n\tfldz\n\tfdivrp\n\tfwait" ::: "memory");
}

const struct fault instruction_faults[] = {
    {"divide", divide},
    {"divide-overflow", divide_overflow},
    {"vector-exception", vector_exception},
    {"x87-exception", x87_exception},
    {"ud0", ud0},
    {"ud2", ud2},
    {"bad-lock", bad_lock},
    {"invalid-opcode", invalid_opcode},
    {"into", into},
    {"f00f", f00f},
    {"too-long", too_long},
    {"hlt", hlt},
    {"cli", cli},
    {"sti", sti},
    {"in", in},
    {"out", out},
    {"out-monitor", out_monitor},
    {"ins", ins},
    {"read-cr0", read_cr0},
    {"write-cr0", write_cr0},
    {"write-cr3", write_cr3},
    {"write-dr7", write_dr7},
    {"rdmsr", rdmsr},
    {"wrmsr", wrmsr},
    {"rdpmc", rdpmc},
    {"xsetbv", xsetbv},
    {"lgdt", lgdt},
    {"lidt", lidt},
    {"lldt", lldt},
    {"ltr", ltr},
    {"lmsw", lmsw},
    {"clts", clts},
    {"invd", invd},
    {"wbinvd", wbinvd},
    {"invlpg", invlpg},
    {"swapgs", swapgs},
    {"sysret", sysret},
    {"sysexit", sysexit},
    {"rsm", rsm},
    {"vmxon", vmxon},
    {"vmrun", vmrun},
    {"vmcall", vmcall},
    {"vmmcall", vmmcall},
    {"sysenter", sysenter},
    {"int-0x80", int_0x80},
    {"int1", int1},
    {"int3", int3},
    {"int-0", int_0},
    {"int-1", int_1},
    {"int-2", int_2},
    {"int-6", int_6},
    {"int-8", int_8},
    {"int-13", int_13},
    {"int-14", int_14},
    {"int-16", int_16},
    {"int-18", int_18},
    {"int-0x20", int_0x20},
    {"int-0xff", int_0xff},
    {"iret-kernel", iret_kernel},
    {"iret-nowhere", iret_nowhere},
    {"iret-selector", iret_selector},
    {"retf-kernel", retf_kernel},
    {"retf-selector", retf_selector},
    {"retf-task", retf_task},
    {"retf-null", retf_null},
    {"retf-32bit", retf_32bit},
    {"load-ds", load_ds},
    {"load-ds-kernel", load_ds_kernel},
    {"load-ss", load_ss},
    {"load-ss-null", load_ss_null},
    {"load-fs", load_fs},
    {"load-gs", load_gs},
    {"load-cs", load_cs},
    {"lose-segments", lose_segments},
    {"lose-segments-and-abort", lose_segments_and_abort},
    {"trap-flag", trap_flag},
    {"trap-flag-syscall", trap_flag_syscall},
    {"alignment", alignment},
    {"nested-task", nested_task},
    {"io-privilege", io_privilege},
    {"direction", direction},
    {"all-flags", all_flags},
    {"misaligned-vector", misaligned_vector},
    {"noncanonical-stack-base", noncanonical_stack_base},
    {NULL, NULL},
};
