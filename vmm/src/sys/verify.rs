//! `--verify-heap`: the place of the check.

use guest_agentless::Errno;
use guest_agentless::syscall::Effect;
use recovery::Origin;

use super::Call;
use crate::process::domain::Domain;
use crate::process::files::Kind;

impl Call<'_, '_> {
    /// Checks the heap before a call that would commit the running request. An error if the request is
    /// abandoned instead, and the call is not to be made.
    pub(super) fn verify_heap(&mut self) -> Result<(), Errno> {
        if self.state.heap.is_none() || !self.ends_request() {
            return Ok(());
        }
        match self.thread.verify_heap(self.state) {
            None => Ok(()),
            Some(fault) => self.fault(fault).and(Err(Errno::EFAULT)),
        }
    }

    /// The call is over.
    pub(super) fn heap_unverified(&mut self) {
        if let Some(watch) = &mut self.state.heap {
            watch.guest_runs();
        }
    }

    /// Whether the call ends the request that is running, at once or because it cannot be undone. To say
    /// yes too often only costs a check: the thread is not in malloc, which makes no such call.
    fn ends_request(&mut self) -> bool {
        let domain = self.state.domain.as_ref();
        let Some(domain) = domain.filter(|domain| domain.is_request()) else {
            return false;
        };
        match self.row.effect {
            Effect::Boundary | Effect::External => true,
            Effect::Origin => {
                let fd = self.args[0] as i32;
                !goes_on(domain, fd) && self.state.files.kind(fd) != Kind::File
            }
            _ => false,
        }
    }
}

/// Whether a read from `fd` continues the request.
fn goes_on(domain: &Domain, fd: i32) -> bool {
    domain.origin == Origin::Stream(fd)
        && !domain.has_deferred()
        && domain.committed_early.is_none()
}
