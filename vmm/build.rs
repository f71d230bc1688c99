//! Builds what runs in the guest: the vDSO image and the demo server.

mod build_demo;
mod build_vdso;

use std::env;
use std::path::PathBuf;

fn main() {
    let directory = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_default());
    let (source, out) = (directory("CARGO_MANIFEST_DIR"), directory("OUT_DIR"));
    build_vdso::build_vdso(&source.join("vdso"), &out.join("vdso.so"));
    let demo = source.join("../tests/demo-server");
    let demo = demo.canonicalize().unwrap_or(demo);
    build_demo::build_demo_server(&demo, &out.join("demo-server"));
}
