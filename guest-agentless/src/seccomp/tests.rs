use super::*;

fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
    instructions
        .iter()
        .flat_map(|(code, then, otherwise, value)| {
            let [c0, c1] = code.to_ne_bytes();
            let [v0, v1, v2, v3] = value.to_ne_bytes();
            [c0, c1, *then, *otherwise, v0, v1, v2, v3]
        })
        .collect()
}

fn filter(instructions: &[(u16, u8, u8, u32)]) -> Filter {
    Filter::parse(&program(instructions)).unwrap()
}

fn request(number: u32, args: [u64; 6]) -> Request {
    Request {
        number,
        address: 0x1122_3344_5566_7788,
        args,
    }
}

const ALLOW: u32 = 0x7fff_0000;
const FAIL: u32 = 0x0005_0000;

#[test]
fn the_request_is_read_by_words() {
    let expected = [
        (0, 9),
        (4, ARCHITECTURE),
        (8, 0x5566_7788),
        (12, 0x1122_3344),
        (16, 0xbbbb_bbbb),
        (20, 0xaaaa_aaaa),
        (56, 6),
        (60, 0),
    ];
    let request = request(9, [0xaaaa_aaaa_bbbb_bbbb, 2, 3, 4, 5, 6]);
    for (offset, value) in expected {
        let load = filter(&[(0x20, 0, 0, offset), (0x16, 0, 0, 0)]);
        assert_eq!(load.run(&request), value, "{offset}");
    }
}

#[test]
fn a_filter_decides_by_number() {
    let write_fails = filter(&[
        (0x20, 0, 0, 0),
        (0x15, 0, 1, 1),
        (0x06, 0, 0, FAIL | 13),
        (0x06, 0, 0, ALLOW),
    ]);
    let mut filters = Filters::default();
    filters.add(write_fails).unwrap();
    assert_eq!(filters.verdict(&request(1, [0; 6])), Verdict::Fail(13));
    assert_eq!(filters.verdict(&request(2, [0; 6])), Verdict::Allow);
    // A newer one that says the same with another error wins; a milder one does not.
    filters.add(filter(&[(0x06, 0, 0, FAIL | 7)])).unwrap();
    assert_eq!(filters.verdict(&request(1, [0; 6])), Verdict::Fail(7));
    filters.add(filter(&[(0x06, 0, 0, ALLOW)])).unwrap();
    assert_eq!(filters.verdict(&request(1, [0; 6])), Verdict::Fail(7));
    filters.add(filter(&[(0x06, 0, 0, 0x8000_0000)])).unwrap();
    assert_eq!(filters.verdict(&request(1, [0; 6])), Verdict::KillProcess);
}

#[test]
fn arithmetic_is_that_of_32_bits() {
    let compute = |code: u16, a: u32, k: u32| {
        let by_value = filter(&[(0, 0, 0, a), (code, 0, 0, k), (0x16, 0, 0, 0)]);
        let by_index = filter(&[
            (0, 0, 0, a),
            (1, 0, 0, k),
            (code | 8, 0, 0, 0),
            (0x16, 0, 0, 0),
        ]);
        let request = request(0, [0; 6]);
        assert_eq!(by_value.run(&request), by_index.run(&request));
        by_value.run(&request)
    };
    assert_eq!(compute(0x04, u32::MAX, 2), 1);
    assert_eq!(compute(0x14, 1, 2), u32::MAX);
    assert_eq!(compute(0x24, 1 << 31, 3), 1 << 31);
    assert_eq!(compute(0x34, 7, 2), 3);
    assert_eq!(compute(0x44, 5, 2), 7);
    assert_eq!(compute(0x54, 7, 2), 2);
    assert_eq!(compute(0x64, 3, 31), 1 << 31);
    assert_eq!(compute(0x74, 1 << 31, 31), 1);
    assert_eq!(compute(0xa4, 5, 1), 4);
    // By zero, it ends with the strictest answer but one.
    let by_zero = filter(&[
        (0, 0, 0, 5),
        (1, 0, 0, 0),
        (0x3c, 0, 0, 0),
        (0x06, 0, 0, ALLOW),
    ]);
    assert_eq!(by_zero.run(&request(0, [0; 6])), 0);
    let negated = filter(&[(0, 0, 0, 5), (0x84, 0, 0, 0), (0x16, 0, 0, 0)]);
    assert_eq!(negated.run(&request(0, [0; 6])), (-5i32) as u32);
}

