//! How the programs of this package print an error: with everything that led to it.

use std::error::Error;

/// The error and its sources, outermost first, separated by colons.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{io, path::PathBuf};

    use super::*;
    use crate::lane::packages::PackageError;

    #[test]
    fn sources_follow_the_error() {
        let source = io::Error::other("disk full");
        let text = chain(&PackageError::Io {
            path: PathBuf::from("k"),
            source,
        });
        assert!(text.ends_with(" in k: disk full"), "{text}");
    }
}
