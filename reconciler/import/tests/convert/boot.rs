//! Boot environments (§4.3): from packages and directories by hand, whose modules and
//! programs are ELF files of a few bytes.

use super::*;
use std::os::unix::fs::symlink;

use strata_import::boot::{self, BootError, BootRequest, Environment, KernelSource};
use strata_store::durable::Disk;

const RELEASE: &str = "6.1.0-9-amd64";
const X86_64: u16 = 62;
const ARM64: u16 = 183;

/// An ELF file of 64 bits: its type, its processor, and a section `.modinfo`.
fn elf(kind: u16, machine: u16, modinfo: &str) -> Vec<u8> {
    // Words end with a NUL; a space in one is written as ~ here.
    let modinfo = modinfo.replace(' ', "\0").replace('~', " ");
    let names = b"\0.modinfo\0.shstrtab\0";
    let (data_at, names_at) = (64, 64 + modinfo.len());
    let sections_at = (names_at + names.len()).next_multiple_of(8);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [kind, machine] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for address in [0, 0, sections_at as u64] {
        file.extend(address.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 0, 64, 3, 2] {
        file.extend(half.to_le_bytes());
    }
    file.extend(modinfo.as_bytes());
    file.extend(names);
    file.resize(sections_at, 0);
    for (name, kind, offset, size) in
        [(0_u32, 0_u32, 0, 0), (1, 1, data_at, modinfo.len()), (10, 3, names_at, names.len())]
    {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        for word in [0, 0, offset as u64, size as u64] {
            file.extend(word.to_le_bytes());
        }
        file.extend([0; 8]);
        for word in [1_u64, 0] {
            file.extend(word.to_le_bytes());
        }
    }
    file
}

fn module(modinfo: &str) -> Vec<u8> {
    elf(1, X86_64, modinfo)
}

/// The files of a kernel, by their paths.
fn kernel() -> BTreeMap<String, Vec<u8>> {
    let below = format!("lib/modules/{RELEASE}");
    let mut files = BTreeMap::from([
        (format!("boot/vmlinuz-{RELEASE}"), b"the kernel".to_vec()),
        (
            format!("boot/config-{RELEASE}"),
            b"CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_ZSTD=y\nCONFIG_DEVTMPFS=y\n".to_vec(),
        ),
        (format!("{below}/modules.builtin"), b"kernel/drivers/virtio/virtio.ko\n".to_vec()),
        (format!("{below}/modules.order"), b"nothing of it is used".to_vec()),
    ]);
    for (path, modinfo) in [
        ("fs/fuse/fuse.ko", "license=GPL depends= name=fuse"),
        ("fs/fuse/virtiofs.ko", "depends=fuse,virtio alias=fs-virtiofs"),
        ("fs/ext4/ext4.ko", "depends=jbd2 softdep=pre:~crc32c"),
        ("fs/jbd2/jbd2.ko", "depends="),
        ("crypto/crc32c_generic.ko", "depends= alias=crypto-crc32c"),
        ("drivers/gpu/huge.ko", "depends="),
    ] {
        files.insert(format!("{below}/kernel/{path}"), module(modinfo));
    }
    files
}

fn deb(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut entries = vec![entry(b"./", b'5', b"", b"")];
    entries.extend(
        files
            .iter()
            .map(|(path, content)| entry(format!("./{path}").as_bytes(), b'0', content, b"")),
    );
    package(&tarball(&entries))
}

struct Boot {
    directory: TempDir,
}

impl Boot {
    fn set_up() -> Self {
        let boot = Boot { directory: TempDir::new().expect("a temporary directory") };
        write(&boot.path("strata-init"), &elf(2, X86_64, "init"));
        write(&boot.path("strata-vlfs"), &elf(2, X86_64, "vlfs"));
        boot
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn package(&self, files: &BTreeMap<String, Vec<u8>>) -> KernelSource {
        let path = self.path("kernel.deb");
        write(&path, &deb(files));
        KernelSource::at(&path)
    }

    fn request(&self, kernel: KernelSource) -> BootRequest {
        BootRequest {
            kernels: vec![kernel],
            release: None,
            init: self.path("strata-init"),
            vlfs: self.path("strata-vlfs"),
            modules: Vec::new(),
        }
    }

    fn build(&self, request: &BootRequest, output: &str) -> Result<Environment, BootError> {
        boot::build(request, &self.path(output), &Disk::default())
    }

    fn refused(&self, files: &BTreeMap<String, Vec<u8>>) -> String {
        let built = self.build(&self.request(self.package(files)), "refused");
        let error = built.expect_err("the kernel is refused").to_string();
        assert_eq!(boot::list(&self.path("refused")).expect("listed"), []);
        error
    }
}

/// Everything below a directory, by path, links as their targets.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_symlink() {
            let target = fs::read_link(&path).expect("a link");
            found.insert(path.clone(), text(&target).as_bytes().to_vec());
        } else if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).expect("a file"));
        }
    }
    let relative = |path: PathBuf| path.strip_prefix(directory).map(Path::to_owned).unwrap_or(path);
    found.into_iter().map(|(path, content)| (relative(path), content)).collect()
}

