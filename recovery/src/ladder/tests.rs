use super::*;
use proptest::prelude::*;

/// Rungs of the kind of origin that has most.
const LONGEST_CLIMB: usize = 4;

const KINDS: [OriginKind; 6] = [
    OriginKind::Stream,
    OriginKind::Accept,
    OriginKind::Datagram,
    OriginKind::Handoff,
    OriginKind::Internal,
    OriginKind::Timer,
];

fn site(thread: i32, rip: u64, origin: OriginKind) -> FaultSite {
    FaultSite {
        thread,
        rip,
        origin,
    }
}

fn all(_: Rung) -> bool {
    true
}

fn no_restart(rung: Rung) -> bool {
    rung != Rung::Restart
}

fn no_handoff(rung: Rung) -> bool {
    rung != Rung::Handoff
}

/// Asks for the next rung until it is to give up; at most 100 times.
fn climb(ladder: &mut Ladder, site: FaultSite, available: impl Fn(Rung) -> bool) -> Vec<Rung> {
    let now = Instant::now();
    let mut rungs = Vec::new();
    while rungs.len() < 100 && !matches!(rungs.last(), Some(Rung::GiveUp(_))) {
        rungs.push(ladder.next(site, now, &available));
    }
    rungs
}

const REPEATED: Rung = Rung::GiveUp(GiveUpReason::Repeated { rip: 0x10 });

#[test]
fn rungs_ascend_and_end_below_giving_up() {
    for kind in KINDS {
        assert!(rungs(kind).is_sorted_by(|a, b| a < b));
        assert!(rungs(kind).len() <= LONGEST_CLIMB);
        assert!(rungs(kind).iter().all(|rung| *rung < REPEATED));
        assert_eq!(rungs(kind).last(), Some(&Rung::Restart));
    }
}

#[test]
fn the_same_site_climbs_rung_by_rung() {
    let climbs = [
        (
            OriginKind::Stream,
            vec![Rung::Abandon, Rung::ResetDelivered, Rung::Restart, REPEATED],
        ),
        (
            OriginKind::Internal,
            vec![
                Rung::Rerun,
                Rung::Handoff,
                Rung::ResetDelivered,
                Rung::Restart,
                REPEATED,
            ],
        ),
        (
            OriginKind::Timer,
            vec![Rung::Rerun, Rung::Handoff, Rung::Restart, REPEATED],
        ),
    ];
    for (kind, expected) in climbs {
        let mut ladder = Ladder::default();
        assert_eq!(climb(&mut ladder, site(1, 0x10, kind), all), expected);
    }
}

#[test]
fn a_rung_that_is_not_there_is_left_out() {
    let stream = site(1, 0x10, OriginKind::Stream);
    let only_abandon = |rung| rung == Rung::Abandon;
    assert_eq!(
        climb(&mut Ladder::default(), stream, only_abandon),
        [Rung::Abandon, REPEATED]
    );
    let no_delivered = |rung| rung != Rung::ResetDelivered;
    assert_eq!(
        climb(&mut Ladder::default(), stream, no_delivered),
        [Rung::Abandon, Rung::Restart, REPEATED]
    );
    // It may come back: what was left out was not tried.
    let mut ladder = Ladder::default();
    let now = Instant::now();
    assert_eq!(ladder.next(stream, now, only_abandon), Rung::Abandon);
    assert_eq!(ladder.next(stream, now, only_abandon), REPEATED);
    assert_eq!(ladder.next(stream, now, all), Rung::ResetDelivered);
}

#[test]
fn progress_starts_over() {
    let now = Instant::now();
    let mut ladder = Ladder::default();
    let s = site(1, 0x10, OriginKind::Stream);
    for _ in 0..3 {
        assert_eq!(ladder.next(s, now, all), Rung::Abandon);
        ladder.progress(1);
    }
}

#[test]
fn progress_of_another_thread_does_not_excuse_a_repeat() {
    let now = Instant::now();
    let mut ladder = Ladder::default();
    let s = site(1, 0x10, OriginKind::Stream);
    assert_eq!(ladder.next(s, now, all), Rung::Abandon);
    ladder.progress(2);
    assert_eq!(ladder.next(s, now, all), Rung::ResetDelivered);
}

#[test]
fn thread_site_and_origin_tell_faults_apart() {
    let now = Instant::now();
    let mut ladder = Ladder::default();
    for (thread, rip) in [(1, 0x10), (2, 0x10), (1, 0x20)] {
        let rung = ladder.next(site(thread, rip, OriginKind::Stream), now, all);
        assert_eq!(rung, Rung::Abandon);
    }
    let timer = ladder.next(site(1, 0x10, OriginKind::Timer), now, all);
    assert_eq!(timer, Rung::Rerun);
}

#[test]
fn alternating_sites_are_repeats_too() {
    let now = Instant::now();
    let mut ladder = Ladder::default();
    for rung in [Rung::Abandon, Rung::ResetDelivered] {
        for rip in [0x10, 0x20] {
            let next = ladder.next(site(1, rip, OriginKind::Stream), now, all);
            assert_eq!(next, rung);
        }
    }
}

