/*
 * The clock page: what the monitor's keeper thread publishes and the vDSO reads.
 *
 * The page lies exactly one page before the vDSO image and is read-only for the guest. The same
 * layout is `Layout` in src/clock/page.rs, whose tests compare the offsets: change both together.
 *
 * Writer: makes `sequence` odd, takes `tsc_base` from the TSC *inside* the odd section, stores the
 * rest, makes `sequence` even. Since no reader accepts a TSC value taken while the sequence was odd,
 * everybody who used the old line did so before `tsc_base`, where the new line starts.
 */
#ifndef VMSRS_CLOCK_PAGE_H
#define VMSRS_CLOCK_PAGE_H

#include <stddef.h>
#include <stdint.h>

#define CLOCK_PAGE_SIZE 4096

/* Nanoseconds are `(ticks * mult) >> CLOCK_MULT_SHIFT`, with a 128-bit product. */
#define CLOCK_MULT_SHIFT 48

enum clock_mode {
	CLOCK_MODE_SYSCALL = 0, /* every call goes to the kernel; no other field is valid */
	CLOCK_MODE_TSC = 1,
};

struct clock_page {
	uint32_t sequence;
	uint32_t mode;

	uint64_t tsc_base;     /* where both lines start */
	uint64_t mono_base_ns; /* CLOCK_MONOTONIC at tsc_base */
	uint64_t mono_mult;
	uint64_t raw_base_ns; /* CLOCK_MONOTONIC_RAW at tsc_base */
	uint64_t raw_mult;

	/* To add to CLOCK_MONOTONIC, modulo 2^64. */
	uint64_t realtime_offset_ns;
	uint64_t boottime_offset_ns;
	uint64_t tai_offset_ns;

	/*
	 * CLOCK_MONOTONIC_COARSE advances at `anchor + n * step`, the host's own ticks, so that time() and
	 * the time stamps of files agree. `floor` is the last value of the line before this one: the
	 * result is never below it.
	 */
	uint64_t coarse_anchor_ns;
	uint64_t coarse_floor_ns;
	uint64_t coarse_step_ns; /* also its resolution */

	uint64_t resolution_ns; /* of the fine clocks */
};

_Static_assert(offsetof(struct clock_page, tsc_base) == 8, "layout of the clock page");
_Static_assert(offsetof(struct clock_page, tai_offset_ns) == 64, "layout of the clock page");
_Static_assert(sizeof(struct clock_page) == 104, "layout of the clock page");

#endif
