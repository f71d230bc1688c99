//! Buffers that a system call names: what Linux checks of them before a byte moves.
//!
//! Linux compares an address with the end of user space (`access_ok`) and looks at the memory itself only as it copies. So
//! a buffer of length zero may be anywhere, and one that is longer than what is mapped is an error only if as many
//! bytes arrive. A length above [`TRANSFERRED_MOST`] is cut.

use guest_agentless::{Errno, GuestRange, GuestVa};

use super::TRANSFERRED_MOST;

/// The end of user space with four levels of page tables (`TASK_SIZE_MAX`).
const USER_END: u64 = 0x7fff_ffff_f000;

/// The buffer of `read`, `write` and their kin. What is not the guest's memory is found out by who copies.
pub fn buffer(address: u64, len: u64) -> Result<GuestRange, Errno> {
    user_range(address, len)?;
    cut(address, len)
}

/// The buffer of `recv`, `send` and their kin, whose length is cut first.
pub fn message_buffer(address: u64, len: u64) -> Result<GuestRange, Errno> {
    let len = len.min(TRANSFERRED_MOST);
    user_range(address, len)?;
    cut(address, len)
}

fn cut(address: u64, len: u64) -> Result<GuestRange, Errno> {
    GuestRange::new(GuestVa(address), len.min(TRANSFERRED_MOST)).ok_or(Errno::EFAULT)
}

/// EFAULT for what is not user space.
pub fn user_range(address: u64, len: u64) -> Result<(), Errno> {
    match address.checked_add(len) {
        Some(end) if end <= USER_END => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_may_be_anywhere_in_user_space() {
        for address in [0, 0x1000, USER_END] {
            assert_eq!(buffer(address, 0).map(|range| range.len()), Ok(0));
        }
        assert_eq!(buffer(u64::MAX - 4095, 0), Err(Errno::EFAULT));
    }

    #[test]
    fn lengths_are_cut_before_or_after_they_are_judged() {
        let huge = 0x7fff_ffff_ffff_ffff;
        assert_eq!(buffer(0x1000, huge), Err(Errno::EFAULT));
        let cut = message_buffer(0x1000, huge).map(|range| range.len());
        assert_eq!(cut, Ok(TRANSFERRED_MOST));
        assert_eq!(
            message_buffer(0x1000, u64::MAX).map(|range| range.len()),
            cut
        );
        assert_eq!(message_buffer(u64::MAX, 1), Err(Errno::EFAULT));
    }
}
