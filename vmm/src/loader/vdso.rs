//! The vDSO and the clock page before it.

use std::os::fd::BorrowedFd;

use guest_agentless::{Backing, Errno, GuestRange, PAGE_SIZE, Protection, Vma};

use crate::memory::{AddressSpace, Source, copy};

/// Maps the clock page and, right after it, `image`; returns where the image is.
///
/// The clock page is shared with its keeper and read-only for the guest. The image is the guest's own copy,
/// as on Linux, where a debugger may plant breakpoints in it.
pub fn map(
    space: &mut AddressSpace,
    clock: BorrowedFd<'_>,
    image: &[u8],
) -> Result<GuestRange, Errno> {
    let len = (image.len() as u64)
        .checked_next_multiple_of(PAGE_SIZE)
        .and_then(|len| len.checked_add(PAGE_SIZE))
        .ok_or(Errno::ENOMEM)?;
    let place = space.find_free(0, len, false).ok_or(Errno::ENOMEM)?;
    let image_start = place.start() + PAGE_SIZE;

    let page = Vma::new(
        GuestRange::from_bounds(place.start(), image_start),
        Protection::READ,
        true,
        Backing::Vvar,
    );
    space.map(page, Source::File(clock, 0), 0)?;

    let code = Vma::new(
        GuestRange::from_bounds(image_start, place.end()),
        Protection::READ | Protection::WRITE,
        false,
        Backing::Vdso,
    );
    let range = code.range;
    space.map(code, Source::Zeros, 0)?;
    copy::write(image_start, image).map_err(|_| Errno::EFAULT)?;
    space.protect(range, Protection::READ | Protection::EXEC)?;
    Ok(range)
}
