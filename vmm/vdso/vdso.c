/*
 * The guest's vDSO: clocks without a system call.
 *
 * The code runs in the guest, so it trusts the clock page and has no state of its own: no libc, no
 * relocations, no writable data, no floating point. What the page cannot answer (CPU-time clocks, bad
 * clock ids, CLOCK_MODE_SYSCALL) goes to the kernel by the `syscall` instruction, as in Linux' own vDSO.
 */
#include "clock_page.h"

#define NSEC_PER_SEC 1000000000u
#define NSEC_PER_USEC 1000u

/* The x86-64 Linux ABI; spelled out because the image is built without any libc header. */
enum { NR_gettimeofday = 96, NR_time = 201, NR_clock_gettime = 228, NR_clock_getres = 229, NR_getcpu = 309 };

enum clock_id {
	CLOCK_REALTIME = 0,
	CLOCK_MONOTONIC = 1,
	CLOCK_MONOTONIC_RAW = 4,
	CLOCK_REALTIME_COARSE = 5,
	CLOCK_MONOTONIC_COARSE = 6,
	CLOCK_BOOTTIME = 7,
	CLOCK_TAI = 11,
};

struct timespec {
	int64_t tv_sec;
	int64_t tv_nsec;
};

struct timeval {
	int64_t tv_sec;
	int64_t tv_usec;
};

/* Placed one page before the image by vdso.lds; hidden, so that the access is RIP-relative. */
extern const struct clock_page vmsrs_clock_page __attribute__((visibility("hidden")));

#define EXPORT __attribute__((visibility("default"), used))

