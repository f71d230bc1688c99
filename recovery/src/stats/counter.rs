//! The building blocks of the statistics.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The largest value seen.
#[derive(Debug, Default)]
pub struct Peak(AtomicU64);

impl Peak {
    /// The value is `n` now.
    pub fn raise(&self, n: u64) {
        self.0.fetch_max(n, Ordering::Relaxed);
    }

    /// The largest so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that goes up and down, and the largest that it ever had.
#[derive(Debug, Default)]
pub struct Level {
    now: AtomicU64,
    peak: Peak,
}

impl Level {
    /// The value is `n` now.
    pub fn set(&self, n: u64) {
        self.now.store(n, Ordering::Relaxed);
        self.peak.raise(n);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The largest so far.
    pub fn peak(&self) -> u64 {
        self.peak.get()
    }
}

/// System-call numbers that are counted one by one; Linux is below, and no guest can make us count more.
const CALLS: usize = 512;

/// A counter for each system-call number.
#[derive(Debug)]
pub struct CallCounters {
    by_number: [Counter; CALLS],
    out_of_range: Counter,
}

impl Default for CallCounters {
    fn default() -> Self {
        Self {
            by_number: std::array::from_fn(|_| Counter::default()),
            out_of_range: Counter::default(),
        }
    }
}

impl CallCounters {
    /// One more call of that number, whatever the guest says it is.
    pub fn inc(&self, number: u64) {
        usize::try_from(number)
            .ok()
            .and_then(|n| self.by_number.get(n))
            .unwrap_or(&self.out_of_range)
            .inc();
    }

    /// Calls of that number so far.
    pub fn get(&self, number: u64) -> u64 {
        let counter = usize::try_from(number)
            .ok()
            .and_then(|n| self.by_number.get(n));
        counter.map_or(0, Counter::get)
    }

    /// The counters that are not zero, by the name that `name` gives the number.
    pub(super) fn to_json(&self, name: impl Fn(u64) -> Option<&'static str>) -> Value {
        let mut members = Map::new();
        for (number, counter) in (0u64..).zip(&self.by_number) {
            let count = counter.get();
            if count > 0 {
                let key = name(number).map_or_else(|| format!("syscall_{number}"), str::to_owned);
                members.insert(key, count.into());
            }
        }
        if self.out_of_range.get() > 0 {
            members.insert("out_of_range".to_owned(), self.out_of_range.get().into());
        }
        Value::Object(members)
    }
}

/// Defines a struct of [`Counter`]s with its JSON form.
macro_rules! counters {
    ($(#[$doc:meta])+ $name:ident { $($(#[$field_doc:meta])+ $field:ident,)+ }) => {
        $(#[$doc])+
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$field_doc])+ pub $field: $crate::stats::Counter,)+
        }

        impl $name {
            fn to_json(&self) -> ::serde_json::Value {
                ::serde_json::json!({ $(stringify!($field): self.$field.get(),)+ })
            }
        }
    };
}
pub(super) use counters;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_number_and_wild_numbers_together() {
        let calls = CallCounters::default();
        for number in [0, 0, 511, 512, u64::MAX] {
            calls.inc(number);
        }
        assert_eq!((calls.get(0), calls.get(511), calls.get(512)), (2, 1, 0));
        let json = calls.to_json(|n| (n == 0).then_some("read"));
        assert_eq!(
            json,
            serde_json::json!({"read": 2, "syscall_511": 1, "out_of_range": 2})
        );
    }

    #[test]
    fn a_peak_keeps_the_largest() {
        let peak = Peak::default();
        [3, 9, 4].into_iter().for_each(|n| peak.raise(n));
        assert_eq!(peak.get(), 9);
    }

    #[test]
    fn no_increment_is_lost() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| counter.inc()));
            }
        });
        assert_eq!(counter.get(), 40_000);
    }
}
