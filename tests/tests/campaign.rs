//! A short fault-injection campaign against each server: faults of every class, with a control run for each. The long
//! ones are run by command (`docs/fault-injection.md`).

use std::time::{Duration, Instant};

use vmsrs_tests::{
    Launch,
    campaign::{
        SHARED_KEYS,
        exchange::{Answer, exchange},
        funnel::Funnel,
        healthy::load::Load,
        report::{json::Summary, markdown},
        run::{Campaign, Trials},
        soak::Soak,
        target,
        trial::Trial,
    },
    error, free_port, kvm_case,
    load::Random,
    oracle::{Fate, Recorder, check_all},
    paths,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Five of each class.
const INJECTIONS: u64 = 85;
/// Of so few a single failure is more than a percent.
const SURVIVAL: f64 = 0.95;

/// The class of faults that may end a server.
const CODE: &str = "flip=code";

/// Injects faults into the server with this name.
fn survives(server: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut trials = Trials::open(&dir.path().join("trials.jsonl")).unwrap();
    let campaign = Campaign {
        injections: INJECTIONS,
        seed: 4,
        control: true,
        classes: Vec::new(),
        vmsrs: paths::vmsrs().unwrap(),
    };
    let target = target::by_name(server).unwrap();
    let requests = campaign
        .run(target.as_ref(), &mut trials)
        .unwrap_or_else(|failure| panic!("{}", error::chain(&failure)));
    let all = &trials.all;
    let table = markdown::report(&Summary::new(Default::default(), all), all);
    println!("{table}");

    let funnel = Funnel::new(all);
    assert_eq!(funnel.injected, INJECTIONS, "{table}");
    assert!(requests > 10 * INJECTIONS, "{requests} healthy requests");
    assert!(funnel.manifested > INJECTIONS / 3, "{table}");
    // A bit flipped in code that everybody runs may leave a server that serves nobody (docs/guarantees.md, known limits).
    let elsewhere = all.iter().filter(|trial| trial.class != CODE);
    assert_eq!(Funnel::new(elsewhere).dead, 0, "{table}");
    assert!(funnel.dead <= 1, "{table}");
    assert!(funnel.survival.share >= Some(SURVIVAL), "{table}");
    // What was caught in time and told as recovered left no wrong data behind.
    let is_lie = |trial: &&Trial| {
        let in_time = trial.detected.as_ref().is_some_and(|found| !found.latent);
        in_time && trial.is_silent_corruption()
    };
    assert_eq!(all.iter().find(is_lie), None, "{table}");
}

#[test]
fn the_demo_server_survives_a_campaign() {
    kvm_case("the_demo_server_survives_a_campaign");
    survives("demo");
}

#[test]
fn redis_survives_a_campaign() {
    kvm_case("redis_survives_a_campaign");
    survives("redis");
}

#[test]
fn memcached_survives_a_campaign() {
    kvm_case("memcached_survives_a_campaign");
    survives("memcached");
}

/// Native first: what the clients of a campaign expect is what the servers do without the monitor.
#[test]
fn the_native_servers_answer_as_the_campaigns_expect() {
    for server in ["demo", "redis", "memcached"] {
        let target = target::by_name(server).unwrap();
        let port = free_port().unwrap();
        let launched = Launch::native(target.command(port)).start(port).unwrap();
        let address = launched.address();
        let recorder = Recorder::new((0..SHARED_KEYS).map(target::shared_key));
        let clients = (0..2).map(|ident| {
            target
                .clients()
                .healthy(address, ident, PATIENCE, &recorder)
        });
        let mut attacks = recorder.log();
        let load = Load::start(clients.collect(), recorder);
        let mut random = Random::new(1);
        let mut keys = target::Keys::default();
        keys.possible
            .extend((0..SHARED_KEYS).map(target::shared_key));
        for number in 0..60 {
            let tag = format!("tag{number}x");
            let attack = target.attack(&mut random, &tag, (number % SHARED_KEYS, number as u64));
            let begin = Instant::now();
            let (answer, _) = exchange(target.as_ref(), address, &attack, PATIENCE).unwrap();
            assert_eq!(answer, Answer::Right, "{server}: {}", attack.description);
            assert!(attack.bytes.windows(tag.len()).any(|w| w == tag.as_bytes()));
            let Some(write) = attack.write else { continue };
            let found = target
                .clients()
                .value(address, &write.key, PATIENCE)
                .unwrap();
            match write.shared {
                Some((key, version)) => attacks.write(key, version, Fate::Acknowledged, begin),
                None => {
                    assert_eq!(found, Some(write.value), "{server}: {}", write.key);
                    keys.present.push(write.key);
                }
            }
        }
        assert!(load.wait(40, PATIENCE));
        let finished = load.finish(attacks);
        assert_eq!(finished.failures, [], "{server}");
        let violations: Vec<String> = check_all(&finished.history)
            .into_iter()
            .map(|violation| violation.detail)
            .collect();
        assert_eq!(violations, [""; 0], "{server}");
        keys.present.extend(finished.keys.present);
        keys.possible.extend(finished.keys.possible);
        assert_eq!(
            target.check(address, &keys, PATIENCE).unwrap(),
            [],
            "{server}"
        );
        // The checks can fail: more keys are missing than there are shared ones, of which nothing is known.
        let missing = (0..=SHARED_KEYS).map(|number| format!("missing-{number}"));
        keys.present.extend(missing);
        assert_eq!(
            target.check(address, &keys, PATIENCE).unwrap().len(),
            1,
            "{server}"
        );
    }
}

#[test]
fn a_share_of_requests_may_crash_all_the_time() {
    kvm_case("a_share_of_requests_may_crash_all_the_time");
    let soak = Soak {
        duration: Duration::from_secs(6),
        percent: 1.0,
        window: 2,
        clients: 6,
        vmsrs: paths::vmsrs().unwrap(),
    };
    let target = target::by_name("memcached").unwrap();
    let mut shown = 0;
    let soaked = soak.run(target.as_ref(), |_| shown += 1).unwrap();
    assert!(soaked.is_good(), "{soaked}");
    assert!(
        soaked.crashes > 0 && soaked.requests > 50 * soaked.crashes,
        "{soaked}"
    );
    assert_eq!(
        (soaked.samples.len(), soaked.crashing.len()),
        (shown, 1),
        "{soaked}"
    );
    assert!(
        soaked
            .samples
            .iter()
            .all(|sample| sample.healthy_per_s > 0.0)
    );
}

/// A campaign that was interrupted in the middle of a line goes on after the last whole one.
#[test]
fn an_interrupted_campaign_goes_on() {
    kvm_case("an_interrupted_campaign_goes_on");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trials.jsonl");
    let campaign = |injections| Campaign {
        injections,
        seed: 1,
        control: false,
        classes: vec!["abort".into(), "rip=null".into()],
        vmsrs: paths::vmsrs().unwrap(),
    };
    let target = target::by_name("memcached").unwrap();
    let mut trials = Trials::open(&path).unwrap();
    campaign(4).run(target.as_ref(), &mut trials).unwrap();
    let first = trials.all.clone();
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
    let mut trials = Trials::open(&path).unwrap();
    assert_eq!(trials.all, first[..first.len() - 1]);
    campaign(6).run(target.as_ref(), &mut trials).unwrap();
    let numbers: Vec<u64> = trials.all.iter().map(|trial| trial.number).collect();
    assert_eq!(numbers, (0..trials.all.len() as u64).collect::<Vec<_>>());
    assert_eq!(Trials::open(&path).unwrap().all, trials.all);
    // What is chosen does not depend on when.
    let last = first.last().unwrap();
    assert_eq!(trials.all[last.number as usize].spec, last.spec);
}
