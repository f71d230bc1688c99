//! Sizes on the command line: a number of bytes, or of KiB, MiB or GiB.

/// A size such as `4096`, `512K`, `4M` or `1G`.
pub fn parse(text: &str) -> Result<usize, String> {
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, last)) if last.is_ascii_alphabetic() => {
            let shift = match last.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                _ => return Err("the unit is K, M or G".into()),
            };
            (&text[..at], shift)
        }
        _ => (text, 0),
    };
    let number: usize = number
        .parse()
        .map_err(|_| "a number of bytes, such as 4096, 512K or 4M".to_owned())?;
    number
        .checked_mul(1 << unit)
        .ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("512k"), Ok(512 << 10));
        assert_eq!(parse("4M"), Ok(4 << 20));
        assert_eq!(parse("1G"), Ok(1 << 30));
        for wrong in [
            "",
            "M",
            "-1",
            "4X",
            "4 M",
            "99999999999999999999",
            "99999999999G",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
