/* Mappings: a table of small ones, changed page by page. */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLOTS 24
#define PAGES_MAX 48
#define READ_WRITE (PROT_READ | PROT_WRITE)

struct slot {
    char *at; /* NULL: free */
    size_t pages;
    uint8_t protection[PAGES_MAX];
    uint8_t zero_based[PAGES_MAX]; /* private and anonymous */
};

static struct slot slots[SLOTS];
static int shared_fd = -1;
static char *alias_a, *alias_b;
enum { ALIAS_PAGES = 4 };

void mapping_init(void) {
    shared_fd = open("shared", O_RDWR | O_CLOEXEC);
    alias_a = mmap(NULL, ALIAS_PAGES * PAGE, READ_WRITE, MAP_SHARED, data_rw_fd, 0);
    alias_b = mmap(NULL, ALIAS_PAGES * PAGE, READ_WRITE, MAP_SHARED, data_rw_fd, 0);
    if (shared_fd < 0 || alias_a == MAP_FAILED || alias_b == MAP_FAILED)
        die("mapping");
}

static struct slot *any(struct run *run) { return &slots[below(run, SLOTS)]; }

static struct slot *used(struct run *run) {
    for (int i = 0; i < 4; i++) {
        struct slot *slot = any(run);
        if (slot->at)
            return slot;
    }
    return NULL;
}

static void drop(struct slot *slot) {
    if (slot->at)
        munmap(slot->at, slot->pages * PAGE);
    slot->at = NULL;
}

static void set_pages(struct slot *slot, size_t from, size_t count, int protection, int zero_based) {
    memset(slot->protection + from, protection, count);
    memset(slot->zero_based + from, zero_based, count);
}

static void keep(struct slot *slot, void *at, size_t pages, int protection, int zero_based) {
    if (at == MAP_FAILED)
        return;
    slot->at = at;
    slot->pages = pages;
    set_pages(slot, 0, pages, protection, zero_based);
}

/* Writes to some of the pages that can be written. */
static void touch_pages(struct run *run, struct slot *slot) {
    for (size_t i = 0; i < slot->pages; i++)
        if (slot->protection[i] == READ_WRITE && one_in(run, 3))
            slot->at[i * PAGE + below(run, PAGE)] ^= (char)(1 + below(run, 255));
}

static void map_anonymous(struct run *run) {
    struct slot *slot = any(run);
    size_t pages = 1 + below(run, PAGES_MAX);
    int protection = one_in(run, 6) ? PROT_NONE : READ_WRITE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (one_in(run, 4) ? MAP_POPULATE : 0);
    drop(slot);
    keep(slot, mmap(NULL, pages * PAGE, protection, flags, -1, 0), pages, protection, 1);
    if (slot->at && one_in(run, 2))
        touch_pages(run, slot);
}

static void map_file_private(struct run *run) {
    struct slot *slot = any(run);
    size_t pages = 1 + below(run, 8), offset = below(run, 8);
    drop(slot);
    void *at = mmap(NULL, pages * PAGE, READ_WRITE, MAP_PRIVATE, data_fd, (off_t)(offset * PAGE));
    keep(slot, at, pages, READ_WRITE, 0);
    if (slot->at && one_in(run, 2))
        touch_pages(run, slot);
}