#[test]
fn what_linux_refuses_is_refused() {
    let refused =
        |instructions: &[(u16, u8, u8, u32)]| Filter::parse(&program(instructions)).is_err();
    let allow = (0x06, 0, 0, ALLOW);
    assert!(refused(&[]));
    assert!(refused(&vec![allow; MOST_INSTRUCTIONS + 1]));
    assert!(Filter::parse(&[0; 7]).is_err());
    // No return at the end.
    assert!(refused(&[allow, (0x20, 0, 0, 0)]));
    // Jumps that lead out.
    assert!(refused(&[(0x05, 0, 0, 1), allow]));
    assert!(refused(&[(0x05, 0, 0, u32::MAX), allow]));
    assert!(refused(&[(0x15, 0, 1, 1), allow]));
    assert!(!refused(&[(0x15, 0, 0, 1), allow]));
    // What is not in the request, or not one of its words.
    assert!(refused(&[(0x20, 0, 0, 64), allow]));
    assert!(refused(&[(0x20, 0, 0, 2), allow]));
    assert!(refused(&[(0x28, 0, 0, 0), allow]));
    // A word that was not stored, or only on one way.
    assert!(refused(&[(0x60, 0, 0, 3), allow]));
    assert!(refused(&[(0x02, 0, 0, 16), allow]));
    assert!(!refused(&[(0x02, 0, 0, 3), (0x60, 0, 0, 3), allow]));
    assert!(refused(&[
        (0x15, 0, 1, 1),
        (0x02, 0, 0, 3),
        (0x60, 0, 0, 3),
        allow
    ]));
    // Division by zero, shifts by too much, a remainder, what is no instruction.
    for bad in [
        (0x34, 0, 0, 0),
        (0x64, 0, 0, 32),
        (0x94, 0, 0, 3),
        (0x0e, 0, 0, 0),
        (0xffff, 0, 0, 0),
    ] {
        assert!(refused(&[bad, allow]), "{bad:?}");
    }
}

/// Whatever is accepted ends, and never panics.
#[test]
fn random_programs_end() {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    const CODES: [u16; 20] = [
        0x20, 0x80, 0x81, 0, 1, 0x60, 0x61, 2, 3, 0x16, 7, 0x87, 0x84, 5, 0x04, 0x3c, 0x6c, 0x15,
        0x2d, 0x45,
    ];
    let mut accepted = 0;
    for _ in 0..20_000 {
        let len = 1 + next() % 12;
        let mut instructions: Vec<_> = (0..len)
            .map(|_| {
                let code = CODES[next() as usize % CODES.len()];
                (code, (next() % 4) as u8, (next() % 4) as u8, next() % 20)
            })
            .collect();
        instructions.push((0x16, 0, 0, 0));
        if let Ok(filter) = Filter::parse(&program(&instructions)) {
            accepted += 1;
            filter.run(&request(next(), [u64::from(next()); 6]));
        }
    }
    assert!(accepted > 1000, "{accepted}");
}

#[test]
fn filters_have_a_limit_and_an_order() {
    let mut filters = Filters::default();
    let long = || filter(&vec![(0x06, 0, 0, ALLOW); MOST_INSTRUCTIONS]);
    let base = filters.clone();
    let added = (0..9).take_while(|_| filters.add(long()).is_ok()).count();
    assert_eq!(added, 7);
    assert!(base.is_base_of(&filters) && !filters.is_base_of(&base));
    assert!(!Filters::strict().is_base_of(&filters));
    assert_eq!(Filters::strict().add(long()), Err(Errno::EINVAL));
    assert_eq!(
        Filters::strict().verdict(&request(39, [0; 6])),
        Verdict::KillThread
    );
    assert_eq!(
        Filters::strict().verdict(&request(1, [0; 6])),
        Verdict::Allow
    );
}

#[test]
fn known_actions_are_those_of_linux() {
    for known in [
        0x8000_0000,
        0,
        0x0003_0000,
        0x0005_0000,
        0x7fc0_0000,
        0x7ff0_0000,
        0x7ffc_0000,
        ALLOW,
    ] {
        assert!(Verdict::is_known(known), "{known:#x}");
    }
    for unknown in [1, 0x0005_0001, 0x1234_0000, 0x8000_0001] {
        assert!(!Verdict::is_known(unknown), "{unknown:#x}");
    }
}
