//! Which call of a faulting thread is to be skipped.
//!
//! The domain is run again with all calls watched that led to the fault, outermost first. What their
//! arguments lead to says whom each works for. The work of one connection is skipped as a whole, so the
//! outermost such call is chosen; but a call that has called the same place for several connections is a loop
//! over tasks, and what it calls is chosen.

use super::attribution::Evidence;
use super::provenance::Producer;

/// A call instruction at one depth of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallSite {
    /// Address of the instruction.
    pub call: u64,
    /// The return address.
    pub after: u64,
    /// The stack pointer before the call, and after it.
    pub rsp: u64,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    site: CallSite,
    /// Calls since the last one of the site before this.
    calls: u32,
    /// Of the last call.
    evidence: Option<Evidence>,
    /// Whom the last call that tells worked for.
    known: Option<Producer>,
    /// It has worked for several connections since the last call of the site before this.
    mixed: bool,
}

impl Seen {
    fn new(site: CallSite) -> Seen {
        Seen {
            site,
            calls: 0,
            evidence: None,
            known: None,
            mixed: false,
        }
    }
}

/// The calls on the way to a fault, as they are watched.
#[derive(Debug, Clone)]
pub struct Trace {
    sites: Vec<Seen>,
}

impl Trace {
    /// Calls of one site that are watched: with more of them a rerun would take too long.
    pub const CALLS_MAX: u32 = 4096;

    /// Watches `sites`, the outermost first.
    pub fn new(sites: impl IntoIterator<Item = CallSite>) -> Trace {
        Trace {
            sites: sites.into_iter().map(Seen::new).collect(),
        }
    }

    /// The sites.
    pub fn sites(&self) -> impl Iterator<Item = CallSite> {
        self.sites.iter().map(|seen| seen.site)
    }

    /// Whether the instruction at `call` with that stack pointer is watched.
    pub fn watches(&self, call: u64, rsp: u64) -> bool {
        self.find(call, rsp).is_some()
    }

    fn find(&self, call: u64, rsp: u64) -> Option<usize> {
        self.sites()
            .position(|site| (site.call, site.rsp) == (call, rsp))
    }

    /// A watched call is about to be made. False if it is not worth watching any longer.
    pub fn called(&mut self, call: u64, rsp: u64, evidence: Option<Evidence>) -> bool {
        let Some(at) = self.find(call, rsp) else {
            return true;
        };
        let (outer, inner) = self.sites.split_at_mut(at + 1);
        for seen in inner {
            *seen = Seen::new(seen.site);
        }
        if let Some(seen) = outer.last_mut() {
            seen.calls += 1;
            let producer = evidence.map(|e| e.producer).or(seen.known);
            seen.mixed |= seen.known.is_some() && seen.known != producer;
            (seen.evidence, seen.known) = (evidence, producer);
            return seen.calls <= Self::CALLS_MAX;
        }
        true
    }

    /// The same fault again, in the last of the watched calls: which one to skip.
    pub fn choose(&self) -> Option<Plan> {
        let producer = self.producer()?;
        let from = self.sites.iter().rposition(|seen| seen.mixed).unwrap_or(0);
        let evidence = |i: &usize| self.sites[*i].evidence.filter(|e| e.producer == producer);
        let own: Vec<usize> = (from..self.sites.len())
            .filter(|i| evidence(i).is_some())
            .collect();
        let direct = |i: &usize| evidence(i).is_some_and(|e| e.direct);
        // What the arguments name comes before what is named further away: a pool leads to all its tasks.
        let mut candidates: Vec<usize> = own.iter().copied().filter(direct).collect();
        if candidates.is_empty() {
            candidates = own;
        }
        let target = *candidates.first()?;
        Some(Plan::new(self.sites.clone(), 0, target))
    }

    /// Whom most of the calls worked for whose arguments name a connection, or else of all; the outermost if
    /// there are several. Calls far inside have few arguments, and the other registers hold what was left there.
    fn producer(&self) -> Option<Producer> {
        let of = |wanted: &dyn Fn(&Evidence) -> bool| {
            let mut counts: Vec<(Producer, u32)> = Vec::new();
            for evidence in self.sites.iter().filter_map(|seen| seen.evidence) {
                if !wanted(&evidence) {
                    continue;
                }
                match counts.iter_mut().find(|(p, _)| *p == evidence.producer) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((evidence.producer, 1)),
                }
            }
            // The last of the maxima, from the inside out.
            counts.into_iter().rev().max_by_key(|(_, count)| *count)
        };
        let found = of(&|e| e.direct)
            .or_else(|| of(&|e| e.named))
            .or_else(|| of(&|_| true));
        found.map(|(producer, _)| producer)
    }
}

