//! What ought not to happen, and whether the monitor's account agrees with what the users did.

use super::crasher::{Crash, Saw};
use super::event::FaultEvent;

/// Something that ought not to happen.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// Who noticed: a user, or the demo itself.
    pub who: String,
    /// Whether that is one of the users who crash nothing.
    pub healthy: bool,
    /// The bug that was being set off, by index.
    pub bug: Option<usize>,
    /// What happened.
    pub what: String,
}

impl Trouble {
    /// Something that the demo itself noticed.
    pub fn of_the_demo(bug: Option<usize>, what: String) -> Self {
        Self {
            who: "the demo".to_owned(),
            healthy: false,
            bug,
            what,
        }
    }
}

/// The event of each crash, and the events of no crash. A port may be used again, so events of one address are taken
/// in the order of its crashes.
pub fn pair<'a>(
    crashes: &[Crash],
    events: &'a [FaultEvent],
) -> (Vec<Option<&'a FaultEvent>>, Vec<&'a FaultEvent>) {
    let mut left: Vec<_> = events.iter().collect();
    let mut event_of = |crash: &Crash| {
        let peer = crash.peer.to_string();
        let is_its = |event: &&FaultEvent| event.peer.as_deref() == Some(&peer);
        left.iter().position(is_its).map(|index| left.remove(index))
    };
    let paired = crashes.iter().map(&mut event_of).collect();
    (paired, left)
}

/// Where the monitor's account differs from what the users did.
pub fn disagreements(crashes: &[Crash], events: &[FaultEvent]) -> Vec<Trouble> {
    let (paired, unmatched) = pair(crashes, events);
    let mut troubles = Vec::new();
    for (crash, event) in crashes.iter().zip(paired) {
        if let Saw::Other(saw) = &crash.saw {
            let what = format!("a crashing request was answered: {saw}");
            troubles.push(Trouble::of_the_demo(Some(crash.bug), what));
        }
        match event {
            Some(event) => {
                if event.event == "escalated" {
                    let reason = event.reason.as_deref().unwrap_or("no reason given");
                    troubles.push(Trouble::of_the_demo(
                        Some(crash.bug),
                        format!("escalated: {reason}"),
                    ));
                }
            }
            None => troubles.push(Trouble::of_the_demo(
                Some(crash.bug),
                format!("no event for the crash by {}", crash.peer),
            )),
        }
    }
    troubles.extend(unmatched.iter().map(|event| {
        let peer = event.peer.as_deref().unwrap_or("nobody");
        Trouble::of_the_demo(
            None,
            format!("a fault was reported for {peer}, who caused none"),
        )
    }));
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash(port: u16) -> Crash {
        Crash {
            bug: 0,
            peer: ([127, 0, 0, 1], port).into(),
            saw: Saw::Reset,
        }
    }

    fn event(event: &str, port: u16) -> FaultEvent {
        let peer = Some(format!("127.0.0.1:{port}"));
        FaultEvent {
            event: event.to_owned(),
            peer,
            ..FaultEvent::default()
        }
    }

    #[test]
    fn each_crash_needs_one_event() {
        let crashes = [crash(1), crash(2), crash(1)];
        let mut events = vec![
            event("recovered", 1),
            event("degraded", 2),
            event("recovered", 1),
        ];
        assert!(disagreements(&crashes, &events).is_empty());
        events.pop();
        assert!(
            disagreements(&crashes, &events)[0]
                .what
                .contains("no event")
        );
    }

    #[test]
    fn a_port_that_is_used_again_is_another_crash() {
        let crashes = [crash(1), crash(2), crash(1)];
        let mut events = [1, 1, 3].map(|port| event("recovered", port));
        events[1].signal = Some("SIGFPE".to_owned());
        let (paired, left) = pair(&crashes, &events);
        assert_eq!(paired[0].and_then(|event| event.signal.as_deref()), None);
        assert!(paired[1].is_none());
        assert_eq!(
            paired[2].and_then(|event| event.signal.as_deref()),
            Some("SIGFPE")
        );
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn faults_of_others_and_escalations_are_trouble() {
        let events = [event("recovered", 1), event("recovered", 9)];
        assert!(
            disagreements(&[crash(1)], &events)[0]
                .what
                .contains("127.0.0.1:9, who caused none")
        );
        assert!(
            disagreements(&[crash(1)], &[event("escalated", 1)])[0]
                .what
                .contains("escalated")
        );
    }

    #[test]
    fn a_reply_to_a_crash_is_trouble() {
        let answered = Crash {
            saw: Saw::Other("the reply `+OK`".to_owned()),
            ..crash(1)
        };
        assert!(
            disagreements(&[answered], &[event("recovered", 1)])[0]
                .what
                .contains("+OK")
        );
    }
}
