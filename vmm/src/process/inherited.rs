//! What a program that the guest executes has from the monitor before its own.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use guest_agentless::SignalSet;

use crate::host::handles::Numbers;
use crate::memory::OwnLimits;

/// As it is written into the command line of the next monitor: whole numbers, with commas in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// The monitor's own descriptors.
    pub handles: Numbers,
    /// Limits that the host does not know.
    pub limits: OwnLimits,
    /// The guest's signal mask; the host's is closed.
    pub blocked: SignalSet,
    /// A file with the filters of system calls, or -1.
    pub filters: RawFd,
    /// A process of the guest has made this one.
    pub is_child: bool,
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for number in self.handles {
            write!(f, "{number},")?;
        }
        let OwnLimits {
            descriptors,
            address_space,
            data,
            tasks,
        } = self.limits;
        for (soft, hard) in [descriptors, address_space, data, tasks] {
            write!(f, "{soft},{hard},")?;
        }
        let is_child = u8::from(self.is_child);
        write!(f, "{},{},{is_child}", self.blocked.0, self.filters)
    }
}

impl FromStr for Inherited {
    type Err = String;

    fn from_str(text: &str) -> Result<Inherited, String> {
        let mut words = text.split(',');
        let inherited = Inherited::read(&mut words).filter(|_| words.next().is_none());
        inherited.ok_or_else(|| format!("{text:?} is not what a monitor hands on"))
    }
}

impl Inherited {
    fn read<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Inherited> {
        fn next<'a, T: FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<T> {
            words.next()?.parse().ok()
        }
        let mut handles = Numbers::default();
        for number in &mut handles {
            *number = next(words)?;
        }
        let mut pair = || Some((next(words)?, next(words)?));
        let (descriptors, address_space) = (pair()?, pair()?);
        let (data, tasks) = (pair()?, pair()?);
        Some(Inherited {
            handles,
            limits: OwnLimits {
                descriptors,
                address_space,
                data,
                tasks,
            },
            blocked: SignalSet(next(words)?),
            filters: next(words)?,
            is_child: next::<u8>(words)? != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inherited = Inherited {
            handles: [2049, 2050, 2051, -1, 2052, -1, 2053, -1, 2054],
            limits: OwnLimits {
                descriptors: (1024, 4096),
                address_space: (u64::MAX, u64::MAX),
                data: (1 << 30, u64::MAX),
                tasks: (0, 1000),
            },
            blocked: SignalSet(5),
            filters: -1,
            is_child: true,
        };
        assert_eq!(inherited.to_string().parse(), Ok(inherited));
        for bad in [
            "",
            "1,2,3",
            "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,x",
            "1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9",
        ] {
            assert!(bad.parse::<Inherited>().is_err(), "{bad}");
        }
    }
}
