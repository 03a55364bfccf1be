//! Fetching passt from the package sources of this host.

use guest::{Cache, GuestError, cached_passt, passt};
use std::process::Command;

#[test]
fn passt_is_fetched_once_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path().join("a cache"));
    assert_eq!(cached_passt(&cache), None);
    let mut notices = 0;
    let program = match passt(&cache, &mut |_| notices += 1) {
        Ok(program) => program,
        Err(error @ (GuestError::NoApt { .. } | GuestError::Tool { .. } | GuestError::NoPackage { .. })) => {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{error}");
            return eprintln!("skipped: {error}");
        }
        Err(error) => panic!("{error}"),
    };
    assert!(notices > 0);
    let version = Command::new(&program).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("passt"));
    let again = passt(&cache, &mut |notice| panic!("{notice}")).unwrap();
    assert_eq!(again, program);
    assert_eq!(cached_passt(&cache), Some(program));
}
