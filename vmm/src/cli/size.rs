//! Sizes in bytes, as options name them.

use std::fs;
use std::time::Duration;

/// What is left for shadow pages where nothing is known of the machine.
const FALLBACK: u64 = 1 << 30;

/// `4096`, `64K`, `512M`, `2G`.
pub fn parse(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a number of bytes, like 4096, 64K, 512M or 2G"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is more than there is"))
}

/// `90s`, `15m`, `12h`, `30d`.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let unit = match text.char_indices().next_back() {
        Some((at, 's')) => Some((at, 1)),
        Some((at, 'm')) => Some((at, 60)),
        Some((at, 'h')) => Some((at, 3600)),
        Some((at, 'd')) => Some((at, 24 * 3600)),
        _ => None,
    };
    let seconds = unit.and_then(|(at, unit)| text[..at].parse::<u64>().ok()?.checked_mul(unit));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is not a time, like 90s, 15m, 12h or 30d"))
}

/// A quarter of the machine's memory, or of the limit of the cgroup if that is lower.
pub fn default_shadow_limit() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total(&text));
    let limits = [machine, cgroup_limit()];
    limits.into_iter().flatten().min().unwrap_or(4 * FALLBACK) / 4
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The lowest limit of the cgroups (version 2) that the monitor is in.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = std::path::Path::new("/sys/fs/cgroup").join(path);
    own.ancestors()
        .take_while(|dir| dir.starts_with("/sys/fs/cgroup"))
        .filter_map(|dir| fs::read_to_string(dir.join("memory.max")).ok())
        .filter_map(|limit| limit.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_a_suffix() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64k"), Ok(64 << 10));
        assert_eq!(parse("512M"), Ok(512 << 20));
        assert_eq!(parse("2G"), Ok(2 << 30));
        for wrong in ["", "G", "1T", "-1", "1.5G", "99999999999G", "\u{20ac}"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("2d"), Ok(Duration::from_secs(2 * 24 * 3600)));
        for wrong in ["", "s", "5", "-1s", "1w", "99999999999999999999d"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_memory_of_the_machine() {
        assert_eq!(
            total("MemTotal:       2048 kB\nMemFree: 1 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(default_shadow_limit() > 0);
    }
}