static inline long syscall3(long nr, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "0"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

/* LFENCE: not before the load of the sequence. RDTSCP would do as well but is missing on some CPUs. */
static inline uint64_t read_tsc(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

/* The sequence once it is even: the writer's odd section is some 100 ns long. */
static inline uint32_t read_begin(void)
{
	uint32_t sequence;

	while ((sequence = __atomic_load_n(&vmsrs_clock_page.sequence, __ATOMIC_ACQUIRE)) & 1)
		__builtin_ia32_pause();
	return sequence;
}

/*
 * True if the page changed. The address of the load depends on `tsc`, so the processor cannot do the
 * load first: `tsc` is then older than any later `tsc_base`, which makes the clocks monotonic.
 */
static inline int read_retry(uint32_t sequence, uint64_t tsc)
{
	const uint32_t *address = &vmsrs_clock_page.sequence;

	__asm__ volatile("and $0, %0\n\tadd %1, %0" : "+&r"(tsc) : "r"(address) : "cc", "memory");
	return __atomic_load_n((const uint32_t *)tsc, __ATOMIC_ACQUIRE) != sequence;
}

static inline uint64_t load(const uint64_t *field)
{
	return __atomic_load_n(field, __ATOMIC_RELAXED);
}

/* A TSC that is a little behind another processor's counts as the start of the line. */
static inline uint64_t line_at(uint64_t ticks, uint64_t base_ns, uint64_t mult)
{
	if ((int64_t)ticks < 0)
		ticks = 0;
	return base_ns + (uint64_t)((unsigned __int128)ticks * mult >> CLOCK_MULT_SHIFT);
}

/* The last host tick at or before `mono_ns`. */
static inline uint64_t coarse_at(uint64_t mono_ns)
{
	uint64_t anchor = load(&vmsrs_clock_page.coarse_anchor_ns);
	uint64_t floor = load(&vmsrs_clock_page.coarse_floor_ns);
	uint64_t step = load(&vmsrs_clock_page.coarse_step_ns);
	uint64_t ahead = mono_ns - anchor;
	uint64_t tick;

	/* The step is zero only in a page that is just changing: the result is then thrown away. */
	if ((int64_t)ahead < 0 || step == 0)
		return floor;
	tick = anchor + ahead / step * step;
	return tick > floor ? tick : floor;
}

/* Nanoseconds of a supported clock. False: ask the kernel. Inlined for a constant `id`. */
static inline __attribute__((always_inline)) int clock_ns(enum clock_id id, uint64_t *result)
{
	const struct clock_page *page = &vmsrs_clock_page;
	uint32_t sequence;
	uint64_t ns, tsc, ticks;

	do {
		sequence = read_begin();
		if (__atomic_load_n(&page->mode, __ATOMIC_RELAXED) != CLOCK_MODE_TSC)
			return 0;
		tsc = read_tsc();
		ticks = tsc - load(&page->tsc_base);
		if (id == CLOCK_MONOTONIC_RAW)
			ns = line_at(ticks, load(&page->raw_base_ns), load(&page->raw_mult));
		else
			ns = line_at(ticks, load(&page->mono_base_ns), load(&page->mono_mult));
		if (id == CLOCK_REALTIME_COARSE || id == CLOCK_MONOTONIC_COARSE)
			ns = coarse_at(ns);
		if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)
			ns += load(&page->realtime_offset_ns);
		else if (id == CLOCK_BOOTTIME)
			ns += load(&page->boottime_offset_ns);
		else if (id == CLOCK_TAI)
			ns += load(&page->tai_offset_ns);
	} while (read_retry(sequence, tsc));

	*result = ns;
	return 1;
}

EXPORT int __vdso_clock_gettime(int id, struct timespec *ts)
{
	uint64_t ns;
	int known;

	/* One inlined copy each for the two that matter, so that they have no further branches. */
	switch (id) {
	case CLOCK_MONOTONIC:
		known = clock_ns(CLOCK_MONOTONIC, &ns);
		break;
	case CLOCK_REALTIME:
		known = clock_ns(CLOCK_REALTIME, &ns);
		break;
	case CLOCK_MONOTONIC_RAW:
	case CLOCK_REALTIME_COARSE:
	case CLOCK_MONOTONIC_COARSE:
	case CLOCK_BOOTTIME:
	case CLOCK_TAI:
		known = clock_ns((enum clock_id)id, &ns);
		break;
	default:
		known = 0;
	}
	if (!known)
		return (int)syscall3(NR_clock_gettime, id, (long)ts, 0);
	ts->tv_sec = (int64_t)(ns / NSEC_PER_SEC);
	ts->tv_nsec = (int64_t)(ns % NSEC_PER_SEC);
	return 0;
}

EXPORT int __vdso_gettimeofday(struct timeval *tv, void *tz)
{
	uint64_t ns;

	/* The kernel's time zone is obsolete and not in the page. */
	if (tz != NULL || tv == NULL || !clock_ns(CLOCK_REALTIME, &ns))
		return (int)syscall3(NR_gettimeofday, (long)tv, (long)tz, 0);
	tv->tv_sec = (int64_t)(ns / NSEC_PER_SEC);
	tv->tv_usec = (int64_t)(ns % NSEC_PER_SEC / NSEC_PER_USEC);
	return 0;
}

/* As in Linux, the seconds of the coarse clock. */
EXPORT int64_t __vdso_time(int64_t *result)
{
	uint64_t ns;
	int64_t seconds;

	if (!clock_ns(CLOCK_REALTIME_COARSE, &ns))
		return syscall3(NR_time, (long)result, 0, 0);
	seconds = (int64_t)(ns / NSEC_PER_SEC);
	if (result != NULL)
		*result = seconds;
	return seconds;
}

EXPORT int __vdso_clock_getres(int id, struct timespec *res)
{
	const struct clock_page *page = &vmsrs_clock_page;
	uint64_t ns;

	/* Written once, before the guest starts: no retry is needed. */
	if (__atomic_load_n(&page->mode, __ATOMIC_ACQUIRE) != CLOCK_MODE_TSC)
		return (int)syscall3(NR_clock_getres, id, (long)res, 0);
	switch (id) {
	case CLOCK_REALTIME:
	case CLOCK_MONOTONIC:
	case CLOCK_MONOTONIC_RAW:
	case CLOCK_BOOTTIME:
	case CLOCK_TAI:
		ns = load(&page->resolution_ns);
		break;
	case CLOCK_REALTIME_COARSE:
	case CLOCK_MONOTONIC_COARSE:
		ns = load(&page->coarse_step_ns);
		break;
	default:
		return (int)syscall3(NR_clock_getres, id, (long)res, 0);
	}
	if (res != NULL) {
		res->tv_sec = (int64_t)(ns / NSEC_PER_SEC);
		res->tv_nsec = (int64_t)(ns % NSEC_PER_SEC);
	}
	return 0;
}

/* The guest's processor number is the one its host thread runs on: only the kernel knows. */
EXPORT long __vdso_getcpu(unsigned *cpu, unsigned *node, void *unused)
{
	return syscall3(NR_getcpu, (long)cpu, (long)node, (long)unused);
}

/* Linux exports the plain names too, weakly. */
#define WEAK_ALIAS(name) EXPORT __attribute__((weak, alias("__vdso_" #name)))
WEAK_ALIAS(clock_gettime) int clock_gettime(int id, struct timespec *ts);
WEAK_ALIAS(gettimeofday) int gettimeofday(struct timeval *tv, void *tz);
WEAK_ALIAS(time) int64_t time(int64_t *result);
WEAK_ALIAS(clock_getres) int clock_getres(int id, struct timespec *res);
WEAK_ALIAS(getcpu) long getcpu(unsigned *cpu, unsigned *node, void *unused);
