//! The kernel modules the lane loads. A Debian kernel package holds no dependency table (depmod
//! writes it at installation), but every module names what it needs in its `.modinfo` section.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{initramfs::InitramfsError, packages::Kernel};

/// A kernel module, decompressed.
#[derive(Debug)]
pub struct Module {
    /// Its name, as in its file name.
    pub name: String,
    /// The ELF file.
    pub image: Vec<u8>,
}

/// `name` and everything it needs, dependencies first.
pub fn load_order(kernel: &Kernel, name: &str) -> Result<Vec<Module>, InitramfsError> {
    let mut files = Vec::new();
    let dir = kernel.modules();
    find_modules(&dir, &mut files).map_err(|source| InitramfsError::File { path: dir, source })?;
    let mut order = Vec::new();
    visit(&files, name, &mut order)?;
    Ok(order)
}

/// Depth first. The kernel's modules have no dependency cycles.
fn visit(files: &[PathBuf], name: &str, order: &mut Vec<Module>) -> Result<(), InitramfsError> {
    if order.iter().any(|module| same_name(&module.name, name)) {
        return Ok(());
    }
    let path = files
        .iter()
        .find(|path| module_name(path).is_some_and(|found| same_name(found, name)))
        .ok_or_else(|| InitramfsError::NoModule(name.to_owned()))?;
    let failed = |source| InitramfsError::File {
        path: path.clone(),
        source,
    };
    let image = read_module(path).map_err(failed)?;
    for dependency in dependencies(&image) {
        visit(files, &dependency, order)?;
    }
    order.push(Module {
        name: name.to_owned(),
        image,
    });
    Ok(())
}

fn find_modules(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_modules(&entry.path(), files)?;
        } else if module_name(&entry.path()).is_some() {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".ko")
        .or_else(|| name.strip_suffix(".ko.xz"))
}

/// File names have dashes where dependencies may have underscores.
fn same_name(a: &str, b: &str) -> bool {
    a.replace('-', "_") == b.replace('-', "_")
}

fn read_module(path: &Path) -> io::Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path);
    }
    let output = Command::new("xz")
        .arg("-dc")
        .arg(path)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot run xz (package xz-utils): {error}"),
        )
    })?;
    if !output.status.success() {
        return Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    Ok(output.stdout)
}

/// The names in the module's `depends=` string of `.modinfo`, whose strings end with a NUL.
fn dependencies(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = image.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = image[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(
            dependencies(b"\x7fELF\0license=GPL\0depends=kvm,ccp\0name=kvm_amd\0"),
            ["kvm", "ccp"]
        );
        assert!(dependencies(b"\x7fELF\0depends=\0name=irqbypass\0").is_empty());
        assert!(dependencies(b"\x7fELF").is_empty());
    }

    #[test]
    fn modules_are_named_by_their_files() {
        assert_eq!(module_name(Path::new("/m/kvm-amd.ko.xz")), Some("kvm-amd"));
        assert_eq!(module_name(Path::new("/m/kvm.ko")), Some("kvm"));
        assert_eq!(module_name(Path::new("/m/modules.order")), None);
        assert!(same_name("kvm_amd", "kvm-amd"));
    }

    #[test]
    fn dependencies_are_loaded_first() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = [("kvm-amd", "kvm"), ("kvm", "irqbypass"), ("irqbypass", "")]
            .map(|(name, depends)| {
                let path = dir.path().join(format!("{name}.ko"));
                fs::write(&path, format!("\0depends={depends}\0")).unwrap();
                path
            })
            .into();
        let mut order = Vec::new();
        visit(&files, "kvm-amd", &mut order).unwrap();
        let names: Vec<_> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["irqbypass", "kvm", "kvm-amd"]);
    }
}