#[test]
fn ever_new_sites_without_progress_restart_or_give_up() {
    let now = Instant::now();
    for (available, last) in [
        (all as fn(Rung) -> bool, Rung::Restart),
        (
            no_restart,
            Rung::GiveUp(GiveUpReason::NoProgress { sites: SITES_LIMIT }),
        ),
    ] {
        let mut ladder = Ladder::default();
        for rip in 0..SITES_LIMIT as u64 {
            let next = ladder.next(site(1, rip, OriginKind::Stream), now, available);
            assert_eq!(next, Rung::Abandon);
        }
        let next = ladder.next(site(1, 0x1000, OriginKind::Stream), now, available);
        assert_eq!(next, last);
    }
}

#[test]
fn a_storm_over_many_threads_gives_up_and_a_quiet_second_ends_it() {
    let now = Instant::now();
    let mut ladder = Ladder::new(3, 0);
    let mut fault =
        |thread, at| ladder.next(site(thread, 0x10, OriginKind::Stream), at, no_restart);
    for thread in 0..3 {
        assert_eq!(fault(thread, now), Rung::Abandon);
    }
    let storm = Rung::GiveUp(GiveUpReason::Storm { limit: 3 });
    assert_eq!(fault(3, now), storm);
    assert_eq!(fault(4, now + STORM_PERIOD), Rung::Abandon);
}

#[test]
fn a_storm_is_ended_by_a_restart() {
    let now = Instant::now();
    let mut ladder = Ladder::new(3, 1);
    let mut fault = |thread| ladder.next(site(thread, 0x10, OriginKind::Stream), now, all);
    for thread in 0..3 {
        assert_eq!(fault(thread), Rung::Abandon);
    }
    assert_eq!(fault(3), Rung::Restart);
    for thread in 4..7 {
        assert_eq!(fault(thread), Rung::Abandon);
    }
    assert_eq!(fault(7), Rung::GiveUp(GiveUpReason::Restarts { limit: 1 }));
}

#[test]
fn progress_of_any_thread_ends_a_storm() {
    let now = Instant::now();
    let mut ladder = Ladder::new(3, 0);
    for thread in 0..100 {
        let next = ladder.next(site(thread, 0x10, OriginKind::Stream), now, all);
        assert_eq!(next, Rung::Abandon);
        ladder.progress(1000);
    }
}

#[test]
fn restarts_are_limited_in_a_minute_even_with_progress_in_between() {
    let start = Instant::now();
    let mut ladder = Ladder::new(DEFAULT_STORM_LIMIT, 3);
    let timer = site(1, 0x10, OriginKind::Timer);
    let mut fault_twice = |at| {
        assert_eq!(ladder.next(timer, at, no_handoff), Rung::Rerun);
        let rung = ladder.next(timer, at, no_handoff);
        ladder.progress(1);
        rung
    };
    for second in 0..3 {
        assert_eq!(
            fault_twice(start + Duration::from_secs(second)),
            Rung::Restart
        );
    }
    let limit = Rung::GiveUp(GiveUpReason::Restarts { limit: 3 });
    assert_eq!(fault_twice(start + Duration::from_secs(59)), limit);
    assert_eq!(fault_twice(start + Duration::from_secs(60)), Rung::Restart);
    assert_eq!(fault_twice(start + Duration::from_secs(60)), limit);
}

#[test]
fn a_reused_tid_starts_over() {
    let now = Instant::now();
    let mut ladder = Ladder::default();
    let s = site(1, 0x10, OriginKind::Stream);
    assert_eq!(ladder.next(s, now, all), Rung::Abandon);
    ladder.thread_ended(1);
    assert_eq!(ladder.next(s, now, all), Rung::Abandon);
    ladder.thread_ended(1);
    assert!(ladder.tried.is_empty());
}

proptest! {
    /// Without progress, a thread is given up after a bounded number of faults, whatever is available when.
    #[test]
    fn every_climb_ends(faults in prop::collection::vec((0u64..64, 0usize..6, any::<[bool; 3]>()), 300)) {
        let now = Instant::now();
        let mut ladder = Ladder::default();
        let helped = faults
            .iter()
            .filter(|(rip, kind, [handed_over, delivered, image])| {
                let available = |rung| match rung {
                    Rung::Handoff => *handed_over,
                    Rung::ResetDelivered => *delivered,
                    Rung::Restart => *image,
                    _ => true,
                };
                let rung = ladder.next(site(1, *rip, KINDS[*kind]), now, available);
                !matches!(rung, Rung::GiveUp(_))
            })
            .count();
        let restarts = DEFAULT_RESTART_LIMIT as usize;
        prop_assert!(helped <= SITES_LIMIT * (LONGEST_CLIMB - 1) + restarts);
    }

    /// At one site the rungs only ascend until it is given up.
    #[test]
    fn a_climb_ascends(kind in 0usize..6, available in prop::collection::vec(any::<[bool; 3]>(), 10)) {
        let now = Instant::now();
        let mut ladder = Ladder::default();
        let mut last = None;
        for [handed_over, delivered, image] in available {
            let rung = ladder.next(site(1, 0x10, KINDS[kind]), now, |rung| match rung {
                Rung::Handoff => handed_over,
                Rung::ResetDelivered => delivered,
                Rung::Restart => image,
                _ => true,
            });
            if !matches!(rung, Rung::GiveUp(_)) {
                prop_assert!(last < Some(rung), "{last:?} then {rung:?}");
                last = Some(rung);
            }
        }
    }
}
