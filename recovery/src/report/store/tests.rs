//! Tests of the report directory and its retention.

use super::*;
use crate::report::tests::sample;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn store() -> (tempfile::TempDir, ReportStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ReportStore::open(Some(dir.path().join("a/reports"))).unwrap();
    (dir, store)
}

#[test]
fn saves_lists_and_loads() {
    let (_dir, store) = store();
    let reports: Vec<FaultReport> = (0..3).map(|i| sample(at(i * 100))).collect();
    for report in &reports {
        let path = store.save(report).unwrap();
        assert!(path.join("report.txt").is_file());
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
    }
    let archive = store.archive();
    let ids: Vec<ReportId> = reports.iter().rev().map(|r| r.id.clone()).collect();
    assert_eq!(archive.list().unwrap(), ids);
    assert_eq!(archive.load("last").unwrap(), reports[2]);
    assert_eq!(archive.load("19700101T000140").unwrap(), reports[1]);
    assert_eq!(archive.load(reports[0].id.as_str()).unwrap(), reports[0]);
}

#[test]
fn saving_again_replaces() {
    let (_dir, store) = store();
    let mut report = sample(at(1));
    store.save(&report).unwrap();
    report.pages_restored = 99;
    store.save(&report).unwrap();
    assert_eq!(store.archive().load("last").unwrap().pages_restored, 99);
    assert_eq!(store.archive().list().unwrap().len(), 1);
}

#[test]
fn wrong_queries_name_what_there_is() {
    let (_dir, store) = store();
    let empty = store.archive().load("last").unwrap_err();
    assert_eq!(empty.to_string(), "no report \"last\"");
    let ids: Vec<ReportId> = (0..3)
        .map(|i| sample(at(i)))
        .map(|r| (store.save(&r), r.id).1)
        .collect();
    let error = store.archive().load("19700101T000001x").unwrap_err();
    assert!(
        matches!(&error, LoadError::NotFound { near, .. } if near[0] == ids[1]),
        "{error}"
    );
    let error = store.archive().load("1970").unwrap_err();
    assert!(
        matches!(&error, LoadError::Ambiguous { matches, .. } if matches.len() == 3),
        "{error}"
    );
    assert!(store.archive().load("../../etc").is_err());
}

#[test]
fn foreign_files_are_neither_listed_nor_removed() {
    let (dir, store) = store();
    let store = store.with_keep(1);
    let root = store.archive().dir().to_owned();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "").unwrap();
    fs::write(root.join("notes.txt"), "").unwrap();
    fs::create_dir(root.join("folder")).unwrap();
    fs::write(root.join("19700101T000000.000000Z-1-1"), "a file").unwrap();
    symlink(&outside, root.join("19700101T000000.000000Z-1-2")).unwrap();
    for i in 0..5 {
        store.save(&sample(at(100 + i))).unwrap();
    }
    assert_eq!(store.archive().list().unwrap().len(), 1);
    assert!(outside.join("precious").exists());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 5);
}

#[test]
fn unfinished_and_corrupt_reports() {
    let (_dir, store) = store();
    let root = store.archive().dir();
    let unfinished = root.join("19700101T000001.000000Z-1-1");
    fs::create_dir(&unfinished).unwrap();
    assert!(store.archive().list().unwrap().is_empty());
    fs::write(unfinished.join("report.json"), "{\"id\": 3").unwrap();
    assert!(matches!(
        store.archive().load("last"),
        Err(LoadError::Corrupt { .. })
    ));
    store.with_keep(1).save(&sample(at(100))).unwrap();
    assert!(!unfinished.exists());
}

#[test]
fn many_saves_keep_the_newest_and_stay_bounded() {
    let (_dir, store) = store();
    let store = store.with_keep(32);
    let period = store.retention.period();
    let mut last = None;
    for i in 0..2000 {
        let report = sample(at(i));
        store.save(&report).unwrap();
        last = Some(report);
        if i % 97 == 0 {
            assert!(store.archive().entries().unwrap().len() <= 32 + period);
        }
    }
    let ids = store.archive().list().unwrap();
    assert!((32..=32 + period).contains(&ids.len()), "{}", ids.len());
    assert_eq!(store.archive().load("last").unwrap(), last.unwrap());
    let newest: Vec<_> = ids
        .iter()
        .map(|id| store.archive().read(id).unwrap().when())
        .collect();
    let expected: Vec<_> = (0..ids.len() as u64).map(|i| Some(at(1999 - i))).collect();
    assert_eq!(newest, expected);
}

