//! A bounded piece of the bytes that a client sent or would have received.

use serde::{Deserialize, Serialize};

/// Bytes that an [`Excerpt`] keeps.
pub const EXCERPT_LIMIT: usize = 4096;

/// The beginning of a byte string, as text for people and exactly for programs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Excerpt {
    /// The length of the whole.
    pub length: u64,
    /// The kept bytes as ASCII with escapes, `GET a\r\n`.
    pub text: String,
    /// The kept bytes in hexadecimal.
    pub hex: String,
}

impl Excerpt {
    /// The first [`EXCERPT_LIMIT`] bytes of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        Self::of_part(bytes, bytes.len() as u64)
    }

    /// Likewise, of something that was `length` bytes long and of which `bytes` are the first.
    pub fn of_part(bytes: &[u8], length: u64) -> Self {
        let kept = &bytes[..bytes.len().min(EXCERPT_LIMIT)];
        Self {
            length: length.max(kept.len() as u64),
            text: kept.escape_ascii().to_string(),
            hex: kept.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> u64 {
        self.hex.len() as u64 / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_bytes_are_kept_whole() {
        let excerpt = Excerpt::new(b"a\"\r\n\x1b\xff");
        assert_eq!(excerpt.text, r#"a\"\r\n\x1b\xff"#);
        assert_eq!(excerpt.hex, "61220d0a1bff");
        assert_eq!((excerpt.length, excerpt.kept()), (6, 6));
        assert_eq!(Excerpt::new(b""), Excerpt::default());
    }

    #[test]
    fn long_bytes_are_cut() {
        let excerpt = Excerpt::new(&vec![0; EXCERPT_LIMIT + 1]);
        assert_eq!((excerpt.length, excerpt.kept()), (4097, 4096));
        let part = Excerpt::of_part(b"abc", 1 << 40);
        assert_eq!((part.length, part.kept()), (1 << 40, 3));
    }
}