#[test]
fn an_environment_is_the_same_every_time_and_from_either_source() {
    let boot = Boot::set_up();
    let first = boot.build(&boot.request(boot.package(&kernel())), "a").expect("built");
    // Unpacked, in another order on disk, with a merged /usr, and much later.
    let root = boot.path("root");
    for (path, content) in kernel().iter().rev() {
        let path = root.join(path.replace("lib/modules", "usr/lib/modules"));
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        write(&path, content);
    }
    symlink("usr/lib", root.join("lib")).expect("linked");
    symlink("/etc", root.join("usr/lib/modules").join(RELEASE).join("build")).expect("linked");
    let second = boot.build(&boot.request(KernelSource::at(&root)), "b").expect("built");
    assert_eq!(first.name, second.name);
    assert_eq!(files(&boot.path("a")), files(&boot.path("b")));
    assert!(first.name.starts_with(&format!("{RELEASE}-")), "{}", first.name);
    let order = ["fuse", "virtiofs", "crc32c_generic", "jbd2", "ext4"];
    assert_eq!(first.description.modules, order);
    assert_eq!(fs::read(first.path.join("kernel")).expect("a kernel"), b"the kernel");
    // Again in the same place: nothing changes.
    let again = boot.build(&boot.request(KernelSource::at(&root)), "b").expect("built");
    assert_eq!(again.name, second.name);
    assert_eq!(boot::list(&boot.path("b")).expect("listed"), [again]);
}

#[test]
fn the_initramfs_holds_what_a_machine_needs_and_nothing_else() {
    let boot = Boot::set_up();
    let built = boot.build(&boot.request(boot.package(&kernel())), "out").expect("built");
    let packed = fs::read(built.path.join("initramfs")).expect("an initramfs");
    let archive = boot.path("archive");
    write(&archive, &zstd::decode_all(packed.as_slice()).expect("zstd"));
    let listed = run("sh", &["-c", &format!("cpio -itv --quiet < {}", text(&archive))]);
    let listed = String::from_utf8(listed).expect("text");
    let mut names: Vec<_> =
        listed.lines().filter_map(|line| line.split_whitespace().last()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "dev",
            "dev/console",
            "init",
            "proc",
            "run",
            "strata",
            "strata/modules",
            "strata/modules/crc32c_generic.ko",
            "strata/modules/ext4.ko",
            "strata/modules/fuse.ko",
            "strata/modules/jbd2.ko",
            "strata/modules/order",
            "strata/modules/order-nfs",
            "strata/modules/virtiofs.ko",
            "strata/vlfs",
            "sys",
        ]
    );
    // The times are those of nothing.
    assert!(listed.lines().all(|line| line.contains(" 1970 ")), "{listed}");
    let console = listed.lines().find(|line| line.ends_with("dev/console")).expect("there");
    assert!(console.starts_with("crw-------") && console.contains("5,   1"), "{console}");
    let text = fs::read(built.path.join("environment.json")).expect("a description");
    let described: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(described["release"], RELEASE);
    assert_eq!(described["initramfs"]["bytes"], packed.len());
    assert_eq!(described["initramfs"]["blake3"], strata_core::Digest::of(&packed).to_string());
}

#[test]
fn a_crash_at_any_step_leaves_the_former_environment_current() {
    let boot = Boot::set_up();
    let mut newer = kernel();
    newer.insert(format!("boot/vmlinuz-{RELEASE}"), b"a newer kernel".to_vec());
    let request = boot.request(boot.package(&newer));
    for step in 0.. {
        assert!(step < 50);
        let output = boot.path(&format!("out-{step}"));
        let root = boot.path("root");
        for (path, content) in kernel() {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            write(&path, &content);
        }
        let former = boot::build(&boot.request(KernelSource::at(&root)), &output, &Disk::default());
        let former = former.expect("built");
        let built = boot::build(&request, &output, &Disk::failing_at(step));
        let listed = boot::list(&output).expect("every environment is whole");
        let current: Vec<_> = listed.iter().filter(|one| one.current).collect();
        let [current] = current.as_slice() else { panic!("one is current: {listed:?}") };
        for environment in &listed {
            let image = fs::read(environment.path.join("kernel")).expect("a kernel");
            let digest = strata_core::Digest::of(&image).to_string();
            assert_eq!(environment.description.kernel.blake3, digest);
        }
        assert!(output.join(&former.name).is_dir(), "machines may still boot from it");
        let left = fs::read_dir(&output).expect("listed").flatten();
        let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(".staged"));
        assert_eq!(left.count(), 0);
        if let Ok(built) = built {
            assert_eq!(current.name, built.name);
            assert!(step >= 5, "{step}");
            return;
        }
        // Once the link was moved, only its sync is left to do.
        let moved = current.name != former.name;
        assert!(!moved || listed.len() == 2, "{listed:?}");
    }
}

