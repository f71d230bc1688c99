//! The guest cannot reach the monitor's memory, with the recovery data in it, by any name that
//! Linux has for a process's own memory.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net, run};

const PATIENCE: Duration = Duration::from_secs(30);

/// What the attacking server answers, or none if the request was reset.
fn ask(server: &Monitored, command: &str) -> Option<String> {
    println!("{command}");
    let mut stream = net::connect(server.port(), PATIENCE).unwrap();
    stream.write_all(command.as_bytes()).unwrap();
    let mut answer = vec![0; 8192];
    match stream.read(&mut answer) {
        Ok(n) if n > 0 => Some(String::from_utf8_lossy(&answer[..n]).trim().to_owned()),
        Ok(_) => panic!(
            "{command}: the connection was closed: {}",
            server.output_tail()
        ),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{command}: {error}: {}", server.output_tail()),
    }
}

/// Addresses in the middle of the monitor's own mappings, one of each kind, as no attacker inside could know
/// them so well; and what is just outside of the guest's windows.
fn monitor_addresses(pid: u32) -> Vec<u64> {
    const WINDOWS: [(u64, u64); 2] = [(0x1_0000, 0x8000_0000), (0x10_0000_0000, 0x50_0000_0000)];
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut kinds = std::collections::BTreeMap::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').unwrap();
        let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        if WINDOWS.iter().any(|(from, to)| start < *to && end > *from) {
            continue;
        }
        let kind = (
            fields[1].to_owned(),
            fields.get(5).map(|name| (*name).to_owned()),
        );
        kinds.insert(kind, start + (end - start) / 2 / 8 * 8);
    }
    let edges = [
        0x8000_0000,
        0x50_0000_0000,
        0x60_0000_2000,
        0x60_0040_8000,
        0x8000_0000_0000_0000,
    ];
    kinds.into_values().chain(edges).collect()
}

#[test]
fn no_pointer_leads_to_the_monitors_memory() {
    kvm_case("no_pointer_leads_to_the_monitors_memory");
    let port = free_port().unwrap();
    let program = guest::program("attack").unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = Launch::monitored(command).unwrap().options(["--audit"]);
    let mut server = launch.patience(PATIENCE).start(port).unwrap();
    let addresses = monitor_addresses(server.pid());
    assert!(addresses.len() > 15, "{addresses:x?}");
    for address in &addresses {
        for request in ["calls", "thread"] {
            let answer = ask(&server, &format!("{request} {address:x}"));
            assert_eq!(answer.as_deref(), Some(""), "{request} {address:#x}");
        }
        for request in ["read", "write", "run", "fs"] {
            let answer = ask(&server, &format!("{request} {address:x}"));
            assert_eq!(answer, None, "{request} {address:#x}");
        }
    }
    // The entry stub can be executed, so it can be read, but not be written.
    assert_eq!(ask(&server, "write 6000000000"), None);
    assert_eq!(ask(&server, "port"), None);
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let own = descriptors.map(|fd| {
        fd.unwrap()
            .file_name()
            .to_string_lossy()
            .parse::<u32>()
            .unwrap()
    });
    let own: Vec<u32> = own.filter(|fd| *fd >= 256).collect();
    assert!(own.len() >= 4, "{own:?}");
    for fd in own {
        assert_eq!(
            ask(&server, &format!("fd {fd:x}")).as_deref(),
            Some(""),
            "descriptor {fd}"
        );
    }
    assert_eq!(ask(&server, "parent").as_deref(), Some(""));
    for address in [addresses[0], addresses[addresses.len() / 2]] {
        assert_eq!(
            ask(&server, &format!("sweep {address:x}")).as_deref(),
            Some("")
        );
    }
    // The monitor's memory is as it was: it can still undo a request.
    assert_eq!(ask(&server, "crash"), None);
    assert_eq!(ask(&server, "hello").as_deref(), Some(""));
    for event in server.events().unwrap() {
        assert!(
            !["degraded", "escalated"].contains(&event.event.as_str()),
            "{event:#?}"
        );
    }
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
    let stats = server.stats().unwrap();
    assert_eq!(stats["audit"]["mismatches"], 0, "{}", server.output_tail());
}

#[test]
fn no_name_of_its_own_memory_leads_to_the_monitors() {
    kvm_case("no_name_of_its_own_memory_leads_to_the_monitors");
    for options in [&[][..], &["--protect", "off"]] {
        let mut command = run::vmsrs(["run"]).unwrap();
        command.args(options).arg("--");
        command.arg(guest::program("own_proc").unwrap());
        let ended = run::to_end(&mut command, b"").unwrap();
        assert_eq!((ended.code(), ended.out().as_str()), (0, ""), "{ended}");
    }
}