static void map_anonymous_shared(struct run *run) {
    struct slot *slot = any(run);
    size_t pages = 1 + below(run, 8);
    drop(slot);
    void *at = mmap(NULL, pages * PAGE, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    keep(slot, at, pages, READ_WRITE, 0);
    if (slot->at && one_in(run, 2))
        touch_pages(run, slot);
}

/*
 * What is written through such a mapping is in the file, even when the mapping is gone. Too large for the holes of the
 * fence: calls outside of requests write there.
 */
static void map_file_shared(struct run *run) {
    struct slot *slot = any(run);
    size_t pages = 2 + below(run, 3), offset = below(run, 4);
    drop(slot);
    void *at = mmap(NULL, pages * PAGE, READ_WRITE, MAP_SHARED, shared_fd, (off_t)(offset * PAGE));
    keep(slot, at, pages, READ_WRITE, 0);
    if (slot->at)
        touch_pages(run, slot);
}

static void map_fixed(struct run *run) {
    struct slot *slot = used(run);
    if (!slot)
        return;
    size_t from = below(run, slot->pages), count = 1 + below(run, slot->pages - from);
    int protection = one_in(run, 4) ? PROT_READ : READ_WRITE;
    void *at = mmap(slot->at + from * PAGE, count * PAGE, protection,
                    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at != MAP_FAILED)
        set_pages(slot, from, count, protection, 1);
    expect(run, at != MAP_FAILED, "map_fixed");
    touch_pages(run, slot);
}

static void unmap(struct run *run) {
    struct slot *slot = used(run);
    if (!slot)
        return;
    touch_pages(run, slot);
    drop(slot);
}

/* From the start, the end or the middle; what lies behind becomes a slot of its own. */
static void unmap_part(struct run *run) {
    struct slot *slot = used(run), *rest = any(run);
    if (!slot || rest->at)
        return;
    touch_pages(run, slot);
    size_t from = below(run, slot->pages), count = 1 + below(run, slot->pages - from);
    size_t behind = slot->pages - from - count;
    if (munmap(slot->at + from * PAGE, count * PAGE)) {
        expect(run, 0, "munmap");
        return;
    }
    if (behind) {
        rest->at = slot->at + (from + count) * PAGE;
        rest->pages = behind;
        memcpy(rest->protection, slot->protection + from + count, behind);
        memcpy(rest->zero_based, slot->zero_based + from + count, behind);
    }
    slot->pages = from;
    if (!from)
        slot->at = NULL;
}

static void protect(struct run *run) {
    static const int choices[] = {PROT_NONE, PROT_READ, READ_WRITE, READ_WRITE};
    struct slot *slot = used(run);
    if (!slot)
        return;
    if (one_in(run, 2))
        touch_pages(run, slot);
    size_t from = below(run, slot->pages), count = 1 + below(run, slot->pages - from);
    int protection = choices[below(run, 4)];
    int failed = mprotect(slot->at + from * PAGE, count * PAGE, protection);
    expect(run, !failed, "mprotect");
    if (!failed)
        memset(slot->protection + from, protection, count);
    touch_pages(run, slot);
}

/* Whether the mapping is one of private anonymous memory: only that can be moved. */
static int movable(const struct slot *slot) {
    for (size_t i = 0; i < slot->pages; i++)
        if (slot->protection[i] != READ_WRITE || !slot->zero_based[i])
            return 0;
    return 1;
}

static void remap(struct run *run) {
    struct slot *slot = used(run);
    if (!slot || !movable(slot))
        return;
    size_t pages = 1 + below(run, PAGES_MAX);
    touch_pages(run, slot);
    uint64_t first;
    memcpy(&first, slot->at, sizeof first);
    char *at = mremap(slot->at, slot->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
    /* Pages of one kind may still be several mappings. */
    if (at == MAP_FAILED)
        return;
    slot->at = at;
    slot->pages = pages;
    set_pages(slot, 0, pages, READ_WRITE, 1);
    expect(run, memcmp(at, &first, sizeof first) == 0, "mremap");
    touch_pages(run, slot);
}

static void remap_fixed(struct run *run) {
    struct slot *slot = used(run);
    if (!slot || !movable(slot))
        return;
    touch_pages(run, slot);
    char *target = mmap(NULL, slot->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (target == MAP_FAILED)
        return;
    uint64_t first;
    memcpy(&first, slot->at, sizeof first);
    char *at = mremap(slot->at, slot->pages * PAGE, slot->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
    if (at == MAP_FAILED) {
        munmap(target, slot->pages * PAGE);
        return;
    }
    slot->at = at;
    expect(run, memcmp(at, &first, sizeof first) == 0, "mremap to a fixed place");
}

static void discard(struct run *run) {
    struct slot *slot = used(run);
    if (!slot || !movable(slot))
        return;
    touch_pages(run, slot);
    size_t from = below(run, slot->pages), count = 1 + below(run, slot->pages - from);
    if (madvise(slot->at + from * PAGE, count * PAGE, MADV_DONTNEED) == 0)
        expect(run, slot->at[from * PAGE + below(run, count * PAGE)] == 0, "MADV_DONTNEED");
    if (one_in(run, 2))
        touch_pages(run, slot);
}

/* How allocators give memory back: inaccessible first, then discarded. */
static void discard_inaccessible(struct run *run) {
    struct slot *slot = used(run);
    if (!slot || !movable(slot))
        return;
    size_t len = slot->pages * PAGE;
    slot->at[0] = 1;
    mprotect(slot->at, len, one_in(run, 2) ? PROT_NONE : PROT_READ);
    expect(run, madvise(slot->at, len, MADV_DONTNEED) == 0, "MADV_DONTNEED without write access");
    mprotect(slot->at, len, READ_WRITE);
    expect(run, slot->at[0] == 0, "MADV_DONTNEED without write access left the contents");
}

static void touch(struct run *run) {
    struct slot *slot = used(run);
    if (slot)
        touch_pages(run, slot);
}

/* Room at the end of the heap that malloc does not know of; given back only while nothing lies behind it. */
static char *heap_end;
static size_t heap_extra;

static void grow_heap(struct run *run) {
    size_t len = (1 + below(run, 8)) * PAGE + below(run, 100);
    char *old = sbrk((intptr_t)len);
    if (old == (char *)-1)
        return;
    heap_extra = heap_end == old ? heap_extra + len : len;
    heap_end = old + len;
    scribble(run, old, len < PAGE ? len : PAGE);
    old[len - 1] = 1;
}

static void shrink_heap(struct run *run) {
    if (!heap_extra || sbrk(0) != heap_end)
        return;
    size_t len = 1 + below(run, heap_extra);
    if (sbrk(-(intptr_t)len) != (char *)-1) {
        heap_extra -= len;
        heap_end -= len;
    }
}

static void write_aliases(struct run *run) {
    for (int i = 0; i < 4; i++) {
        char *alias = one_in(run, 2) ? alias_a : alias_b;
        alias[below(run, ALIAS_PAGES * PAGE)] ^= 1;
    }
    expect(run, memcmp(alias_a, alias_b, ALIAS_PAGES * PAGE) == 0, "two mappings of one file differ");
}

static void write_alias_by_call(struct run *run) {
    char bytes[100];
    scribble(run, bytes, sizeof bytes);
    if (pwrite(data_rw_fd, bytes, sizeof bytes, (off_t)below(run, ALIAS_PAGES * PAGE - 100)) < 0)
        expect(run, 0, "pwrite to a mapped file");
}

/* Reservations of terabytes, with pieces that are in use here and there. */
#define TIB ((size_t)1 << 40)
enum { RESERVATIONS = 3, PIECES = 6, PIECE_PAGES = 8 };
static const size_t piece_len = PIECE_PAGES * PAGE;

struct reservation {
    char *at; /* NULL: free */
    size_t share; /* bytes, of which each piece is a part */
    struct piece {
        size_t offset;
        int protection;
        char mark; /* what its first byte is */
    } pieces[PIECES];
};

static struct reservation reservations[RESERVATIONS];

static struct reservation *any_reservation(struct run *run) {
    struct reservation *r = &reservations[below(run, RESERVATIONS)];
    return r->at ? r : NULL;
}

/* Small enough that there is always room in 39 TiB, wherever the others lie. */
static void reserve(struct run *run) {
    struct reservation *r = &reservations[below(run, RESERVATIONS)];
    if (r->at)
        return;
    size_t share = TIB / 2 + below(run, 2) * TIB / 2;
    char *at = mmap(NULL, PIECES * share, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    expect(run, at != MAP_FAILED, "a reservation");
    if (at == MAP_FAILED)
        return;
    *r = (struct reservation){.at = at, .share = share};
    for (size_t i = 0; i < PIECES; i++)
        r->pieces[i].offset = i * share + below(run, share / PAGE - PIECE_PAGES) * PAGE;
}

static void change_piece(struct run *run, struct reservation *r, struct piece *piece) {
    static const int choices[] = {PROT_NONE, PROT_READ, READ_WRITE, READ_WRITE, READ_WRITE};
    char *at = r->at + piece->offset;
    if (one_in(run, 6)) {
        expect(run, mmap(at, piece_len, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at, "a piece");
        piece->protection = READ_WRITE;
        piece->mark = 0;
    } else if (piece->protection != READ_WRITE || one_in(run, 3)) {
        piece->protection = choices[below(run, 5)];
        expect(run, mprotect(at, piece_len, piece->protection) == 0, "a piece of a reservation");
    }
    if (piece->protection != PROT_NONE)
        expect(run, *at == piece->mark, "a piece has other contents");
    if (piece->protection != READ_WRITE)
        return;
    *at = piece->mark = (char)below(run, 256);
    if (one_in(run, 3))
        expect(run, pread(data_fd, at + 1, 3 * PAGE, 0) > 0, "a read into a piece");
    for (size_t i = 1; i < PIECE_PAGES; i++)
        if (one_in(run, 3))
            at[i * PAGE + below(run, PAGE)] ^= 1;
}

static void change_pieces(struct run *run) {
    struct reservation *r = any_reservation(run);
    for (size_t i = 0; r && i < 1 + below(run, 3); i++)
        change_piece(run, r, &r->pieces[below(run, PIECES)]);
}

static void reserve_and_use(struct run *run) {
    reserve(run);
    change_pieces(run);
}

static void unreserve(struct run *run) {
    struct reservation *r = any_reservation(run);
    if (!r)
        return;
    change_piece(run, r, &r->pieces[below(run, PIECES)]);
    size_t first = below(run, PIECES) * r->share;
    expect(run, (!first || !munmap(r->at, first)) && !munmap(r->at + first, PIECES * r->share - first), "munmap");
    r->at = NULL;
}

static void discard_reserved(struct run *run) {
    struct reservation *r = any_reservation(run);
    if (!r)
        return;
    change_piece(run, r, &r->pieces[below(run, PIECES)]);
    expect(run, madvise(r->at, PIECES * r->share, MADV_DONTNEED) == 0, "MADV_DONTNEED of a reservation");
    for (size_t i = 0; i < PIECES; i++)
        r->pieces[i].mark = 0;
}

/* As a whole, to where there is room for more. */
static void remap_reserved(struct run *run) {
    struct reservation *r = any_reservation(run);
    if (!r)
        return;
    size_t len = PIECES * r->share;
    expect(run, mprotect(r->at, len, PROT_NONE) == 0, "PROT_NONE of a reservation");
    for (size_t i = 0; i < PIECES; i++)
        r->pieces[i].protection = PROT_NONE;
    char *at = mremap(r->at, len, len + PAGE, MREMAP_MAYMOVE);
    /* What was mapped anew is a mapping of its own. */
    if (at == MAP_FAILED)
        return;
    r->at = at;
    expect(run, munmap(at + len, PAGE) == 0, "munmap behind a reservation");
    change_piece(run, r, &r->pieces[below(run, PIECES)]);
}

static void probe_pages(char *at, size_t pages, const uint8_t *protection, void (*each)(unsigned long, int, int, int)) {
    for (size_t page = 0; page < pages; page++, at += PAGE) {
        int reads = syscall(SYS_futex, at, FUTEX_CMP_REQUEUE_PRIVATE, 0, 0, at + 4, 0x1234567) >= 0 ||
                    errno != EFAULT;
        int writes = syscall(SYS_futex, arena, FUTEX_WAKE_OP_PRIVATE, 0, 0, at,
                             FUTEX_OP(FUTEX_OP_ADD, 0, FUTEX_OP_CMP_EQ, 0)) >= 0;
        each((unsigned long)at, reads, writes, protection[page]);
    }
}

void probe_mappings(void (*each)(unsigned long, int, int, int)) {
    for (size_t i = 0; i < SLOTS; i++)
        if (slots[i].at)
            probe_pages(slots[i].at, slots[i].pages, slots[i].protection, each);
    for (struct reservation *r = reservations; r < reservations + RESERVATIONS; r++)
        for (size_t i = 0; r->at && i < PIECES; i++) {
            uint8_t protection[PIECE_PAGES];
            memset(protection, r->pieces[i].protection, sizeof protection);
            probe_pages(r->at + r->pieces[i].offset, PIECE_PAGES, protection, each);
        }
}

const struct operation mapping_operations[] = {
    {"map_anonymous", SET_MAPPING, map_anonymous},
    {"map_file_private", SET_MAPPING, map_file_private},
    {"map_anonymous_shared", SET_MAPPING, map_anonymous_shared},
    {"map_file_shared", SET_MAPPING, map_file_shared},
    {"map_fixed", SET_MAPPING, map_fixed},
    {"unmap", SET_MAPPING, unmap},
    {"unmap_part", SET_MAPPING, unmap_part},
    {"protect", SET_MAPPING, protect},
    {"remap", SET_MAPPING, remap},
    {"remap_fixed", SET_MAPPING, remap_fixed},
    {"discard", SET_MAPPING, discard},
    {"discard_inaccessible", SET_MAPPING, discard_inaccessible},
    {"touch", SET_MAPPING, touch},
    {"reserve", SET_MAPPING, reserve_and_use},
    {"change_pieces", SET_MAPPING, change_pieces},
    {"unreserve", SET_MAPPING, unreserve},
    {"discard_reserved", SET_MAPPING, discard_reserved},
    {"remap_reserved", SET_MAPPING, remap_reserved},
    {"grow_heap", SET_MAPPING, grow_heap},
    {"shrink_heap", SET_MAPPING, shrink_heap},
    {"write_aliases", SET_MAPPING, write_aliases},
    {"write_alias_by_call", SET_ALIAS, write_alias_by_call},
    {0},
};
