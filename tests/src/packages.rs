//! The Debian packages that the tests need (`tests/packages.txt`), and which of them are missing.

use std::{
    collections::BTreeSet,
    io,
    process::{Command, Stdio},
};

const LIST: &str = include_str!("../packages.txt");

/// The names of all packages that the tests need.
pub fn needed() -> Vec<&'static str> {
    parse(LIST)
}

/// The needed packages that are not installed.
pub fn missing() -> io::Result<Vec<&'static str>> {
    missing_of(&needed())
}

/// Those of `needed` that are not installed.
pub fn missing_of<'a>(needed: &[&'a str]) -> io::Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query
        .args([
            "--show",
            "--showformat",
            "${db:Status-Status} ${Package}\\n",
        ])
        .args(needed);
    // dpkg-query fails when it knows nothing of a package: what it prints is the answer.
    let output = query.stdin(Stdio::null()).output().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot run dpkg-query (the tests need Debian): {error}"),
        )
    })?;
    let installed = parse_installed(&String::from_utf8_lossy(&output.stdout));
    let missing = needed.iter().filter(|name| !installed.contains(**name));
    Ok(missing.copied().collect())
}

/// The command that installs `packages`.
pub fn install_command(packages: &[&str]) -> String {
    format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    )
}

/// One name on each line; `#` begins a comment.
fn parse(list: &str) -> Vec<&str> {
    let names = list
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    names.filter(|name| !name.is_empty()).collect()
}

fn parse_installed(output: &str) -> BTreeSet<String> {
    output
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_holds_plain_package_names() {
        let names = needed();
        assert!(names.contains(&"redis-server"));
        let plain = |name: &&str| {
            name.chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        assert!(names.iter().all(plain), "{names:?}");
    }

    #[test]
    fn removed_and_unknown_packages_are_not_installed() {
        let output = "installed gcc\nconfig-files memcached\nnot-installed redis-server\n";
        assert_eq!(
            parse_installed(output).into_iter().collect::<Vec<_>>(),
            ["gcc"]
        );
    }
}