#[test]
fn all_reports_together_and_each_of_them_have_a_limit() {
    let (_dir, store) = store();
    let now = SystemTime::now();
    let hours = |n: u64| now - Duration::from_secs(n * 3600);
    let ids: Vec<ReportId> = (0..5)
        .map(|n| sample(hours(10 - 2 * n)))
        .map(|report| (store.save(&report), report.id).1)
        .collect();
    let one: u64 = fs::read_dir(store.archive().path(&ids[0]))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    let store = store.with_limits(u64::MAX, Duration::from_secs(9 * 3600));
    store.prune();
    let newest_first = |ids: &[ReportId]| ids.iter().rev().cloned().collect::<Vec<_>>();
    assert_eq!(store.archive().list().unwrap(), newest_first(&ids[1..]));
    let store = store.with_limits(one * 5 / 2, Duration::MAX);
    store.prune();
    assert_eq!(store.archive().list().unwrap(), newest_first(&ids[3..]));
    let store = store.with_limits(0, Duration::MAX);
    let last = sample(hours(0));
    store.save(&last).unwrap();
    store.prune();
    assert_eq!(store.archive().list().unwrap(), []);
}

#[test]
fn many_processes_with_one_save_each_stay_bounded() {
    let (dir, _) = store();
    for i in 0..100 {
        // A new store is what a new process has.
        let path = dir.path().join("a/reports");
        let store = ReportStore::open(Some(path)).unwrap().with_keep(32);
        store.save(&sample(at(i))).unwrap();
        assert!(store.archive().list().unwrap().len() <= 32);
    }
}

#[test]
fn a_report_survives_its_own_save_when_the_clock_was_set_back() {
    let (_dir, store) = store();
    let store = store.with_keep(2);
    for seconds in [500, 600, 700, 3] {
        let path = store.save(&sample(at(seconds))).unwrap();
        assert!(path.exists());
    }
    assert_eq!(store.archive().list().unwrap().len(), 2);
}

#[test]
fn the_directory_is_private_and_its_path_absolute() {
    let (_dir, store) = store();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(store.archive().dir()), 0o700);
    let path = store.save(&sample(at(1))).unwrap();
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("report.json")), 0o600);
    let archive = ReportArchive::new(Some("relative".into())).unwrap();
    assert!(archive.dir().is_absolute());
    assert!(archive.list().unwrap().is_empty());
}

#[test]
fn unusable_directories_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = ReportStore::open(Some(file.join("reports"))).unwrap_err();
    assert!(matches!(&error, OpenError::Create { .. }), "{error}");
    assert!(matches!(
        ReportStore::open(Some(file)),
        Err(OpenError::Create { .. })
    ));
    // /proc is a directory in which nobody can create a file, not even root.
    let error = ReportStore::open(Some("/proc".into())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write to the report directory /proc"
    );
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_failed_save_is_an_error() {
    let (_dir, store) = store();
    fs::remove_dir_all(store.archive().dir()).unwrap();
    fs::write(store.archive().dir(), "in the way").unwrap();
    assert!(store.save(&sample(at(1))).is_err());
}

#[test]
fn the_default_directory_follows_xdg() {
    let dir = |state: &str, home: &str| default_dir_from(Some(state.into()), Some(home.into()));
    assert_eq!(
        dir("/state", "/home/u"),
        Some("/state/vmsrs/reports".into())
    );
    assert_eq!(
        dir("state", "/home/u"),
        Some("/home/u/.local/state/vmsrs/reports".into())
    );
    assert_eq!(dir("", ""), None);
    assert_eq!(default_dir_from(None, None), None);
}

