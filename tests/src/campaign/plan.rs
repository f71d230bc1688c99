//! What each trial of a campaign is: it follows from the campaign's seed and the trial's number alone.

use crate::load::Random;

/// A class of faults, as the monitor names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The name, as in `vmsrs run --inject NAME:...`.
    pub name: &'static str,
    /// What the server does with it.
    pub nature: Nature,
}

/// How a fault acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// The request itself goes wrong at once, and nothing else does.
    Immediate,
    /// A system call or an allocation fails, which the server may well handle.
    Error,
    /// Something is damaged that may be used at any later time, if ever.
    Damage,
    /// The request never ends, or not before it has used up what it may.
    Endless,
}

/// All classes, in the order in which they take turns.
pub const CLASSES: [Class; 17] = {
    const fn class(name: &'static str, nature: Nature) -> Class {
        Class { name, nature }
    }
    [
        class("rip=null", Nature::Immediate),
        class("rip=garbage", Nature::Immediate),
        class("rip=heap", Nature::Immediate),
        class("pointer=bit", Nature::Damage),
        class("pointer=unmapped", Nature::Damage),
        class("return", Nature::Damage),
        class("canary", Nature::Damage),
        class("heap", Nature::Damage),
        class("flip=written", Nature::Damage),
        class("flip=code", Nature::Damage),
        class("flip=shared", Nature::Damage),
        class("alloc", Nature::Error),
        class("syscall=any", Nature::Error),
        class("abort", Nature::Immediate),
        class("loop", Nature::Endless),
        class("eat", Nature::Endless),
        class("hold", Nature::Endless),
    ]
};

/// System calls after which requests are struck at most, and pages.
const CALLS: u64 = 2;
const PAGES: u64 = 12;

/// One trial.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its number, from 0.
    pub number: u64,
    /// What is injected.
    pub class: Class,
    /// What makes its request different from all others: it is in its input.
    pub tag: String,
    /// The injection, as the monitor is told it.
    pub spec: String,
    /// Everything else is chosen from this.
    pub random: Random,
}

impl Plan {
    /// The trial with this number. `classes` take turns; `symbols` are functions that requests enter.
    pub fn new(seed: u64, number: u64, classes: &[Class], symbols: &[&str]) -> Plan {
        let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let class = classes[(number % classes.len() as u64) as usize];
        let tag = format!("atk{number:07}x");
        let place = place(class, symbols, &mut random);
        let seed = random.below(1 << 48);
        Plan {
            number,
            class,
            spec: format!("{}:match={tag},{place},times=1,seed={seed}", class.name),
            tag,
            random,
        }
    }
}

/// Where a request is struck. A request ends with the call by which the server asks for more work: damage done at that
/// call is no longer the request's, so that damage is done at its first call at the latest.
fn place(class: Class, symbols: &[&str], random: &mut Random) -> String {
    let calls = match class.nature {
        Nature::Damage => 1,
        _ => CALLS,
    };
    match (class.name, random.below(3)) {
        // They wait for the functions that they are about.
        ("alloc" | "hold", _) => "after=0".into(),
        // Only a call can fail.
        ("syscall=any", _) | (_, 0) => format!("after={}", random.below(calls)),
        (_, 1) if !symbols.is_empty() => {
            format!(
                "symbol={}",
                symbols[random.below(symbols.len() as u64) as usize]
            )
        }
        _ => format!("pages={}", 1 + random.below(PAGES)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trials_repeat_and_classes_take_turns() {
        let plan = |number| Plan::new(7, number, &CLASSES, &["f", "g"]);
        for number in 0..200 {
            assert_eq!(plan(number).spec, plan(number).spec);
            assert_eq!(plan(number).class, CLASSES[number as usize % CLASSES.len()]);
        }
        assert_ne!(plan(0).spec, plan(CLASSES.len() as u64).spec);
    }

    #[test]
    fn all_kinds_of_places_come_up() {
        let specs: Vec<String> = (0..500)
            .map(|number| Plan::new(1, number, &CLASSES, &["f"]).spec)
            .collect();
        for place in [
            ",after=0,",
            ",after=1,",
            ",pages=1,",
            ",pages=12,",
            ",symbol=f,",
        ] {
            assert!(specs.iter().any(|spec| spec.contains(place)), "{place}");
        }
        let damage = |spec: &&String| spec.starts_with("return") && spec.contains("after=1");
        assert_eq!(specs.iter().find(damage), None);
    }
}