/// A call to be skipped, and the way to it.
#[derive(Debug, Clone)]
pub struct Plan {
    sites: Vec<Seen>,
    target: usize,
    /// The site that is to be called next, and how many calls of it have been seen.
    next: usize,
    calls: u32,
}

impl Plan {
    fn new(sites: Vec<Seen>, from: usize, target: usize) -> Plan {
        let next = (from..target).find(|i| sites[*i].calls > 0);
        Plan {
            sites,
            target,
            next: next.unwrap_or(target),
            calls: 0,
        }
    }

    /// The sites on the way that are still to be watched, the target last.
    pub fn sites(&self) -> impl Iterator<Item = CallSite> {
        self.sites[self.next..=self.target]
            .iter()
            .map(|seen| seen.site)
    }

    /// The site whose call is skipped.
    pub fn target(&self) -> CallSite {
        self.sites[self.target].site
    }

    /// Whom the call works for.
    pub fn evidence(&self) -> Option<Evidence> {
        self.sites[self.target].evidence
    }

    /// A call is about to be made: true if it is the one to skip.
    pub fn called(&mut self, call: u64, rsp: u64) -> bool {
        let seen = &self.sites[self.next];
        if (seen.site.call, seen.site.rsp) != (call, rsp) {
            return false;
        }
        self.calls += 1;
        if self.calls < seen.calls {
            return false;
        }
        let following = (self.next + 1..=self.target).find(|i| self.sites[*i].calls > 0);
        match following {
            Some(next) => (self.next, self.calls) = (next, 0),
            None => return true,
        }
        false
    }

