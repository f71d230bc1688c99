//! How events and reports write addresses and times.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An address or register, written as `"0x1f"`: JSON numbers lose precision past 53 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Hex)
            .ok_or_else(|| de::Error::custom(format_args!("{text:?} is not a hexadecimal number")))
    }
}

/// The last second that RFC 3339 can write, 9999-12-31T23:59:59Z.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// `time` as RFC 3339 in UTC with microseconds, of fixed length; a time outside its range is clamped.
pub fn rfc3339(time: SystemTime) -> String {
    let clamped = time.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST_SECOND);
    humantime::format_rfc3339_micros(clamped).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_keeps_all_64_bits() {
        let text = serde_json::to_string(&Hex(u64::MAX)).unwrap();
        assert_eq!(text, "\"0xffffffffffffffff\"");
        assert_eq!(serde_json::from_str::<Hex>(&text).unwrap(), Hex(u64::MAX));
        assert!(serde_json::from_str::<Hex>("\"12\"").is_err());
        assert!(serde_json::from_str::<Hex>("\"0xg\"").is_err());
    }

    #[test]
    fn times_have_microseconds_and_stay_in_range() {
        let time = UNIX_EPOCH + Duration::from_micros(1_500_000);
        assert_eq!(rfc3339(time), "1970-01-01T00:00:01.500000Z");
        assert_eq!(
            rfc3339(UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00.000000Z"
        );
        let far = UNIX_EPOCH + LAST_SECOND * 2;
        assert_eq!(rfc3339(far), "9999-12-31T23:59:59.000000Z");
    }
}