#[test]
fn later_faults_count_up_in_the_first_report() {
    let dir = tempfile::tempdir().unwrap();
    let store = ReportStore::open(Some(dir.path().to_owned())).unwrap();
    let report = sample(at(1));
    let tally = |count| super::super::Tally {
        count,
        last: "1970-01-01T00:00:09.000000Z".into(),
        last_peer: None,
    };
    assert!(
        store.save_tally(&report.id, &tally(1)).is_err(),
        "no report"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    store.save(&report).unwrap();
    assert_eq!(store.archive().read(&report.id).unwrap().count(), 1);
    (1..=5).for_each(|n| store.save_tally(&report.id, &tally(n)).unwrap());
    let read = store.archive().read(&report.id).unwrap();
    assert_eq!((read.count(), read.more), (6, Some(tally(5))));
    fs::write(
        dir.path().join(report.id.as_str()).join("repeats.json"),
        "{",
    )
    .unwrap();
    assert_eq!(store.archive().read(&report.id).unwrap().more, None);
}

fn with_core(store: &ReportStore, seconds: u64, bytes: usize) -> FaultReport {
    let mut report = sample(at(seconds));
    let path = store
        .save_core(&report.id, |out| out.write_all(&vec![7; bytes]))
        .unwrap();
    report.core = Some(crate::report::Core {
        bytes: bytes as u64,
        program: "/usr/bin/server".into(),
        pages_written: 1,
        pages_left_out: 0,
        path: Some(path.display().to_string()),
    });
    store.save(&report).unwrap();
    report
}

#[test]
fn a_core_is_private_and_known_to_its_report() {
    let (_dir, store) = store();
    let report = with_core(&store, 1, 5000);
    let dir = store.archive().path(&report.id);
    let core = fs::metadata(dir.join("core")).unwrap();
    assert_eq!(
        (core.len(), core.permissions().mode() & 0o777),
        (5000, 0o600)
    );
    assert_eq!(
        fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert_eq!(store.archive().load("last").unwrap(), report);
    // Somebody has removed it to have more room.
    fs::remove_file(dir.join("core")).unwrap();
    let loaded = store.archive().load("last").unwrap();
    assert_eq!(loaded.core.unwrap().path, None);
}

#[test]
fn of_a_core_that_cannot_be_written_nothing_is_left() {
    let (_dir, store) = store();
    let report = sample(at(1));
    let error = store.save_core(&report.id, |out| {
        out.write_all(&[7; 200 << 10])?;
        Err(ErrorKind::StorageFull.into())
    });
    assert!(error.is_err());
    store.save(&report).unwrap();
    let dir = store.archive().path(&report.id);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2);
}

#[test]
fn cores_count_as_bytes_of_their_reports() {
    let (_dir, store) = store();
    const LIMIT: u64 = 1 << 20;
    const CORE: u64 = 200 << 10;
    let store = store.with_limits(LIMIT, Duration::MAX);
    for second in 0..40 {
        with_core(&store, 100 + second, CORE as usize);
        let ids = store.archive().entries().unwrap();
        // At every moment, not only now and then.
        assert!(ids.len() as u64 * CORE <= LIMIT + CORE, "{}", ids.len());
    }
    let reports = store.archive().list().unwrap();
    assert_eq!(reports.len(), 5);
    assert!(store.archive().path(&reports[0]).join("core").is_file());
}

#[test]
fn cores_become_too_old_with_their_reports() {
    let (_dir, store) = store();
    let store = store.with_limits(u64::MAX, Duration::from_secs(3600));
    let old = with_core(&store, 100, 10);
    store.prune();
    assert!(!store.archive().path(&old.id).exists());
}

#[test]
fn a_directory_that_was_removed_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reports");
    let store = ReportStore::open(Some(path.clone())).unwrap();
    fs::remove_dir_all(&path).unwrap();
    store.save(&sample(UNIX_EPOCH)).unwrap();
    assert_eq!(store.archive().list().unwrap().len(), 1);
}

#[test]
fn reports_of_another_user_are_listed_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = ReportStore::open(Some(dir.path().to_owned())).unwrap();
    let own = fs::metadata(dir.path()).unwrap().uid();
    // To give a directory away takes rights that a test may not have.
    let user = if own == 0 { 12_345 } else { own };
    let file = store.directory_of(user).unwrap();
    assert_eq!(file.metadata().unwrap().uid(), user);
    let other = ReportStore::open(Some(dir.path().join(format!("uid-{user}")))).unwrap();
    let report = sample(UNIX_EPOCH);
    other.save(&report).unwrap();
    assert_eq!(store.archive().list().unwrap().len(), 1);
    assert_eq!(store.archive().load("last").unwrap().id, report.id);
    // Links of the other user lead nowhere.
    let json = dir
        .path()
        .join(format!("uid-{user}/{}/report.json", report.id));
    fs::rename(&json, dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &json).unwrap();
    assert!(store.archive().list().unwrap().is_empty());
    assert!(store.archive().read(&report.id).is_err());
}