    /// To skip the target did not help: a call further in, on the way from the target's own call.
    pub fn deeper(&self) -> Option<Plan> {
        let mut evidence = self.evidence()?;
        let belongs = |seen: &Seen| {
            let other = |e: Evidence| e.producer != evidence.producer;
            seen.calls > 0 && !seen.evidence.is_some_and(other)
        };
        let target = (self.target + 1..self.sites.len()).find(|i| belongs(&self.sites[*i]))?;
        let mut sites = self.sites.clone();
        if let Some(own) = sites[target].evidence {
            evidence = own;
        }
        sites[target].evidence = Some(evidence);
        Some(Plan::new(sites, self.target + 1, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;
    use proptest::prelude::*;

    fn site(n: u64) -> CallSite {
        CallSite {
            call: n * 16,
            after: n * 16 + 5,
            rsp: 0x1000 - n * 64,
        }
    }

    fn works_for(fd: i32) -> Option<Evidence> {
        Some(Evidence {
            producer: Producer {
                origin: Origin::Stream(fd),
                generation: 1,
            },
            score: 8,
            named: true,
            direct: true,
            signature: fd as u64,
        })
    }

    /// A trace in which the sites were called like that.
    fn traced(sites: u64, calls: &[(u64, Option<Evidence>)]) -> Trace {
        let mut trace = Trace::new((0..sites).map(site));
        for (n, evidence) in calls {
            assert!(trace.called(site(*n).call, site(*n).rsp, *evidence));
        }
        trace
    }

    /// The number of calls after which the plan skips one.
    fn skips_at(mut plan: Plan, calls: &[u64]) -> Option<usize> {
        calls
            .iter()
            .position(|n| plan.called(site(*n).call, site(*n).rsp))
    }

    #[test]
    fn the_outermost_call_that_belongs_to_the_culprit_is_skipped() {
        // A loop that executes three tasks, the last of which faults two calls further in.
        let calls = [(0, works_for(5)), (0, works_for(6)), (0, works_for(7))];
        let mut calls = calls.to_vec();
        calls.extend([(1, works_for(7)), (1, works_for(7)), (2, None)]);
        let plan = traced(3, &calls).choose().unwrap();
        assert_eq!(plan.target(), site(0));
        assert_eq!(plan.evidence(), works_for(7));
        assert_eq!(skips_at(plan, &[0, 0, 0]), Some(2));
    }

    #[test]
    fn a_loop_over_tasks_of_several_clients_is_not_skipped() {
        let calls = [
            (0, works_for(5)),
            (1, works_for(5)),
            (1, works_for(6)),
            (1, works_for(5)),
        ];
        let plan = traced(2, &calls).choose().unwrap();
        assert_eq!(plan.target(), site(1));
        assert_eq!(skips_at(plan, &[0, 1, 1, 1]), Some(3));
    }

    #[test]
    fn calls_in_an_earlier_activation_do_not_count() {
        let calls = [
            (0, None),
            (1, works_for(6)),
            (1, works_for(6)),
            (0, None),
            (1, works_for(5)),
        ];
        let plan = traced(2, &calls).choose().unwrap();
        assert_eq!(plan.target(), site(1));
        assert_eq!(skips_at(plan, &[0, 1, 1, 0, 1]), Some(4));
    }

    #[test]
    fn an_outer_call_that_leads_to_somebody_else_is_not_skipped() {
        // The pool leads to the one who queued last.
        let pool = works_for(9).map(|e| Evidence { direct: false, ..e });
        let calls = [(0, pool), (1, works_for(5))];
        assert_eq!(traced(2, &calls).choose().unwrap().target(), site(1));
        // Registers far inside hold anything.
        let calls = [(0, works_for(5)), (1, works_for(9))];
        assert_eq!(traced(2, &calls).choose().unwrap().target(), site(0));
    }

    #[test]
    fn a_pool_that_leads_to_the_culprit_is_not_skipped() {
        let pool = works_for(5).map(|e| Evidence { direct: false, ..e });
        let calls = [(0, pool), (1, works_for(5))];
        assert_eq!(traced(2, &calls).choose().unwrap().target(), site(1));
        assert_eq!(traced(1, &calls[..1]).choose().unwrap().target(), site(0));
    }

    #[test]
    fn without_evidence_nothing_is_skipped() {
        assert!(traced(2, &[(0, None), (1, None)]).choose().is_none());
        assert!(traced(0, &[]).choose().is_none());
    }

    #[test]
    fn where_it_did_not_help_the_next_call_is_skipped() {
        let calls = [
            (0, works_for(5)),
            (1, None),
            (1, None),
            (2, works_for(8)),
            (3, works_for(5)),
        ];
        let plan = traced(4, &calls).choose().unwrap();
        assert_eq!(plan.target(), site(0));
        let deeper = plan.deeper().unwrap();
        assert_eq!(deeper.target(), site(1));
        assert_eq!(skips_at(deeper.clone(), &[1, 1]), Some(1));
        let deepest = deeper.deeper().unwrap();
        assert_eq!(deepest.target(), site(3));
        assert_eq!(skips_at(deepest.clone(), &[2, 3]), Some(1));
        assert!(deepest.deeper().is_none());
    }

    #[test]
    fn a_site_that_is_called_too_often_is_given_up() {
        let mut trace = Trace::new([site(0)]);
        let calls = (0..).find(|_| !trace.called(site(0).call, site(0).rsp, None));
        assert_eq!(calls, Some(Trace::CALLS_MAX));
    }

    proptest! {
        /// A rerun that makes the same calls meets the skipped call where the trace saw its last one.
        #[test]
        fn a_plan_finds_the_last_call_of_its_target(
            earlier in prop::collection::vec((0..4u64, prop::option::of(5..8i32)), 0..60),
            // Every call is made from within those outside of it, so the last calls are in that order.
            last in prop::collection::vec(prop::collection::vec(prop::option::of(5..8i32), 1..4), 4),
        ) {
            let nested = last.iter().zip(0..).flat_map(|(fds, n)| fds.iter().map(move |fd| (n, *fd)));
            let calls: Vec<_> = earlier.into_iter().chain(nested).collect();
            let calls: Vec<_> = calls.into_iter().map(|(n, fd)| (n, fd.and_then(works_for))).collect();
            let trace = traced(4, &calls);
            let last = |n: u64| calls.iter().rposition(|(m, _)| *m == n);
            if let Some(plan) = trace.choose() {
                let target = (0..4).find(|n| site(*n) == plan.target()).unwrap();
                let calls: Vec<_> = calls.iter().map(|(n, _)| *n).collect();
                prop_assert_eq!(skips_at(plan, &calls), last(target));
            }
        }
    }
}
