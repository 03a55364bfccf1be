//! Modules for the small guest's kernel. Needs apt and a compiler, as the other tests here do;
//! `HINDSIGHT_TEST_CACHE` names a cache folder to reuse.

mod boot;

use boot::small_guest;
use guest::{Cache, Flavour, SmallGuest, build_module};
use std::fs;
use std::os::unix::fs::symlink;

/// A user's guest stays in the cache for months; the archive keeps no headers for so long.
#[test]
fn a_guest_whose_headers_the_archive_no_longer_has_is_replaced() {
    let newest = small_guest(Flavour::Cloud);
    let folder = newest.kernel.parent().unwrap();
    let name = folder.file_name().unwrap().to_str().unwrap();
    let old = format!(
        "linux-image-6.1.0-1-cloud-amd64_6.1.1-1+busybox_{}",
        name.split_once("+busybox_").unwrap().1
    );
    // The guest that a first kernel of its series would have left, and what it is found by.
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::at(root.path());
    for entry in [name, &old] {
        fs::create_dir(cache.path(entry)).unwrap();
        for file in [&newest.kernel, &newest.initrd] {
            fs::copy(file, cache.path(entry).join(file.file_name().unwrap())).unwrap();
        }
    }
    let alias = format!("cloud-{}", name.rsplit_once('+').unwrap().1);
    symlink(&old, cache.path(&alias)).unwrap();
    let kernel = |cache: &Cache| {
        let mut silent = |line: &str| panic!("nothing should be fetched: {line}");
        SmallGuest::obtain(cache, Flavour::Cloud, &mut silent).unwrap().kernel
    };
    assert_eq!(kernel(&cache), fs::canonicalize(cache.path(&old)).unwrap().join("vmlinuz"));

    let sources = tempfile::tempdir().unwrap();
    fs::write(sources.path().join("Kbuild"), "obj-m := empty.o\n").unwrap();
    fs::write(
        sources.path().join("empty.c"),
        "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(\"Does nothing.\");\n",
    )
    .unwrap();
    let mut said = Vec::new();
    let mut notice = |line: &str| said.push(line.to_owned());
    let built = build_module(&cache, Flavour::Cloud, sources.path(), sources.path(), &mut notice).unwrap();
    assert_eq!(built, [sources.path().join("empty.ko")]);
    assert!(
        said.iter().any(|line| line.contains("linux-image-6.1.0-1-cloud-amd64 has no headers any more")),
        "{said:?}"
    );

    // The module is for the kernel that guests run from now on, and the old guest stays.
    let now = kernel(&cache);
    let release = now.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let release = release.strip_prefix("linux-image-").unwrap().split_once('_').unwrap().0;
    let module = fs::read(&built[0]).unwrap();
    let magic = format!("vermagic={release} ");
    assert!(module.windows(magic.len()).any(|bytes| bytes == magic.as_bytes()), "not for {release}");
    assert!(cache.path(&old).join("vmlinuz").is_file());
}