#[test]
fn programs_that_need_libraries_are_refused() {
    let boot = Boot::set_up();
    let mut request = boot.request(boot.package(&kernel()));
    request.init = std::env::current_exe().expect("this program");
    let error = boot.build(&request, "out").expect_err("dynamic");
    assert!(matches!(&error, BootError::Dynamic { needs, .. } if needs.contains("libc.so")));
    write(&boot.path("strata-vlfs"), b"#!/bin/sh\n");
    let request = boot.request(boot.package(&kernel()));
    assert!(matches!(boot.build(&request, "out"), Err(BootError::NoProgram { .. })));
    write(&boot.path("strata-vlfs"), &elf(2, ARM64, "vlfs"));
    assert!(matches!(boot.build(&request, "out"), Err(BootError::OtherProcessor { .. })));
    assert!(!boot.path("out").exists());
}

#[test]
fn kernels_that_cannot_boot_an_appliance_are_refused() {
    let boot = Boot::set_up();
    let below = format!("lib/modules/{RELEASE}/kernel");
    for (path, content, told) in [
        (format!("boot/vmlinuz-{RELEASE}"), None, "there is no kernel in"),
        (format!("{below}/fs/fuse/fuse.ko"), None, "has no FUSE"),
        (format!("{below}/fs/ext4/ext4.ko"), None, "has no ext4"),
        (format!("{below}/fs/fuse/virtiofs.ko"), None, "has no virtiofs, no 9p and no NFS"),
        (format!("{below}/fs/jbd2/jbd2.ko"), None, "ext4 needs jbd2"),
        ("boot/vmlinuz-5.10".to_owned(), Some(&b"x"[..]), "several kernels: 5.10, 6.1.0-9"),
        (format!("boot/config-{RELEASE}"), Some(b"CONFIG_RD_GZIP=y\n"), "CONFIG_BLK_DEV_INITRD"),
        (format!("{below}/x.ko"), Some(b"\x7fELF\x02nothing"), "the module"),
        (format!("{below}/x.ko.xz"), Some(b"no xz"), "the module"),
    ] {
        let mut files = kernel();
        match content {
            Some(content) => files.insert(path.clone(), content.to_vec()),
            None => files.remove(&path),
        };
        let error = boot.refused(&files);
        assert!(error.contains(told), "{path}: {error}");
    }
    let mut request = boot.request(boot.package(&kernel()));
    request.modules = vec!["none".to_owned()];
    assert!(matches!(boot.build(&request, "out"), Err(BootError::NoModule { .. })));
    request.modules = vec!["huge".to_owned(), "virtio".to_owned()];
    let built = boot.build(&request, "out").expect("built");
    assert_eq!(built.description.modules.last().map(String::as_str), Some("huge"));
    request.release = Some("5.10".to_owned());
    let other = boot.build(&request, "out").expect_err("another one");
    assert!(other.to_string().contains("no kernel 5.10; there are: 6.1.0-9"), "{other}");
}

#[test]
fn a_package_that_means_harm_is_refused() {
    let boot = Boot::set_up();
    let output = boot.path("out");
    for (name, told) in [
        (&b"../../boot/vmlinuz-1"[..], "leaves the layer"),
        (b"/boot/vmlinuz-1", "the name is absolute"),
    ] {
        let path = boot.path("bad.deb");
        write(&path, &package(&tarball(&[entry(name, b'0', b"x", b"")])));
        let request = boot.request(KernelSource::at(&path));
        let error = boot::build(&request, &output, &Disk::default()).expect_err("refused");
        assert!(error.to_string().contains(told), "{error}");
    }
    // Names that would be directories elsewhere are no kernels.
    let path = boot.path("bad.deb");
    write(&path, &package(&tarball(&[entry(b"./boot/vmlinuz-..", b'0', b"x", b"")])));
    let request = boot.request(KernelSource::at(&path));
    let error = boot::build(&request, &output, &Disk::default()).expect_err("refused");
    assert!(matches!(error, BootError::NoKernel(_)), "{error}");
    write(&path, &deb(&kernel())[..2000]);
    let error = boot::build(&request, &output, &Disk::default()).expect_err("cut");
    assert!(matches!(error, BootError::Package { .. }), "{error}");
    assert!(!output.exists());
}

#[test]
fn links_of_a_directory_lead_nowhere_outside() {
    let boot = Boot::set_up();
    let root = boot.path("root");
    let secret = boot.path("secret");
    write(&secret, b"secret");
    for (path, content) in kernel() {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        if path.ends_with(format!("boot/vmlinuz-{RELEASE}")) {
            symlink(&secret, &path).expect("linked");
        } else {
            write(&path, &content);
        }
    }
    let built = boot.build(&boot.request(KernelSource::at(&root)), "out");
    assert!(matches!(built, Err(BootError::NoKernel(_))), "{built:?}");
}
