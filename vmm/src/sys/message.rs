//! Several messages in one call.

use guest_agentless::Errno;

use super::{Call, Handler};

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_sendmmsg => sendmmsg,
        libc::SYS_recvmmsg => recvmmsg,
        _ => return None,
    })
}

/// `struct mmsghdr`: a header, and the number of bytes.
const SIZE: u64 = 64;
const LEN: u64 = 56;
/// Messages in one call, at most, as in Linux.
const MOST: u64 = 1024;

fn sendmmsg(call: &mut Call) -> Result<u64, Errno> {
    let (fd, first, flags) = (call.int(0), call.args[1], call.int(3));
    let count = call.row.count(2, &call.args).min(MOST);
    for i in 0..count {
        let message = first.checked_add(i * SIZE).ok_or(Errno::EFAULT)?;
        let sent = call
            .send_message(fd, message, flags)
            .and_then(|n| call.write(message + LEN, &(n as u32).to_ne_bytes()));
        match sent {
            Ok(()) => {}
            // The call does not take place.
            Err(error) if i == 0 || call.done.is_some() => return Err(error),
            Err(_) => return Ok(i),
        }
    }
    Ok(count)
}

/// One message at a time: each is a request of its own.
fn recvmmsg(call: &mut Call) -> Result<u64, Errno> {
    let (fd, message, flags) = (call.int(0), call.args[1], call.int(3));
    if call.row.count(2, &call.args) == 0 {
        return Ok(0);
    }
    let n = call.receive_message(fd, message, flags & !libc::MSG_WAITFORONE)?;
    call.write(message + LEN, &(n as u32).to_ne_bytes())?;
    Ok(1)
}
