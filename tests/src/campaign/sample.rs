//! A handful of trials for the unit tests: one of each thing that can become of a fault.

use super::trial::{Control, Detection, Failure, FailureKind, Outcome, Trial};

/// A fault that was recovered from without a flaw.
pub(super) fn trial(server: &str, class: &str) -> Trial {
    Trial {
        number: 0,
        server: server.to_owned(),
        class: class.to_owned(),
        spec: format!("{class},skip=3"),
        request: "GET k".to_owned(),
        injected: Some("bit 5 of rax".to_owned()),
        control: Control::Died("signal 11".to_owned()),
        activated: true,
        detected: Some(detection(false)),
        outcome: Some(Outcome::Recovered),
        reason: None,
        pause_us: Some(100),
        failures: Vec::new(),
    }
}

fn detection(latent: bool) -> Detection {
    let kind = "null-read".to_owned();
    Detection { kind, latent }
}

fn failure(kind: FailureKind, detail: &str) -> Failure {
    let detail = detail.to_owned();
    Failure { kind, detail }
}

/// Twelve trials of two servers.
pub(super) fn trials() -> Vec<Trial> {
    let bit = trial("redis", "pointer=bit");
    let null = trial("redis", "pointer=null");
    let nginx = trial("nginx", "stack|<b>");
    let mut trials = vec![
        bit.clone(),
        Trial {
            pause_us: Some(200),
            ..bit.clone()
        },
        Trial {
            detected: Some(detection(true)),
            pause_us: Some(300),
            ..bit.clone()
        },
        // Recovered, but a client saw wrong data: silent.
        Trial {
            pause_us: Some(4000),
            failures: vec![failure(FailureKind::StaleValue, "key k7: version 3")],
            ..bit.clone()
        },
        // No place to inject at.
        Trial {
            injected: None,
            activated: false,
            detected: None,
            outcome: None,
            pause_us: None,
            ..bit.clone()
        },
        // No effect at all.
        Trial {
            control: Control::Survived,
            activated: false,
            detected: None,
            outcome: None,
            pause_us: None,
            ..bit
        },
        Trial {
            outcome: Some(Outcome::Degraded),
            reason: Some("lock held by another thread".to_owned()),
            pause_us: None,
            failures: vec![failure(FailureKind::LostWrite, "key k8: version 9")],
            ..null.clone()
        },
        Trial {
            outcome: Some(Outcome::Escalated),
            reason: Some("no <safe> point | found".to_owned()),
            pause_us: None,
            failures: vec![failure(FailureKind::ServerDied, "exit code 70")],
            ..null.clone()
        },
        Trial {
            outcome: None,
            pause_us: None,
            failures: vec![failure(FailureKind::ServerHung, "no answer in 5 s")],
            ..null.clone()
        },
        // Caught by nobody, and yet nobody saw anything wrong.
        Trial {
            control: Control::Hung,
            detected: None,
            outcome: None,
            pause_us: None,
            ..null
        },
        // It would have survived without the monitor, too; but with wrong data: silent.
        Trial {
            control: Control::Wrong("truncated page".to_owned()),
            detected: None,
            outcome: None,
            pause_us: None,
            failures: vec![failure(
                FailureKind::WrongValue,
                "<script>alert(1)</script> | `x`",
            )],
            ..nginx.clone()
        },
        Trial {
            control: Control::Survived,
            detected: None,
            outcome: None,
            pause_us: None,
            ..nginx
        },
    ];
    for (number, trial) in (0..).zip(&mut trials) {
        trial.number = number;
    }
    trials
}
