//! `--learn`: what requests teach about their inputs, and which inputs the guest does not get to see.
//!
//! Only a connection that owes nothing teaches, and only on such a one is anything refused: the server may
//! have kept the start of a request in its memory (a parser's state), and then the bytes that came last are
//! not what crashed it. A connection owes an answer from a request that ends without one until output is
//! sent to it.

use std::borrow::Cow;
use std::time::Instant;

use recovery::Origin;
use recovery::event::{Event, FaultKind, Hex, Outcome, Refused};
use recovery::learn::{INPUT_LIMIT, Refusal, Site, Verdict};

use super::State;
use super::domain::Domain;
use super::effects::Deferred;
use super::reporter::FaultRecord;
use super::thread::Thread;
use crate::host;
use crate::memory::common::Common;

impl Domain {
    /// The whole of what the server got to see, if it began with that.
    pub fn whole_input(&self) -> Option<&[u8]> {
        let whole = self.is_fresh && self.input_len == self.input.len() as u64;
        Some(&*self.input).filter(|input| whole && !input.is_empty())
    }
}

impl State {
    /// A request with a whole input was abandoned. If that did not go as it should (it was committed early, or
    /// others have used what it wrote), the fault may be somebody else's doing.
    pub fn request_crashed(&mut self, common: &Common, record: &FaultRecord) {
        let (Outcome::Recovered, Some(offenders)) = (record.outcome, &mut self.offenders) else {
            return;
        };
        if record.kind == FaultKind::Timeout {
            // How long a request takes depends on more than its input.
            return;
        }
        let site = Site {
            kind: record.kind,
            rip: record.rip,
        };
        offenders.crashed(&common.lessons, &record.input, site, Instant::now());
    }
}

impl Thread {
    /// The domain is about to commit.
    pub fn request_succeeded(&self, state: &mut State, domain: &Domain) {
        let matters = state.offenders.is_some()
            || self.process.options.error_reply.is_some()
            || state.handoffs.provenance.is_recording();
        let (Origin::Stream(fd), true) = (domain.origin, matters) else {
            return;
        };
        let is_answer = |e: &Deferred| matches!(e, Deferred::Send { fd: to, .. } | Deferred::SendTo { fd: to, .. } if *to == fd);
        if domain.input_len > 0 && !domain.journal.deferred().iter().any(is_answer) {
            state.files.set_owing(fd);
        }
        if let (Some(offenders), Some(input)) = (&mut state.offenders, domain.whole_input()) {
            offenders.succeeded(&self.process.common.lessons, input, Instant::now());
        }
    }

    /// Whether the guest must not get to see `bytes`, which begin a request on the connection `fd`. The
    /// connection has ended then. `filled` says that the guest has asked for no more than that.
    pub fn refuses(&self, state: &mut State, fd: i32, bytes: &[u8], filled: bool) -> bool {
        let Some(offenders) = &mut state.offenders else {
            return false;
        };
        let offenders = offenders.known(&self.process.common.lessons, Instant::now());
        if offenders.is_empty() {
            return false;
        }
        if state.files.is_owing(fd) {
            return false;
        }
        let mut input = Cow::Borrowed(bytes);
        if filled && offenders.may_begin(bytes) {
            // The guest will read the rest in the same request.
            let mut rest = [0u8; INPUT_LIMIT];
            let n = host::receive(fd, &mut rest, true).unwrap_or(0);
            input.to_mut().extend_from_slice(&rest[..n]);
        }
        match offenders.arrived(&input, Instant::now()) {
            Verdict::Deliver => false,
            Verdict::Refuse(refusal) => {
                self.refuse(state, fd, &input, refusal);
                true
            }
        }
    }

    fn refuse(&self, state: &mut State, fd: i32, input: &[u8], refusal: Refusal) {
        self.process.stats.offenders.refused.inc();
        if let Some(count) = refusal.told {
            self.process.reporter.emit(Event::Refused(Refused {
                peer: host::peer_name(fd),
                input_bytes: input.len() as u64,
                count,
                crashes: refusal.crashes,
                kind: refusal.site.kind,
                rip: Hex(refusal.site.rip),
            }));
        }
        self.end_connection(state, fd, true, input);
    }
}
