//! Standard descriptors that were closed when the program began.
//!
//! Before `main`, Rust's runtime opens `/dev/null` at each of the numbers 0, 1 and 2 that is closed. The guest is to find them
//! closed, as natively, so they are looked at before that.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// Called by the C library's start-up code, before Rust's.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    for (fd, closed) in (0..).zip(&CLOSED) {
        // SAFETY: takes numbers, and has no other effect than to fail for a number that is not open.
        let is_closed = unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1;
        closed.store(is_closed, Ordering::Relaxed);
    }
}

/// Closes the standard descriptors that were closed when the program began. From then on their numbers are the guest's.
pub fn close_standard_again() {
    for (fd, closed) in (0..).zip(&CLOSED) {
        if closed.load(Ordering::Relaxed) {
            let _ = super::close(fd);
        }
    }
}
