//! `vmsrs demo`: passes, says so for both servers, and is quick.

use std::time::{Duration, Instant};

use vmsrs_tests::{kvm_case, run};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn the_demo_passes_in_time() {
    kvm_case("the_demo_passes_in_time");
    let begin = Instant::now();
    let ended = run::to_end(&mut run::vmsrs(["demo"]).unwrap(), b"").unwrap();
    assert!(begin.elapsed() < LIMIT, "it took {:?}", begin.elapsed());
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(ended.out().matches("PASSED").count(), 2, "{ended}");
    let out = ended.out();
    let at = |text: &str| out.find(text).unwrap();
    assert!(at("PASSED") < at("null-read"), "the verdict comes first");
    let wide: Vec<&str> = out.lines().filter(|l| l.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{wide:#?}");
}
